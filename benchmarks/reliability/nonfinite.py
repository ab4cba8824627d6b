"""A NaN or an infinity put anywhere into a step changes no weight, is told with its rows, and is met once.

Each case is a small training with one fault (faults.py), its verdicts read at once or one step late, and is held against one
without the fault, bit by bit:

- a fault that comes once (hardware, say) costs nothing: the result is that of the clean training;
- one that comes with the step's rows is passed over: the result is that of a training that was told beforehand to leave that
  step out; a rollback to an older checkpoint does not begin the step again and ends the same;
- a weight that is spoiled stops the training before another one is;
- no checkpoint that was ever written holds such a value, and no number in the events hides one.

`mutations` breaks the product in ways that the check has to see.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_training import LORA, Small, small_training
from tiny_model import make_tiny_model

from reliability.faults import KINDS, Fault, bits, replaced, spoiled, verdicts_read_late
from reliability.frame import Budget
from tunesmith.errors import ModelError
from tunesmith.runs.events import Event
from tunesmith.stages.train import steps
from tunesmith.stages.train.incidents import Incidents
from tunesmith.stages.train.steps import Steps

PROMISE = "NaN or infinity in a gradient, weight, loss, activation or row: no weight changes, rows are named, nothing is hidden"
STEPS = 7
SETTINGS = [f"train.max_steps={STEPS}", "train.save_every=3", "train.evaluate_every=3", "train.micro_batch=2"]
METHODS = {"full": [], "lora": [LORA]}
PLACES = ("gradient", "last gradient", "loss", "told loss", "activation", "last activation")
AT = {"the first step": 1, "a step before a save": 3, "a step in between": 5, "the last step": STEPS}


@dataclass(frozen=True)
class Case:
    """what: a Fault's place, or "frozen weight", "trained weight", "embedding row", "heavy rows"."""

    what: str
    kind: str
    step: int
    is_lasting: bool
    method: str
    is_late: bool

    @property
    def name(self) -> str:
        often = "with its rows" if self.is_lasting else "once"
        late = "read late" if self.is_late else "read at once"
        return f"{self.kind} in {self.what}, step {self.step}, {often}, {self.method}, {late}"


def all_cases() -> Iterator[Case]:
    turns = (AT.values(), (True, False), METHODS, (True, False))
    for what, kind, step, is_lasting, method, is_late in itertools.product(PLACES, KINDS, *turns):
        if kind == "too large to square" and ("activation" in what or what == "told loss"):
            continue  # a large activation is normalised, a large sum is a number: no fault at all
        yield Case(what, kind, step, is_lasting, method, is_late)
    for what, kind, is_late in itertools.product(SPOILED, ("nan", "inf", "-inf"), (True, False)):
        yield Case(what, kind, 0, True, "lora" if what == "frozen weight" else "full", is_late)


SPOILED = ("frozen weight", "trained weight", "embedding row", "heavy rows")


