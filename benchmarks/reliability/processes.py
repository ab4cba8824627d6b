"""A training that goes on with other numbers of processes is the same training.

1 -> 2 -> 4 -> 1 processes with DDP, and 1 -> 2 -> 1 and 2 -> 1 with FSDP2 and ZeRO, two steps each, through checkpoints as files hold
them; held against eight steps of one process, step by step:

- the examples that went through the model, over all processes, are those that (seed, n) names, each once;
- gradients (what SGD at a constant rate took away, over the rate) within 1e-5 in float32, and within 1e-12 in float64, where DDP
  and FSDP2 can compute in it: rounding shrinks so far, a wrong scale or a lost row does not (docs/decisions/engine-tolerances.md).

And as a user does it: `--continue RUN --allow train.processes`.

`mutations` breaks the product in ways that the check has to see.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_training import fill_dataset
from tiny_model import make_tiny_model
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "tests" / "numerics"))

import gradients
from gloo import GlooGroup

from reliability.frame import Budget
from tunesmith import api
from tunesmith.stages.train import loop as loop_module

PROMISE = "Go on with another number of processes: the same examples in each step, gradients within 1e-5"
EACH = 2  # steps before the number changes
RATE = 0.1
CONSTANT = ("train.schedule={type: constant, warmup: 0}", f"train.learning_rate={RATE}")
LIMITS = {"fp32": 1e-5, "fp64": 1e-12}
METHODS = {"full": ("full", 0.0), "LoRA": ("lora", 0.0), "LoRA with dropout": ("lora", 0.1)}
ENGINES = {
    "DDP": "ddp",
    "FSDP2": "fsdp",
    "ZeRO-1": "{type: deepspeed, zero_stage: 1}",
    "ZeRO-2": "{type: deepspeed, zero_stage: 2}",
    "ZeRO-3": "{type: deepspeed, zero_stage: 3}",
}
WAYS = {"DDP": ((1, 2, 4, 1), (4, 2), (2, 1)), "FSDP2": ((2, 1), (1, 2, 1), (4, 2, 1))}
AS_A_USER = "1 -> 2 -> 1 by --continue and --allow"


@dataclass(frozen=True)
class Case:
    engine: str
    way: tuple[int, ...]
    method: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.engine}, {' -> '.join(map(str, self.way))}, {self.method}, {self.precision}"


def all_cases() -> Iterator[Case | str]:
    yield AS_A_USER
    for engine in ENGINES:
        for way in WAYS.get(engine, ((2, 1), (1, 2, 1))):
            for method in METHODS:
                for precision in LIMITS if engine in WAYS else ("fp32",):
                    yield Case(engine, way, method, precision)


class World:
    """Model, rows, groups of processes, and what one process makes of all steps."""

    def __init__(self, folder: Path, pair: GlooGroup | None) -> None:
        self.folder, self.pair = folder, pair
        (folder / "dataset").mkdir()
        fill_dataset(folder / "dataset")
        self.place = {"model_dir": str(make_tiny_model(folder / "model")), "dataset_dir": str(folder / "dataset")}
        self.groups: dict[int, GlooGroup] = {2: pair} if pair else {}
        self._straight: dict[tuple[str, str, int], list[dict[str, Any]]] = {}

    def straight(self, case: Case) -> list[dict[str, Any]]:
        key = (case.method, case.precision, len(case.way))
        if key not in self._straight:
            self._straight[key] = steps(1, EACH * len(case.way), None, self.settings(case))["steps"]
        return self._straight[key]

    def settings(self, case: Case) -> dict[str, Any]:
        adapter, dropout = METHODS[case.method]
        return {**self.place, "adapter": adapter, "dropout": dropout, "precision": case.precision, "micro_batch": 1}

    def steps(self, size: int, engine: str, **asked: Any) -> dict[str, Any]:
        if size == 1:
            return steps(**asked)
        if size not in self.groups:
            self.groups[size] = GlooGroup(str(self.folder / f"store-{size}"), size)
        told = {**asked, "settings": {**asked["settings"], "engine": ENGINES[engine]}}
        found = self.groups[size].call("reliability.processes:steps", **told)
        for number, step in enumerate(found[0]["steps"]):
            step["examples"] = [example for one in found for example in one["steps"][number]["examples"]]
        return found[0]

    def close(self) -> None:
        for group in self.groups.values():
            if group is not self.pair:
                group.close()


def check(
    budget: Budget, cases: Callable[[], Iterable[Case | str]] = all_cases, pair: GlooGroup | None = None
) -> dict[str, Any]:
    """pair: two processes of a gloo group that are there already."""
    with tempfile.TemporaryDirectory(prefix="processes-") as folder:
        world = World(Path(folder), pair)
        worst: dict[str, float] = budget.notes.setdefault("largest_difference", {})
        try:
            for case in budget.cases(cases()):
                if isinstance(case, str):
                    budget.judge(case, _as_a_user(world))
                else:
                    budget.judge(case.name, problem_of(case, world, worst))
        finally:
            world.close()
    return budget.result(PROMISE)


def problem_of(case: Case, world: World, worst: dict[str, float]) -> str | None:
    found: list[dict[str, Any]] = []
    saved = None
    for part, size in enumerate(case.way):
        asked = {"first": part * EACH + 1, "last": (part + 1) * EACH, "saved": saved, "settings": world.settings(case)}
        made = world.steps(size, case.engine, **asked)
        saved = made["saved"] = _through_files(made["saved"], world.folder)
        found += made["steps"]
    for number, (step, expected) in enumerate(zip(found, world.straight(case), strict=True), start=1):
        if sorted(step["examples"]) != sorted(expected["named"]):
            return f"step {number} saw {sorted(step['examples'])} instead of {sorted(expected['named'])}"
        if step["gradients"].keys() != expected["gradients"].keys():
            return f"step {number}: other weights have gradients"
        pairs = ((step["gradients"][name], value) for name, value in expected["gradients"].items())
        distance = max(float((one - other).abs().max()) for one, other in pairs)
        worst[case.precision] = max(worst.get(case.precision, 0.0), distance)
        if not distance <= LIMITS[case.precision]:
            return f"gradients of step {number} are {distance:.1e} away"
    return None


def _through_files(saved: Sequence[dict[str, Tensor]], folder: Path) -> list[dict[str, Tensor]]:
    """As a checkpoint keeps them."""
    found = []
    for part, tensors in enumerate(saved):
        save_file(tensors, folder / f"{part}.safetensors")
        found.append(load_file(folder / f"{part}.safetensors"))
    return found


def steps(first: int, last: int, saved: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Steps of this process, from what was saved: per step the examples named, those that went through here, and gradients."""
    loop = gradients.make_loop(**settings, overrides=["train.optimizer={type: sgd, momentum: 0.9}", *CONSTANT])
    # Momentum gives the optimizer a state that has to travel; gradients are what it adds to it.
    if saved is not None:
        loop.engine.load_state(*saved)
    through: list[int] = []
    accumulate = loop.accumulate

    def noted(number: int, groups: list[list[int]], total_weight: float) -> Any:
        through.extend(example for group in groups for example in group)
        return accumulate(number, groups, total_weight)

    loop.accumulate = noted  # type: ignore[method-assign]
    found = []
    before, state = loop.engine.whole_parameters(), loop.engine.gather_state()
    for number in range(first, last + 1):
        through.clear()
        result = loop.step(number)
        assert result.applied
        after, now = loop.engine.whole_parameters(), loop.engine.gather_state()
        made = {}
        for name in after:
            moved = (before[name].double() - after[name].double()) / RATE
            made[name] = moved - 0.9 * state.get(f"momentum_buffer.{name}", torch.zeros(())).double()
        found.append({"named": list(result.examples), "examples": list(through), "gradients": made})
        before, state = after, now
    loop.engine.close()
    return {"steps": found, "saved": (before, state)}


