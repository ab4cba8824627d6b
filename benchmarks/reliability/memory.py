"""Memory runs out somewhere in a training: the micro-batch halves, the steps stay what they were.

- Injected: the allocator's error raised in a forward or backward pass, an update, the probe, a validation or its generation,
  once at a chosen place or whenever a pass is larger than what "fits"; in one process (verdicts read at once or late) and on
  one of two processes.
- Real: a limit on the address space (RLIMIT_AS) under which the asked micro-batch cannot be allocated.
- By the system: a worker that is killed by SIGKILL while the counter of such kills rises; its launcher starts anew.

Each is held against the same training with all the memory it wants: the same examples in each step, the loss of the step that
was interrupted within 1e-6, all later ones within 1e-5, weights within 1e-5, the smaller micro-batch in the checkpoint and
kept by whatever goes on from it. An example that is too large alone ends the training and is named.

`mutations` breaks the product in ways that the check has to see.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from small_training import LORA, Small, small_training
from tiny_model import make_tiny_model
from torch import Tensor, nn

from reliability.faults import replaced, verdicts_read_late
from reliability.frame import Budget
from tunesmith.errors import ModelError, OutOfMemory
from tunesmith.modeling.forward import Batch
from tunesmith.runs.run import Run
from tunesmith.scoring import perplexity
from tunesmith.stages.train import run as stage
from tunesmith.stages.train.engines import LocalEngine
from tunesmith.stages.train.incidents import Incidents
from tunesmith.stages.train.loop import Loop, StepInFlight, StepResult

PROMISE = "Out of memory halves the micro-batch, not your batch: same examples, same loss, and the smaller size is kept"
STEPS, MICRO_BATCH = 6, 4
SETTINGS = [
    f"train.max_steps={STEPS}", "train.save_every=2", "train.evaluate_every=3", "train.batch_size=8", "train.packing=off",
    f"train.micro_batch={MICRO_BATCH}",
]  # fmt: skip
ANSWERS = ["train.validation={metrics: [exact_match], max_new_tokens: 3, batch_size: 4}"]
# An update that shows the scale of gradients, and one that is withheld on the device.
METHODS = {
    "full, SGD": ["train.optimizer={type: sgd}", "train.learning_rate=0.05"],
    "LoRA, AdamW": [LORA, "train.optimizer={type: adamw, epsilon: 0.01}"],
}
ERRORS: dict[str, Callable[[], BaseException]] = {
    "of a GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "of a CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: error code 12"
    ),
    "of Python": lambda: MemoryError(),
}
PLACES = ("forward", "backward", "update", "half an update", "probe", "validation", "generation")


@dataclass(frozen=True)
class Case:
    """fits: longest rows that go through at once; 0 for none that holds the longest one; None for one failure only."""

    place: str
    error: str
    fits: int | None
    step: int
    method: str
    how: str  # "read at once", "read late", "on the first of two processes", "on the second of two processes"

    @property
    def name(self) -> str:
        size = (
            "one failure"
            if self.fits is None
            else f"room for {self.fits}"
            if self.fits
            else "no room for the longest row"
        )
        return f"{self.error}, {self.place}, step {self.step}, {size}, {self.method}, {self.how}"


def all_cases() -> Iterator[Case | str]:
    yield "the limit of the address space"
    yield "killed by the system"
    alone, in_two = ("read at once", "read late"), ("on the first of two processes", "on the second of two processes")
    for place, error, fits, method in itertools.product(PLACES, ERRORS, (None, 2, 1, 0), METHODS):
        if "update" in place and fits is not None:
            continue
        if place in ("probe", "validation", "generation") and fits is None:
            continue
        steps = (1, 2, 5) if place in ("forward", "backward", "update", "half an update") else (0,)
        hows = (*alone, *in_two) if place in ("forward", "backward") else alone[:1]
        for step, how in itertools.product(steps, hows):
            if how == "read late" and "SGD" in method:
                continue
            if fits == 0 and (step > 1 or how == in_two[1]):  # the longest row comes once, to the first process
                continue
            yield Case(place, error, fits, step, method, how)


class World:
    """A model, a pair of processes, and by training what it comes to with all the memory it wants."""

    def __init__(self, folder: Path, pair: Any = None) -> None:
        self.folder = folder
        self.model = make_tiny_model(folder / "model")
        self.pair, self.owns_pair = pair, pair is None
        self._known: dict[str, dict[str, Any]] = {}

    def undisturbed(self, case: Case) -> dict[str, Any]:
        key = json.dumps([settings_of(case), in_two_processes(case)])
        if key not in self._known:
            with self.training(case) as training:
                self._known[key] = self.train(training, None, case)
        return self._known[key]

    @contextlib.contextmanager
    def training(self, case: Case) -> Iterator[Small]:
        workspace = Path(tempfile.mkdtemp(prefix="memory-", dir=self.folder))
        try:
            yield small_training(workspace, self.model, settings_of(case))
        finally:
            shutil.rmtree(workspace)

    def train(self, training: Small, shortage: Case | None, case: Case) -> dict[str, Any]:
        told = asdict(shortage) if shortage else None
        if not in_two_processes(case):
            return trained(training.run, training.recipe, told)
        if self.pair is None:
            sys.path.append(str(Path(__file__).parents[2] / "tests" / "numerics"))
            from gloo import GlooPair

            self.pair = GlooPair(str(self.folder / "store"))
        path = str(training.run.path)
        first, second = self.pair.call("reliability.memory:trained_by_rank", run=path, shortage=told)
        return {**first, "problem": first["problem"] or second["problem"]}


def in_two_processes(case: Case) -> bool:
    return case.how.endswith("processes")


def settings_of(case: Case) -> list[str]:
    found = [*SETTINGS, *METHODS[case.method]]
    found += ["train.engine=ddp"] if in_two_processes(case) else []
    found += ["train.micro_batch=auto"] if case.place == "probe" else []
    return [*found, *(ANSWERS if case.place == "generation" else [])]


def check(budget: Budget, cases: Callable[[], Iterable[Case | str]] = all_cases, pair: Any = None) -> dict[str, Any]:
    """pair: two processes of a gloo group that are there already."""
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        world = World(Path(folder), pair)
        try:
            for case in budget.cases(cases()):
                if isinstance(case, Case):
                    budget.judge(case.name, problem_of(case, world))
                elif case == "killed by the system":
                    budget.judge(case, _killed_by_the_system(world))
                else:
                    budget.judge(case, _under_a_limit(world))
        finally:
            if world.pair is not None and world.owns_pair:
                world.pair.close()
    return budget.result(PROMISE)


def problem_of(case: Case, world: World) -> str | None:
    with world.training(case) as training:
        late = verdicts_read_late() if case.how == "read late" else contextlib.nullcontext()
        with late:
            found = world.train(training, case, case)
        if case.fits == 0:
            return _named(case, training, found)
        if found["problem"]:
            return str(found["problem"])
        expected = world.undisturbed(case)
        problem = _same_steps(case.step, found, expected) or _told(case, training)
        return problem or _kept(case, training, found)


def _named(case: Case, training: Small, found: dict[str, Any]) -> str | None:
    """What one example that is too large alone comes to."""
    dataset = training.dataset
    part = "train" if case.place in ("forward", "backward", "probe") else "validation"
    longest = max(dataset.split(part).tolist(), key=lambda example: dataset.lengths()[example])
    if not found["problem"]:
        return "an example that is too large was trained on"
    expected = ("TRN-003", f"row {dataset.row(longest)}")
    if case.place in ("validation", "generation"):
        expected = ("EVL-012", "row ")  # of prompts the longest one, which need not belong to the longest row
    return None if all(word in found["problem"] for word in expected) else f"{expected} expected: {found['problem']}"


def _same_steps(step: int, found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    if found["examples"] != expected["examples"]:
        return f"other examples: {found['examples']} instead of {expected['examples']}"
    for number, loss in expected["losses"].items():
        limit = 1e-6 if int(number) <= max(step, 1) else 1e-5
        if not math.isclose(found["losses"][number], loss, rel_tol=limit):
            return f"loss of step {number}: {found['losses'][number]!r} instead of {loss!r}"
    for number, loss in expected["validation"].items():
        if not math.isclose(found["validation"][number], loss, rel_tol=1e-5):
            return f"validation after step {number}: {found['validation'][number]!r} instead of {loss!r}"
    distance = max(float((found["weights"][name] - weight).abs().max()) for name, weight in expected["weights"].items())
    return f"weights {distance:.1e} away" if not distance < 1e-5 else None


def _told(case: Case, training: Small) -> str | None:
    if case.place in ("validation", "generation"):
        return None  # they cut their own batches and leave the steps' alone
    name = "probe/out_of_memory" if case.place == "probe" else "train/out_of_memory"
    if name not in {event.name for event in training.run.events()}:
        return f"no event {name}"
    return None


def _kept(case: Case, training: Small, found: dict[str, Any]) -> str | None:
    """The smaller size, in the last checkpoint, and beside all of them for one that is older."""
    if case.place in ("validation", "generation"):
        return None
    # Two processes have four examples each: what is asked for is less from the start.
    expected = MICRO_BATCH // 2 if case.fits is None else case.fits
    if found["micro_batch"] != expected:
        return f"micro-batch {found['micro_batch']} in the checkpoint instead of {expected}"
    if case.place != "probe" and Incidents.of(training.run).micro_batch != expected:
        return "an older checkpoint would not know of the smaller size"
    return None


# ------------------------------------------------------------------------------------------------------------- one training


def trained(run: Run, recipe: Any, shortage: dict[str, Any] | None) -> dict[str, Any]:
    """Trains; what memory refuses is as `shortage` says. Returns what the training came to, or the problem that ended it."""
    seen: dict[int, list[int]] = {}
    told = stage.Training._tell

    def tell(self: Any, result: StepResult) -> None:
        seen[result.number] = result.examples
        told(self, result)

    found: dict[str, Any] = {"problem": None, "examples": seen}
    scarce = memory_is_scarce(Case(**shortage)) if shortage else contextlib.nullcontext()
    dataset = run.store.find("Dataset", "d1")
    assert dataset is not None
    with replaced(stage.Training, "_tell", tell), scarce:
        try:
            made = stage.run(recipe, {"dataset": dataset}, run)
        except ModelError as error:
            return {**found, "problem": str(error)}
    values: dict[str, dict[int, Any]] = {"train/loss": {}, "validation/loss": {}}
    for event in run.events():
        if event.name in values:
            values[event.name][event.step] = event.value
    found |= {"losses": values["train/loss"], "validation": values["validation/loss"]}
    if made:
        (path,) = made["model"].path.glob("*model.safetensors")
        found["weights"] = load_file(path)
        newest = run.store.folder("Checkpoint", f"{run.stage_key}/step-{STEPS:08d}")
        found["micro_batch"] = json.loads((newest / "state.json").read_bytes())["micro_batch"]
    return found


def trained_by_rank(run: str, shortage: dict[str, Any] | None) -> dict[str, Any]:
    """As `trained`, in one of two processes; only the one that the shortage names has it."""
    opened = Run.open(run)
    opened.stage_key = "abc"
    rank = int(os.environ["RANK"])
    is_mine = shortage is not None and shortage["how"] == f"on the {('first', 'second')[rank]} of two processes"
    return trained(opened, opened.recipe, shortage if is_mine else None)


@contextlib.contextmanager
def memory_is_scarce(case: Case) -> Iterator[None]:
    """Within it trainings of this process run out of memory as the case says."""
    now = {"step": 0, "failed": False}
    begin, loss, backward = Loop.begin, Loop.loss, LocalEngine.backward
    sized: dict[str, int] = {}

    def fails(batch: Batch, loop: Loop) -> bool:
        if case.place in ("forward", "backward") and now["step"] < case.step:
            return False
        if case.place == "probe" and now["step"]:
            return False
        longest = int(loop.lengths[loop.order.examples].max())
        if case.fits is None:
            return not now["failed"] and now["step"] == case.step
        if case.fits == 0:
            return int(loop.lengths[batch.examples_E.numpy()].max()) == longest
        return batch.ids_BT.numel() > case.fits * longest

    def fail() -> None:
        now["failed"] = True
        raise ERRORS[case.error]()

    def noted_begin(self: Loop, number: int) -> StepInFlight:
        now["step"] = number
        try:
            return begin(self, number)
        finally:
            now["step"] = 0

    def scarce_loss(self: Loop, batch: Batch, weights_K: Tensor) -> Tensor:
        if case.place in ("forward", "probe") and fails(batch, self):
            loss(self, batch, weights_K)  # it has begun, and something of it is left
            fail()
        sized["fails"] = int(case.place == "backward" and fails(batch, self))
        return loss(self, batch, weights_K)

    def scarce_backward(self: LocalEngine, value: Tensor, is_last: bool = True) -> None:
        backward(self, value, is_last)
        if sized.pop("fails", 0):
            fail()  # when gradients have been added already

    with contextlib.ExitStack() as changes:
        changes.enter_context(replaced(Loop, "begin", noted_begin))
        changes.enter_context(replaced(Loop, "loss", scarce_loss))
        changes.enter_context(replaced(LocalEngine, "backward", scarce_backward))
        if "update" in case.place:
            changes.enter_context(_scarce_updates(case, now, fail))
        if case.place in ("validation", "generation"):
            changes.enter_context(_scarce_passes(case, fail))
        yield


@contextlib.contextmanager
def _scarce_updates(case: Case, now: dict[str, Any], fail: Callable[[], None]) -> Iterator[None]:
    wrap = LocalEngine.wrap

    def wrapped(self: LocalEngine, model: nn.Module, *told: Any, **more: Any) -> nn.Module:
        made = wrap(self, model, *told, **more)
        step = self.optimizer.step

        def scarce(*arguments: Any) -> Any:
            if now["step"] == case.step and not now["failed"]:
                if case.place == "half an update":
                    with torch.no_grad():
                        self.parameters[0][1].add_(0.5)
                fail()
            return step(*arguments)

        self.optimizer.step = scarce  # type: ignore[method-assign]
        return made

    with replaced(LocalEngine, "wrap", wrapped):
        yield


@contextlib.contextmanager
def _scarce_passes(case: Case, fail: Callable[[], None]) -> Iterator[None]:
    """Of a validation; of the answers that it measures."""
    from tunesmith.scoring import generation

    if case.place == "validation":
        nll = perplexity.learned_nll

        def scarce(model: nn.Module, batch: Batch) -> Tensor:
            if len(batch.examples_E) > (case.fits or 0):
                fail()
            return nll(model, batch)

        change = replaced(perplexity, "learned_nll", scarce)
    else:
        decode = generation._decode

        def scarce_decode(model: nn.Module, items: Any, *told: Any) -> Any:
            if len(items) > (case.fits or 0):
                fail()
            return decode(model, items, *told)

        change = replaced(generation, "_decode", scarce_decode)
    with change:
        yield


# ------------------------------------------------------------------------------------------------------------ without hooks


LIMITED = """
import json, resource, sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from small_training import small_training
import reliability.memory as memory
import torch
from tunesmith.stages.train import run as stage