class World:
    """A model and, by method, the result of a clean training and of those that leave one step out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make_tiny_model(folder / "model")
        self._results: dict[tuple[str, int | None], bytes] = {}

    def result(self, method: str, without: int | None) -> bytes:
        key = (method, without)
        if key not in self._results:
            with self.training(method) as training:
                if without is not None:
                    Incidents.of(training.run).skip(without)
                self._results[key] = bits(training.train())
        return self._results[key]

    @contextlib.contextmanager
    def training(self, method: str, model: Path | None = None, **dataset: Any) -> Iterator[Small]:
        workspace = Path(tempfile.mkdtemp(prefix="nonfinite-", dir=self.folder))
        try:
            yield small_training(workspace, model or self.model, [*SETTINGS, *METHODS[method]], **dataset)
        finally:
            shutil.rmtree(workspace)


def check(budget: Budget, cases: Callable[[], Iterable[Case]] = all_cases) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nonfinite-") as folder:
        world = World(Path(folder))
        for case in budget.cases(cases()):
            budget.judge(case.name, problem_of(case, world))
    return budget.result(PROMISE)


def problem_of(case: Case, world: World) -> str | None:
    """What did not hold; None where all did."""
    with verdicts_read_late() if case.is_late else contextlib.nullcontext():
        if case.what in SPOILED:
            return SPOILS[case.what](case, world)
        return _with_a_fault(case, world)


def _with_a_fault(case: Case, world: World) -> str | None:
    fault = Fault(case.what, case.kind, case.step, is_lasting=case.is_lasting)
    with world.training(case.method) as training:
        seen = _Seen(training)
        with spoiled(fault) as doing:
            try:
                result = training.train()
            except ModelError as error:
                return f"stopped: {error.code}"
            if case.step not in training.values("train/nonfinite"):
                return "not noticed"
            problem = _told(training, case.step, case.is_lasting) or seen.problem
            if problem:
                return problem
            if bits(result) != world.result(case.method, case.step if case.is_lasting else None):
                return "other weights than " + ("without that step" if case.is_lasting else "without the fault")
            if result.notes["skipped"] != [case.step] * case.is_lasting:
                return f"skipped {result.notes['skipped']}"
            if case.is_lasting and case.step > 1:
                return _after_a_rollback(case, training, doing.begun, bits(result))
    return None


def _told(training: Small, step: int, is_lasting: bool) -> str | None:
    """Rows, cause and numbers of the step, as the events have them."""
    rows, cause = training.values("train/nonfinite").get(step), training.values("train/nonfinite_cause").get(step)
    if not rows or len(rows) != 5:
        return f"rows of the step: {rows}"
    if not cause or (
        cause["cause"] != ("rows" if is_lasting else "hardware") and cause["cause"] != "all rows together"
    ):
        return f"cause: {cause}"
    finite = [math.isfinite(training.values(f"train/{name}")[step]) for name in ("loss", "grad_norm")]
    if all(finite) == is_lasting:
        return "the events say finite of a step that was not" if is_lasting else "not finite after the second try"
    others = [
        value for name in ("train/loss", "train/grad_norm") for at, value in training.values(name).items() if at != step
    ]
    if not all(map(math.isfinite, others)) or len(others) != 2 * (STEPS - 1):
        return "other steps' numbers are missing or not finite"
    return None


def _after_a_rollback(case: Case, training: Small, begun: list[int], straight: bytes) -> str | None:
    """The result and all checkpoints from the step on are lost: an older one is gone back to."""
    store = training.run.store
    shutil.rmtree(store.folder("Model" if case.method == "full" else "Adapter", training.run.stage_key))
    checkpoints = store.folder("Checkpoint", f"{training.run.stage_key}/step-00000000").parent
    for folder in checkpoints.glob("step-*"):
        if int(folder.name[5:]) >= case.step:
            shutil.rmtree(folder)
    before = len(begun)
    result = training.again().train()
    if case.step in begun[before:]:
        return "the step was met again after a rollback"
    return None if bits(result) == straight else "other weights after a rollback"


class _Seen:
    """Looks at each checkpoint as it is saved."""

    def __init__(self, training: Small) -> None:
        self.training, self.problem = training, ""
        training.run.listeners.append(self)

    def __call__(self, event: Event) -> None:
        if event.name != "checkpoint/saved":
            return
        folder = self.training.run.store.folder("Checkpoint", f"{self.training.run.stage_key}/step-{event.value:08d}")
        for name in ("model.safetensors", "optimizer.safetensors"):
            if not all(bool(torch.isfinite(value).all()) for value in load_file(folder / name).values()):
                self.problem = f"checkpoint {event.value} holds a value that is not finite in {name}"


# ------------------------------------------------------------------------------------------- what lies in weights and rows


def _in_a_weight(case: Case, world: World) -> str | None:
    """A base model that holds such a value: a trained one stops the training, a frozen one spoils each step."""
    model = _spoiled_model(world, "model.layers.0.mlp.up_proj.weight", 0, KINDS[case.kind])
    with world.training(case.method, model) as training:
        seen = _Seen(training)
        try:
            training.train()
        except ModelError as error:
            expected = "TRN-064" if case.what == "trained weight" else "TRN-002"
            if error.code != expected:
                return f"{error.code} instead of {expected}"
        else:
            return "not noticed"
        causes = training.values("train/nonfinite_cause")
        if not all("up_proj.weight" in " ".join(cause["weights"]) for cause in causes.values()):
            return f"the weight is not named: {causes}"
        return seen.problem or None


def _in_an_embedding_row(case: Case, world: World) -> str | None:
    """The row of one token: only the examples that hold it are to blame, and they are named."""
    with world.training("full") as training:
        dataset = training.dataset
        examples = dataset.split("train").tolist()
        counts = {}
        for example in examples:
            for token in set(dataset.sequence(example)[0].tolist()):
                counts.setdefault(token, []).append(dataset.row(example))
        token, owners = next((token, rows) for token, rows in sorted(counts.items()) if len(rows) == 1)
    model = _spoiled_model(world, "model.embed_tokens.weight", token, KINDS[case.kind], tie=False)
    with world.training("lora", model) as training:
        seen = _Seen(training)
        try:
            result = training.train()
        except ModelError as error:
            return f"stopped: {error}"
        told = training.values("train/nonfinite_cause")
        blamed = sorted({row for cause in told.values() for row in cause["rows"]})
        if told and (blamed != owners or not all("embed" in " ".join(cause["weights"]) for cause in told.values())):
            return f"blamed {blamed} for {owners}: {told}"
        if not told and result.notes["skipped"]:
            return "skipped without a word"
        return seen.problem or (None if told else "not noticed")


def _in_heavy_rows(case: Case, world: World) -> str | None:
    """Rows whose weights no float32 sum survives."""
    with world.training("full", bad_rows=2) as training:
        seen = _Seen(training)
        try:
            result = training.train()
        except ModelError as error:
            return f"stopped: {error.code}"
        blamed = sorted({row for cause in training.values("train/nonfinite_cause").values() for row in cause["rows"]})
        if not blamed or not set(blamed) <= {30, 31}:
            return f"blamed {blamed} for some of [30, 31]"
        if len(training.values("train/nonfinite")) != len(result.notes["skipped"]):
            return f"skipped {result.notes['skipped']}"
        return seen.problem or None


SPOILS: dict[str, Callable[[Case, World], str | None]] = {
    "frozen weight": _in_a_weight,
    "trained weight": _in_a_weight,
    "embedding row": _in_an_embedding_row,
    "heavy rows": _in_heavy_rows,
}


def _spoiled_model(world: World, name: str, row: int, value: float, tie: bool = True) -> Path:
    """A copy of the model with one value in one row of one weight changed; untied: the head keeps the sound embedding."""
    import json

    folder = world.folder / f"model-{name}-{row}-{value}"
    if folder.exists():
        return folder
    shutil.copytree(world.model, folder)
    weights = load_file(folder / "model.safetensors")
    if not tie:
        weights["lm_head.weight"] = weights[name].clone()
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights[name][row, 0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


# ---------------------------------------------------------------------------------------------------------------- mutations


def mutations() -> dict[str, contextlib.AbstractContextManager[Any]]:
    """Ways to break the product; for each of them the check must fail somewhere."""
    return {
        "the update is made all the same": _no_flag(),
        "the skip list forgets": replaced(Incidents, "skip", lambda self, step: None),
        "no second try": _no_second_try(),
        "rows are blamed at random": replaced(steps, "rows_not_finite", lambda loop, step, examples: examples[:1]),
    }


class _Nothing:
    """An attribute that cannot be set."""

    def __get__(self, *told: Any) -> None:
        return None

    def __set__(self, *told: Any) -> None:
        pass


@contextlib.contextmanager
def _no_flag() -> Iterator[None]:
    torch.optim.AdamW.found_inf = _Nothing()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del torch.optim.AdamW.found_inf  # type: ignore[attr-defined]


@contextlib.contextmanager
def _no_second_try() -> Iterator[None]:
    advance = Steps.advance

    def never(self: Steps) -> Iterator[Any]:
        self.tried_again = self.state.step + 1
        yield from advance(self)

    with replaced(Steps, "advance", never):
        yield