def _as_a_user(world: World) -> str | None:
    """Two steps of one process, two of two, two of one, inside one Run; beside six of one process."""
    folder = world.folder / "user"
    folder.mkdir()
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Repeat {n} please."},
                {"role": "assistant", "content": f"{n} done"},
            ]
        }
        for n in range(30)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"name: others\nmodel: {{base: {world.place['model_dir']}, precision: fp32, attention: sdpa}}\nadapter: {{type: lora, rank: 4}}\n"
        "data: {sources: rows.jsonl, filters: {length: {min_characters: 1}, quality: null}, max_tokens: 128}\n"
        "train: {max_steps: 2, epochs: 100, batch_size: 6, micro_batch: 2, save_every: 2, evaluate_every: 2, keep: last, threads: 1,\n"
        "  learning_rate: 0.1, optimizer: {type: sgd}, schedule: {type: constant, warmup: 0}}\ntrack: []\n"
    )
    straight = api.train(recipe, overrides=["train.max_steps=6"], workspace=folder / "straight", quiet=True)
    run = api.train(recipe, workspace=folder / "work", quiet=True).run
    for size, last in ((2, 4), (1, 6)):
        overrides = [f"train.max_steps={last}", f"train.processes={size}"]
        allow = ("train.max_steps", "train.processes")
        run = api.train(
            recipe, overrides=overrides, workspace=folder / "work", quiet=True, continue_run=run.id, allow=allow
        ).run
    expected, found = _losses(straight.run), _losses(run)
    if sorted(found) != sorted(expected):
        return f"steps {sorted(found)} instead of {sorted(expected)}"
    if any(abs(found[step] - loss) > 1e-5 * loss for step, loss in expected.items()):
        return f"losses {found} instead of {expected}"
    pairs = []
    for one in (straight.run, run):
        (path,) = (one.outputs("train") or {})["model"].path.glob("*model.safetensors")
        pairs.append(load_file(path))
    distance = max(float((pairs[1][name] - weight).abs().max()) for name, weight in pairs[0].items())
    told = [event.value for event in run.events() if event.name == "train/processes_changed"]
    if not told:
        return "the change of processes was not told"
    return None if distance < 1e-5 else f"weights {distance:.1e} away"


def _losses(run: Any) -> dict[int, float]:
    return {event.step: event.value for event in run.events() if event.name == "train/loss"}


def mutations() -> dict[str, contextlib.AbstractContextManager[Any]]:
    """Ways to break the product in this process, which is the one process of each way; for each the check must fail."""
    from reliability.faults import replaced

    def half(examples: list[int], lengths: Any, rank: int, world_size: int) -> list[int]:
        return examples[: len(examples) // 2]

    def loses(self: Any, weights: dict[str, Tensor], state: Any) -> None:
        load(self, weights, None)

    from tunesmith.stages.train.engines import LocalEngine

    load = LocalEngine.load_state
    return {
        "half of the examples": replaced(loop_module, "share", half),
        "the optimizer's state is lost": replaced(LocalEngine, "load_state", loses),
    }