workspace, spare = Path(sys.argv[1]), int(sys.argv[2])
training = memory.large_training(workspace)
told = stage.Training._fit_micro_batch

def limited(self):
    told(self)
    if spare:
        used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))

write = stage.Training._write_result

def unlimited(self, *told):
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)  # training is over; the harness reads what it made
    return write(self, *told)

stage.Training._fit_micro_batch, stage.Training._write_result = limited, unlimited
found = memory.trained(training.run, training.recipe, None)
weights = found.pop("weights", {})
events = [[event.name, event.value] for event in training.run.events() if event.name == "train/out_of_memory"]
norm = sum(float(weight.double().square().sum()) for weight in weights.values()) ** 0.5
print(json.dumps({**found, "events": events, "norm": norm}))
"""
SPARE_MIB = (
    96  # over what the process has when its model is there: less than four of the rows below need, more than one
)


def large_training(workspace: Path) -> Small:
    """Rows of 1,500 tokens: what a pass needs is more than what the process has lying about."""
    import numpy as np

    from tunesmith.runs.dataset import DatasetWriter

    made = small_training(
        workspace,
        workspace.parent / "long",
        [*SETTINGS, "train.batch_size=4", "train.max_steps=6", "train.optimizer={type: sgd}"],
    )
    shutil.rmtree(made.inputs["dataset"].path)
    draw = np.random.default_rng(0)
    with made.run.store.create("Dataset", "d1", producer={}) as draft:
        writer = DatasetWriter(draft.path)
        for row in range(12):
            length = 1500 - row
            writer.add(draw.integers(5, 256, length).astype(np.int32), [[length // 2, length, 1.0]], row, "train")
        writer.close(items=[])
    return made


def _under_a_limit(world: World) -> str | None:
    """The same training with and without a limit on the address space."""
    make_long_model(world.folder / "long")
    found = []
    for name, spare in (("free", 0), ("limited", SPARE_MIB * 2**20)):
        command = [sys.executable, "-c", LIMITED, str(world.folder / name), str(spare), *sys.path]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        if done.returncode:
            return f"{name}: status {done.returncode}: {done.stderr[-300:]}"
        found.append(json.loads(done.stdout.splitlines()[-1]))
    free, limited = found
    if limited["problem"]:
        return limited["problem"]
    if not limited["events"]:
        return "the limit was not met: nothing is shown"
    if limited["examples"] != free["examples"]:
        return "other examples"
    for step, loss in free["losses"].items():
        if not math.isclose(limited["losses"][step], loss, rel_tol=1e-5):
            return f"loss of step {step}: {limited['losses'][step]} instead of {loss}"
    return None if math.isclose(free["norm"], limited["norm"], rel_tol=1e-6) else "other weights"


def make_long_model(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _killed_by_the_system(world: World) -> str | None:
    """A worker is killed by SIGKILL in its second step while the counter of such kills rises."""
    case = Case("forward", "of a CPU", None, 2, "full, SGD", "on the second of two processes")
    expected = world.undisturbed(case)
    workspace = Path(tempfile.mkdtemp(prefix="killed-", dir=world.folder))
    training = small_training(workspace, world.model, [*settings_of(case), "train.processes=2"])
    counter = workspace / "memory.events"
    counter.write_text("oom 0\noom_kill 0\n")
    from tunesmith import launch
    from tunesmith.launch import starved

    def kills(counters: Any = None) -> int:
        return int(counter.read_text().split()[-1])

    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "RELIABILITY_COUNTER": str(counter)}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with replaced(starved, "kills", kills):
            made = launch.train(training.recipe, training.run, training.inputs, 2, entry="reliability.memory_killed")
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    (path,) = made["model"].path.glob("*model.safetensors")
    weights = load_file(path)
    distance = max(float((weights[name] - weight).abs().max()) for name, weight in expected["weights"].items())
    told = [event.value for event in training.run.events() if event.name == "train/out_of_memory"]
    if len(told) != 1 or (told[0]["micro_batch"], told[0]["from_now_on"]) != (MICRO_BATCH, MICRO_BATCH // 2):
        return f"told {told}"
    losses = training.values("train/loss")
    if any(not math.isclose(losses[step], loss, rel_tol=1e-5) for step, loss in expected["losses"].items()):
        return "other losses"
    return f"weights {distance:.1e} away" if distance > 1e-5 else None


# ---------------------------------------------------------------------------------------------------------------- mutations


def mutations() -> dict[str, contextlib.AbstractContextManager[Any]]:
    """Ways to break the product; for each of them the check must fail somewhere."""
    return {
        "gradients of the failed try stay": _gradients_stay(),
        "the smaller size is not kept": replaced(Incidents, "reduce", lambda self, micro_batch: None),
        "an update that was cut off is gone on from": _goes_on_after_half_an_update(),
    }


@contextlib.contextmanager
def _gradients_stay() -> Iterator[None]:
    discard, fits = LocalEngine.discard, Loop._accumulate_if_it_fits
    trying = []

    def keep(self: LocalEngine) -> None:
        if not trying:
            discard(self)

    def noted(self: Loop, *told: Any) -> Any:
        trying.append(1)
        try:
            return fits(self, *told)
        finally:
            trying.pop()

    def keeps(self: LocalEngine, *told: Any, **more: Any) -> Any:
        if not more.get("fits", True):
            trying.append(1)
            try:
                return step(self, *told, **more)
            finally:
                trying.pop()
        return step(self, *told, **more)

    step = LocalEngine.step
    with (
        replaced(LocalEngine, "discard", keep),
        replaced(Loop, "_accumulate_if_it_fits", noted),
        replaced(LocalEngine, "step", keeps),
    ):
        yield


@contextlib.contextmanager
def _goes_on_after_half_an_update() -> Iterator[None]:
    begin = Loop.begin

    def again(self: Loop, number: int) -> StepInFlight:
        try:
            return begin(self, number)
        except OutOfMemory:
            self.engine.discard()
            return begin(self, number)

    with replaced(Loop, "begin", again):
        yield
