"""What changed since the last attempt is told, and nothing of before is taken for what it no longer is.

A training is stopped after a checkpoint. Then one thing is changed, and the same command is given again:

- data, model files, own code, a stage's version: the change is listed by name, training begins anew, and the result is, bit for
  bit, that of a training that never saw the old ones;
- libraries and environment: the difference is listed, and training goes on from its checkpoint;
- recipe: a new Run names its parent and the key with both values; inside the old Run only what --allow names may differ, it
  takes effect at the next step, and all else is refused with every difference listed;
- and what changes nothing (a touched file, a moved folder) is not told.

`mutations` breaks the product in ways that the check has to see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_model import make_tiny_model

import tunesmith
from reliability.faults import bits, replaced
from reliability.frame import Budget
from tunesmith import api
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.runner import differences, environment
from tunesmith.runs.events import Event
from tunesmith.runs.run import Run, list_runs
from tunesmith.stages.prepare import externals

PROMISE = "Resume refuses to lie: changed data, model files, code, machine or recipe are listed by name"
RECIPE = """\
name: truth
model: {base: ./model, precision: fp32, attention: sdpa}
adapter: {type: lora, rank: 4, targets: [q_proj, v_proj]}
data:
  sources: [{path: rows}, {path: held_out.jsonl, split: validation}]
  split: {validation: 0.0}
  filters: {length: {min_characters: 1}, quality: null}
  max_tokens: 128
train: {max_steps: 6, epochs: 100, batch_size: 4, learning_rate: 1.0e-3, micro_batch: 2, evaluate_every: 3, save_every: 2, threads: 1,
  callbacks: [watch.py:watch]}
track: []
"""
STOPPED_AT = 4  # told when the next step after a checkpoint was


class Stopped(BaseException):
    """Passes every handler, as SIGKILL would."""


@dataclass(frozen=True)
class Change:
    """act: on the folder of recipe, rows and model. told: what the listing has to say, one of these words. is_content: what is
    made depends on it, so that training begins anew. context: in force while the command runs."""

    group: str
    name: str
    told: tuple[str, ...]
    act: Callable[[Path], None] = lambda folder: None
    is_content: bool = True
    context: Callable[[Path], contextlib.AbstractContextManager[Any]] = lambda folder: contextlib.nullcontext()
    overrides: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------------- changes


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        text = path.read_text()
        assert old in text, f"{name} holds no {old!r}"
        path.write_text(text.replace(old, new, 1))

    return act


def of_lines(change: Callable[[list[str]], list[str]], name: str = "rows/one.jsonl") -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return act


def same_size_and_time(folder: Path) -> None:
    path = folder / "rows" / "one.jsonl"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"number 3", b"number 8", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def of_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        weights = load_file(path)
        path.unlink()
        save_file(change(weights), path, {"format": "pt"})

    return act


def one_bit(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def two_shards(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, path.with_name(file), {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))


def of_json(name: str, **values: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "model" / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))

    return act


def distribution(name: str) -> Callable[[Path], contextlib.AbstractContextManager[Any]]:
    """Another version of a library, as far as its metadata says: a folder of its own in front of the path."""

    @contextlib.contextmanager
    def installed(folder: Path) -> Iterator[None]:
        front = folder / "site" / name
        place = front / f"{name.replace('-', '_')}-99.9.dist-info"
        place.mkdir(parents=True, exist_ok=True)
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.9\n")
        sys.path.insert(0, str(front))
        try:
            yield
        finally:
            sys.path.remove(str(front))

    return installed


def variable(name: str, value: str) -> Callable[[Path], contextlib.AbstractContextManager[Any]]:
    @contextlib.contextmanager
    def set_it(folder: Path) -> Iterator[None]:
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            os.environ.pop(name) if before is None else os.environ.update({name: before})

    return set_it


@contextlib.contextmanager
def one_core_less(folder: Path) -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:-1]) or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def edited_source(folder: Path) -> Iterator[None]:
    """A comment in tunesmith's own code, where no commit tells of it."""
    copy = folder / "site" / "src" / "tunesmith"
    shutil.copytree(Path(tunesmith.__path__[0]), copy, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    path = copy / "stages" / "train" / "loop.py"
    path.write_text(path.read_text() + "# edited\n")
    with replaced(environment, "tunesmith", SimpleNamespace(__path__=[str(copy)])):
        yield


def stage_version(stage: str) -> Callable[[Path], contextlib.AbstractContextManager[Any]]:
    def raised(folder: Path) -> contextlib.AbstractContextManager[Any]:
        package = importlib.import_module(f"tunesmith.stages.{stage}")
        return replaced(package, "INFO", dataclasses.replace(package.INFO, version=package.INFO.version + 1))

    return raised


def told_machine(**facts: Any) -> Callable[[Path], contextlib.AbstractContextManager[Any]]:
    """What this machine cannot be made into: another processor, system or GPU."""

    def another(folder: Path) -> contextlib.AbstractContextManager[Any]:
        describe = environment.describe
        return replaced(environment, "describe", lambda workspace: {**describe(workspace), **facts})

    return another


def all_changes() -> Iterator[Change]:
    rows = ("rows",)
    data = {
        "a word of a row": of_lines(lambda lines: [lines[0].replace("number", "figure"), *lines[1:]]),
        "a row more": of_lines(lambda lines: [*lines, lines[0].replace("number 0", "number 99")]),
        "a row less": of_lines(lambda lines: lines[:-1]),
        "two rows change places": of_lines(lambda lines: [lines[1], lines[0], *lines[2:]]),
        "a digit, with size and time kept": same_size_and_time,
        "a turn that is no longer learned": of_lines(lambda lines: [lines[0].replace('"assistant"', '"assistant", "learn": false', 1), *lines[1:]]),
        "line ends": lambda folder: (folder / "rows/one.jsonl").write_bytes((folder / "rows/one.jsonl").read_bytes().replace(b"\n", b"\r\n")),
        "a file more": lambda folder: shutil.copyfile(folder / "held_out.jsonl", folder / "rows" / "two.jsonl"),
    }  # fmt: skip
    for name, act in data.items():
        yield Change("data", name, rows, act)
    yield Change(
        "data",
        "a validation row",
        ("held_out.jsonl",),
        of_lines(lambda lines: [lines[0].replace("number", "figure"), *lines[1:]], "held_out.jsonl"),
    )
    model = {
        "a bit of a weight": ("model.safetensors", one_bit),
        "a weight": ("model.safetensors", of_weights(lambda w: {n: (t * 1.01 if "norm" in n else t) for n, t in w.items()})),
        "weights in bf16": ("model.safetensors", of_weights(lambda w: {n: t.bfloat16() for n, t in w.items()})),
        "weights in two shards": ("model-1.safetensors", two_shards),
        "config.json": ("config.json", of_json("config.json", rms_norm_eps=1e-5)),
        "generation_config.json": ("generation_config.json", of_json("generation_config.json", temperature=0.7)),
        "the chat template": ("chat_template.jinja", edit("model/chat_template.jinja", "<|end|>", "<|end|> ")),
        "the tokenizer's merges": ("tokenizer.json", edit("model/tokenizer.json", '"normalizer": null', '"normalizer": {"type": "Lowercase"}')),
        "a special token": ("tokenizer_config.json", of_json("tokenizer_config.json", eos_token="<|user|>")),
        "a file more": ("notes.json", of_json("notes.json", new=True)),
    }  # fmt: skip
    for name, (file, act) in model.items():
        yield Change("model files", name, (file,), act)
    for name in (
        "torch",
        "transformers",
        "peft",
        "tokenizers",
        "safetensors",
        "numpy",
        "tunesmith",
        "daft",
        "deepspeed",
    ):
        yield Change("code and libraries", name, (name,), is_content=False, context=distribution(name))
    yield Change("code and libraries", "tunesmith's source", ("source",), is_content=False, context=edited_source)
    yield Change("code and libraries", "the version of train", ("version",), context=stage_version("train"))
    yield Change("code and libraries", "the version of prepare", ("version",), context=stage_version("prepare"))
    yield Change("code and libraries", "own code", ("code",), edit("watch.py", "return None", "return  None"))
    yield Change("code and libraries", "Python", ("python",), is_content=False, context=told_machine(python="3.99.0"))
    variables = {
        "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVIDIA_TF32_OVERRIDE": "0",
        "CUDA_VISIBLE_DEVICES": "1",
    }  # fmt: skip
    for name, value in variables.items():
        words = (name, "threads") if name == "OMP_NUM_THREADS" else (name,)
        yield Change("environment", name, words, is_content=False, context=variable(name, value))
    if len(os.sched_getaffinity(0)) > 1:
        yield Change("environment", "cores", ("cores",), is_content=False, context=one_core_less)
    yield Change("environment", "processor", ("cpu",), is_content=False, context=told_machine(cpu="another"))
    yield Change("environment", "GPUs", ("gpus",), is_content=False, context=told_machine(gpus=["NVIDIA H100"]))
    yield Change("environment", "system", ("platform",), is_content=False, context=told_machine(platform="another"))
    yield Change("environment", "commit", ("commit",), is_content=False, context=told_machine(commit="another"))
    recipe = (
        "seed=18", "train.learning_rate=5.0e-4", "train.batch_size=5", "train.max_steps=7", "train.micro_batch=1", "train.threads=2",
        "train.optimizer={type: sgd}", "train.schedule={type: constant}", "adapter.rank=3", "model.precision=bf16",
        "data.max_tokens=64", "train.max_grad_norm=0.1", "train.save_every=3", "train.packing=off",
    )  # fmt: skip
    for override in recipe:
        yield Change("recipe", override, (override.partition("=")[0],), overrides=(override,))


@dataclass(frozen=True)
class Continued:
    """--continue with changed keys. allow: what --allow names. refused: the code of the error, or "" where it goes on."""

    name: str
    overrides: tuple[str, ...]
    allow: tuple[str, ...]
    refused: str
    rate: float | None = None  # of the next step, where it goes on

    @property
    def group(self) -> str:
        return "continue"


CONTINUED = (
    Continued("the rate, allowed", ("train.learning_rate=5.0e-4",), ("train.learning_rate",), "", 0.5),
    Continued("the rate, its section allowed", ("train.learning_rate=2.0e-3",), ("train",), "", 2.0),
    Continued("more steps, allowed", ("train.max_steps=9",), ("train.max_steps",), ""),
    Continued("clipping, allowed", ("train.max_grad_norm=0.01",), ("train.max_grad_norm",), ""),
    Continued("rhythm of saves, allowed", ("train.save_every=1",), ("train.save_every",), ""),
    Continued("nothing changed", (), (), ""),
    Continued("the rate, not allowed", ("train.learning_rate=5.0e-4",), (), "RUN-040"),
    Continued("two keys, one allowed", ("train.learning_rate=5.0e-4", "train.max_grad_norm=0.5"), ("train.learning_rate",), "RUN-040"),
    Continued("the seed, though allowed", ("seed=18",), ("seed",), "RUN-041"),
    Continued("the batch, though allowed", ("train.batch_size=5",), ("train.batch_size",), "RUN-041"),
    Continued("the rank, though allowed", ("adapter.rank=3",), ("adapter",), "RUN-041"),
    Continued("rows, though allowed", ("data.max_tokens=64",), ("data",), "RUN-041"),
    Continued("the optimizer's kind, though allowed", ("train.optimizer={type: sgd}",), ("train",), "RUN-041"),
)  # fmt: skip
UNCHANGED = {
    "nothing": lambda folder: None,
    "rows touched": lambda folder: os.utime(folder / "rows/one.jsonl", (1, 1)),
    "model touched": lambda folder: os.utime(folder / "model/model.safetensors", (1, 1)),
    "rows written anew with the same bytes": lambda folder: (folder / "rows/one.jsonl").write_bytes((folder / "rows/one.jsonl").read_bytes()),
    "a word of the README beside the model": lambda folder: (folder / "model/README.md").write_text("another word"),
}  # fmt: skip


def all_cases() -> Iterator[Change | Continued | str]:
    yield from all_changes()
    yield from CONTINUED
    yield from UNCHANGED


# ------------------------------------------------------------------------------------------------------------------- cases


@dataclass
class Attempt:
    """What a command told and made."""

    heard: list[Event] = field(default_factory=list)
    console: str = ""
    run: Run | None = None
    error: TunesmithError | None = None

    def values(self, name: str) -> list[Any]:
        return [event.value for event in self.heard if event.name == name]

    @property
    def listed(self) -> str:
        """Every difference that was told: by events, to the person who waits, by the new Run of its parent."""
        names = ("stage/changed", "environment/changed", "run/continued", "train/threads_changed")
        told = [list(value) if isinstance(value, dict) else value for name in names for value in self.values(name)]
        parent = self.run.parent if self.run else None
        return json.dumps([told, sorted(parent["changed"]) if parent else []])


class World:
    """A folder with rows, model and recipe, and a workspace whose training was stopped after its second checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.start, self.place = folder / "start", folder / "place"  # one place for all: a recipe's paths are whole
        (self.place / "rows").mkdir(parents=True)
        make_tiny_model(self.place / "model")
        write_rows(self.place / "rows" / "one.jsonl", range(40))
        write_rows(self.place / "held_out.jsonl", range(50, 56))
        (self.place / "watch.py").write_text("def watch(facts):\n    return None\n")
        (self.place / "recipe.yaml").write_text(RECIPE)
        attempt = train(self.place, stop=True)
        self.place.rename(self.start)
        assert attempt.values("checkpoint/saved")[-1] == STOPPED_AT, attempt.values("checkpoint/saved")

    @contextlib.contextmanager
    def copy(self) -> Iterator[Path]:
        shutil.copytree(self.start, self.place)
        externals._hash_once.cache_clear()  # each command is a process of its own
        try:
            yield self.place
        finally:
            shutil.rmtree(self.place)


def write_rows(path: Path, numbers: range) -> None:
    with path.open("w") as file:
        for number in numbers:
            asked = {"role": "user", "content": f"Repeat the number {number} and say done." * (1 + number % 3)}
            file.write(json.dumps({"messages": [asked, {"role": "assistant", "content": f"{number} done"}]}) + "\n")


def train(folder: Path, workspace: str = "work", *, stop: bool = False, **options: Any) -> Attempt:
    """`tunesmith train recipe.yaml` there. stop: in the step after the second checkpoint, as by SIGKILL."""
    from tunesmith.tracking.console import Console

    attempt, text = Attempt(), io.StringIO()
    console = Console(every_s=1e9)

    def listen(event: Event) -> None:
        attempt.heard.append(event)
        with contextlib.redirect_stderr(text):
            console(event)
        if stop and event.name == "train/loss" and event.step == STOPPED_AT + 1:
            raise Stopped

    with contextlib.chdir(folder):
        try:
            outcome = api.train(
                "recipe.yaml", workspace=folder / workspace, allow_code=True, listeners=[listen], quiet=True, **options
            )
            attempt.run = outcome.run
        except Stopped:
            pass
        except TunesmithError as error:
            attempt.error = error
    attempt.console = text.getvalue()
    return attempt


def check(budget: Budget, cases: Callable[[], Iterable[Change | Continued | str]] = all_cases) -> dict[str, Any]:
    kinds: dict[str, int] = budget.notes.setdefault("kinds", {})
    with tempfile.TemporaryDirectory(prefix="truth-") as folder:
        world = World(Path(folder))
        for case in budget.cases(cases()):
            group, name = ("unchanged", case) if isinstance(case, str) else (case.group, case.name)
            kinds[group] = kinds.get(group, 0) + 1
            with world.copy() as place:
                if isinstance(case, str):
                    problem = _unchanged(UNCHANGED[case], place)
                else:
                    problem = _changed(case, place) if isinstance(case, Change) else _continued(case, place)
            budget.judge(f"{group}: {name}", problem)
    return budget.result(PROMISE)


def _changed(case: Change, place: Path) -> str | None:
    case.act(place)
    externals._hash_once.cache_clear()
    with case.context(place):
        attempt = train(place, overrides=case.overrides)
        if attempt.error or attempt.run is None:
            return str(attempt.error)
        if not any(word in attempt.listed for word in case.told):
            return f"not listed: {attempt.listed}"
        if case.group != "recipe" and not any(word in attempt.console for word in case.told):
            return f"not said to the person who waits: {attempt.console!r}"
        resumed = attempt.values("train/resumed")
        if not case.is_content:
            return None if resumed == [STOPPED_AT] else f"did not go on from step {STOPPED_AT}: {resumed}"
        if resumed:
            return f"went on from step {resumed}, which belongs to what was there before"
        made = attempt.run.outputs("train")
        fresh = train(place, "another", overrides=case.overrides)
        other = fresh.run.outputs("train") if fresh.run else None
        if not made or not other or bits(made["model"]) != bits(other["model"]):
            return "another result than without the earlier attempt"
    if case.group == "recipe":
        return _names_its_parent(case, place, attempt.run)
    return None


def _names_its_parent(case: Change, place: Path, run: Run) -> str | None:
    first, second = sorted(list_runs(place / "work"), key=lambda one: one.parent is not None)
    if run.id != second.id or second.parent is None or second.parent["run"] != first.id:
        return f"no new run that names its parent: {second.parent}"
    key = case.told[0]
    pairs = [pair for name, pair in second.parent["changed"].items() if name.startswith(key)]
    return None if pairs and all(old != new for old, new in pairs) else f"{second.parent['changed']}"


def _continued(case: Continued, place: Path) -> str | None:
    (before,) = list_runs(place / "work")
    options = {"continue_run": before.id, "allow": case.allow}
    attempt = train(place, overrides=case.overrides, **options)
    if case.refused:
        if not isinstance(attempt.error, RecipeError) or attempt.error.code != case.refused:
            return f"{attempt.error} instead of {case.refused}"
        keys = {override.partition("=")[0] for override in case.overrides} - set(
            case.allow if case.refused == "RUN-040" else ()
        )
        problem = None if all(key in str(attempt.error) for key in keys) else f"not all listed: {attempt.error}"
        return problem or (None if not before.continued else "the refused recipe was taken up")
    if attempt.error or attempt.run is None:
        return str(attempt.error)
    if [run.id for run in list_runs(place / "work")] != [before.id]:
        return "another run was made"
    if attempt.values("train/resumed") != [STOPPED_AT]:
        return f"resumed {attempt.values('train/resumed')}"
    rates = {event.step: event.value for event in attempt.heard if event.name == "train/learning_rate"}
    straight = train(place, "straight")
    usual = {event.step: event.value for event in straight.heard if event.name == "train/learning_rate"}
    if min(rates) != STOPPED_AT + 1:
        return f"went on with step {min(rates)}"
    if case.rate and abs(rates[STOPPED_AT + 1] / usual[STOPPED_AT + 1] - case.rate) > 1e-9:
        return f"rate {rates[STOPPED_AT + 1]} at once, usually {usual[STOPPED_AT + 1]}"
    changed = [override.partition("=")[0] for override in case.overrides]
    if sorted(key for told in attempt.values("run/continued") for key in told) != sorted(changed):
        return f"told {attempt.values('run/continued')}"
    again = train(place, overrides=case.overrides, **options)  # the same command does nothing
    if again.error or again.values("train/loss"):
        return f"the same command once more: {again.error or 'trained again'}"
    if not case.overrides:
        made, other = attempt.run.outputs("train"), straight.run.outputs("train") if straight.run else None
        return None if made and other and bits(made["model"]) == bits(other["model"]) else "another result"
    past = train(place)  # the recipe that the run was made for
    return None if past.error and past.error.code == "RUN-042" else f"the recipe of before: {past.error}"


def _unchanged(act: Callable[[Path], Any], place: Path) -> str | None:
    act(place)
    attempt = train(place)
    if attempt.error or attempt.run is None:
        return str(attempt.error)
    if attempt.listed != "[[], []]":
        return f"told of a change that is none: {attempt.listed}"
    return None if attempt.values("train/resumed") == [STOPPED_AT] else "did not go on"


def mutations() -> dict[str, contextlib.AbstractContextManager[Any]]:
    """Ways to break the product; for each of them the check must fail somewhere."""
    return {
        "no difference is found between ingredients": replaced(differences, "between", lambda old, new: {}),
        "no difference is found between environments": replaced(environment, "differences", lambda old, new: {}),
    }
