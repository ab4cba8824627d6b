"""The Python API: the same words as the command line. Everything raises TunesmithError for what the user can mend."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import (
    FileError,
    Findings,
    GateError,
    InterruptedRun,
    QuestionError,
    RecipeError,
    StoppedError,
    TunesmithError,
    UsageError,
)
from tunesmith.recipe import Recipe, code_named, load_recipe
from tunesmith.recipe.keys import all_keys, did_you_mean, sections
from tunesmith.runs.run import Listener, Run, folder_of, list_runs

if TYPE_CHECKING:
    from tunesmith.planner import Plan
    from tunesmith.planner.hardware import Hardware
    from tunesmith.runner import Outcome
    from tunesmith.tuning import Result

WORKSPACE = "tunesmith-work"
BASE = "builtin:tunesmith-tiny"
RecipeLike = Recipe | Path | str
EXTRAS = {
    "prepare": ("daft", "orjson", "tokenizers", "transformers"),
    "train": ("torch", "transformers", "peft", "safetensors", "psutil"),
    "evaluate": ("torch", "transformers", "rouge_score"),
    "serve": ("fastapi", "uvicorn", "httpx", "openai", "accelerate"),
    "hub": ("huggingface_hub",),
    "qlora": ("bitsandbytes", "accelerate"),
    "tune": ("optuna",),
    "track": ("tensorboard", "wandb", "mlflow", "sqlalchemy", "alembic", "trackio"),
}
# What some recipes ask for by name: its distributions (any of them will do), and what brings it.
OPTIONAL = {
    "deepspeed": (("deepspeed",), "tunesmith[deepspeed]"),
    "bitsandbytes": (("bitsandbytes",), "tunesmith[qlora]"),
    "liger-kernel": (("liger-kernel",), "tunesmith[gpu]"),
    "optuna": (("optuna",), "tunesmith[tune]"),
    "tensorboard": (("tensorboard",), "tunesmith[track]"),
    "wandb": (("wandb",), "tunesmith[track]"),
    "mlflow": (("mlflow", "mlflow-skinny"), "tunesmith[track]"),
    "trackio": (("trackio",), "tunesmith[track]"),
    "huggingface_hub": (("huggingface_hub",), "tunesmith[hub]"),
    "flash-attn": (("flash-attn",), "flash-attn"),
    "vllm": (("vllm",), "vllm"),
}


# ------------------------------------------------------------------------------------------------------- the pipeline


def run(
    recipe: RecipeLike,
    *,
    overrides: Iterable[str] = (),
    workspace: Path | str = WORKSPACE,
    until: str = "serve",
    allow_code: bool = False,
    quiet: bool = False,
    listeners: Sequence[Listener] = (),
    on_stage: Callable[[str, Any], None] | None = None,
) -> Outcome:
    """Carry a recipe through its stages: prepare, train, evaluate, export, serve (started, proven, stopped); then report.

    What exists already is reused; the same call goes on after any interruption. `outcome.run` is the Run.
    quiet: no progress on the console, whatever the recipe's `track` says. listeners: get every event.
    on_stage: told (stage, "started"), then how it ended: "done", "reused", "held" by the gate, "stopped" on purpose or
    "failed".
    """
    from tunesmith import tracking
    from tunesmith.runner import execute

    spec = _recipe(recipe, overrides)
    allowed = _allowed(spec, allow_code)
    tracking.check(spec.track)
    names = tuple(name for name in spec.track.to if not (quiet and name == "console"))
    begun: list[Run] = []
    sinks: list[tracking.Sinks] = []

    def begin(run: Run) -> None:
        begun.append(run)
        sinks.append(tracking.Sinks(names, run))
        run.listeners.append(sinks[0])

    end = "failed"
    try:
        outcome = execute(
            spec,
            Path(workspace),
            until=until,
            allow_code=allowed,
            listeners=listeners,
            on_begin=begin,
            on_stage=on_stage,
        )
        if not outcome.did_nothing or not (outcome.run.path / "report.html").exists():
            report(outcome.run)
        end = "done"
    except TunesmithError as error:
        is_stop = isinstance(error, (InterruptedRun, StoppedError))
        end = "done" if isinstance(error, GateError) else "stopped" if is_stop else "failed"
        for run in begun:
            _report_what_there_is(run)
        raise
    finally:
        for opened in sinks:
            opened.close(end)
    if not sinks:
        tracking.catch_up(names, outcome.run)
    return outcome


def prepare(recipe: RecipeLike, **options: Any) -> Outcome:
    """Up to the Dataset: rows read, filtered, deduplicated, split and encoded, each accounted for."""
    return run(recipe, until="prepare", **options)


def train(recipe: RecipeLike, **options: Any) -> Outcome:
    """Up to the trained adapter or model."""
    return run(recipe, until="train", **options)


def evaluate(recipe: RecipeLike, **options: Any) -> Outcome:
    """Up to the comparison with the base and the gate's verdict."""
    return run(recipe, until="evaluate", **options)


def export(recipe: RecipeLike | Run, *, to: Path | str | None = None, **options: Any) -> Outcome:
    """Up to the exported files. to: also copy the merged model there, every hash checked.

    recipe: also a Run, its folder, its id, or "latest": then the recipe that it has, overrides and all.
    """
    recipe, options = _recipe_or_run(recipe, options)
    if to is None:
        return run(recipe, until="export", **options)
    from tunesmith.stages.export.delivery import deliver, refuse_full

    refuse_full(Path(to))  # before hours of work, not after
    outcome = run(recipe, until="export", **options)
    deliver(outcome.run, Path(to))
    return outcome


def tune(
    recipe: RecipeLike,
    *,
    overrides: Iterable[str] = (),
    workspace: Path | str = WORKSPACE,
    workers: int = 1,
    storage: str | None = None,
    out: Path | str | None = None,
    allow_code: bool = False,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Search the values that the recipe's section `tune` asks for; the same call goes on after any stop.

    workers: processes on this machine. storage: URL of a database shared with other machines; None: a file in the
    workspace. out: also write the best recipe there. say: takes lines of progress. `result.best` is the best trial,
    `result.files` names the page, the table and the best recipe.
    """
    from tunesmith import tracking
    from tunesmith.tuning import search

    spec = _recipe(recipe, overrides)
    tracking.check(spec.track)
    return search(
        spec,
        Path(workspace),
        workers=workers,
        storage=storage,
        allow_code=_allowed(spec, allow_code),
        say=say,
        out=Path(out) if out is not None else None,
    )


def serve(target: Run | Path | str, *, workspace: Path | str = WORKSPACE, **options: Any) -> None:
    """Keep an OpenAI-compatible endpoint for a finished Run, or for a model folder, until Ctrl-C or SIGTERM.

    options: host, port, token, overrides ("serve.key=value"), on_ready, on_phase (see stages.serve.run.keep).
    """
    from tunesmith.stages.serve.run import keep

    keep(_served(target, workspace), workspace=Path(workspace), **options)


def chat(target: Run | Path | str, *, workspace: Path | str = WORKSPACE, **options: Any) -> None:
    """Talk to a Run, a model folder, or the URL of an endpoint.

    options: token, message, system, model, temperature, top_p, max_tokens, seed.
    """
    from tunesmith.stages.serve.chat import chat as talk

    talk(target if "://" in str(target) else _served(target, workspace), workspace=Path(workspace), **options)


# ---------------------------------------------------------------------------------------------------- before training


def check(
    recipe: RecipeLike,
    *,
    overrides: Iterable[str] = (),
    workspace: Path | str = WORKSPACE,
    on_phase: Callable[[str], None] | None = None,
) -> Findings:
    """Everything that is wrong with a recipe, its model and its rows; nothing is trained or written.

    on_phase: told what is looked at.
    """
    from tunesmith.runner.check import check as look

    found = Findings()
    with found.gathering():
        return look(_recipe(recipe, overrides), Path(workspace), on_phase or (lambda phase: None))
    return found


def plan(recipe: RecipeLike, *, overrides: Iterable[str] = (), workspace: Path | str = WORKSPACE) -> Plan:
    """Predicted memory, time and disk, and the choices that follow, before anything is loaded.

    workspace: earlier trainings there have noted how fast this machine is; once the rows are prepared there, steps and times
    are in the plan too. Raises ModelError PLN-002 when it does not fit into memory, FileError RUN-023 when the workspace's disk
    cannot hold it.
    """
    from tunesmith import hub, planner
    from tunesmith.planner import hardware
    from tunesmith.runner import planning

    spec = _recipe(recipe, overrides)
    made = planner.plan(
        spec,
        hub.resolve_config(spec.model.base, spec.model.revision).config,
        statistics=planning.prepared_statistics(spec, Path(workspace)),
        hardware=hardware.detect(),
        workspace=Path(workspace),
    )
    planning.check_disk(made.to_json(), Path(workspace), planning.bytes_there(spec, Path(workspace)))
    return made


def init(
    *data: Path | str,
    out: Path | str = "recipe.yaml",
    base: str | None = None,
    force: bool = False,
    on_look: Callable[[Any], None] | None = None,
) -> Path:
    """Look at data (files, folders, globs) and write a commented recipe for it that runs as it is. Returns its path.

    base: the model to start from, whose tokenizer measures the rows. on_look: gets what was seen (stages.prepare.look.Look).
    Raises FileError CLI-001 when `out` exists and force is not set, QuestionError CLI-002 when no row can be used.
    """
    from tunesmith.recipe.write import commented_recipe
    from tunesmith.stages.prepare.look import look

    out, base = Path(out), base or BASE
    if out.exists() and not force:
        raise FileError(
            "CLI-001", f"{out} exists already", expected="a new file", fix="--out OTHER.yaml, or --force to replace it"
        )
    seen = look([str(path) for path in data], base)
    if not seen.files:
        path, why = seen.left_out[0]
        is_empty = all(why.startswith(("it is empty", "it holds no rows")) for _, why in seen.left_out)
        raise QuestionError(
            "CLI-002",
            f"there is no row in {path}: {why}" if is_empty else f"no row of {path} can be used: {why}",
            where=str(path),
            expected="rows of a known format, or columns with a question and an answer",
            fix="name a file with rows; was it written to the end?"
            if is_empty
            else "docs/data-formats.md shows the formats; name your columns by data.sources.fields in a recipe of your own",
        )
    if on_look is not None:
        on_look(seen)
    if Path(base).is_dir():
        base = os.path.relpath(Path(base).resolve(), out.resolve().parent)
        base = base if base.startswith(".") else f"./{base}"
    try:
        out.write_text(commented_recipe(seen, out, base), encoding="utf-8")
    except OSError as error:
        raise FileError(
            "CLI-009",
            f"{out} cannot be written: {error.strerror}",
            expected="a place that can be written to",
            fix="-o ELSEWHERE/recipe.yaml",
        ) from error
    return out


# ---------------------------------------------------------------------------------------------------- after training


def open_run(run: Path | str, *, workspace: Path | str = WORKSPACE) -> Run:
    """A Run by its folder, its id, the start of its id, or "latest"."""
    return Run.open(run, Path(workspace))


def runs(*, workspace: Path | str = WORKSPACE) -> list[Run]:
    """All Runs of a workspace, the latest last."""
    return list_runs(Path(workspace))


def report(run: Run | Path | str, *, workspace: Path | str = WORKSPACE) -> Path:
    """Write report.html and report.json of a Run from stored facts; returns the page's path."""
    from tunesmith.report import build

    return build(run if isinstance(run, Run) else open_run(run, workspace=workspace))


def explain(
    what: str | None = None,
    *,
    recipe: RecipeLike | None = None,
    run: Run | Path | str | None = None,
    workspace: Path | str = WORKSPACE,
) -> dict[str, Any]:
    """A recipe key (value, origin, unit, doc, owner), or what became of a row ("train.jsonl:48213", or a row id).

    run: whose ledger is asked about a row; None: the latest one that used the file, which is named under "run".
    Without a key, or for a section such as "train": {"keys": {key: doc}}.
    """
    known = all_keys()
    if what in known:
        key = known[what]
        spec = _recipe(recipe, ()) if recipe is not None else None
        return {
            "key": what,
            "value": _value(spec, what, key.default),
            "origin": spec.origin(what) if spec else "default",
            "default": key.default,
            "unit": key.unit,
            "expected": key.expected,
            "doc": key.doc,
            "owner": f"tunesmith.{key.owner}",
        }
    if what is None or what in sections():
        below = "" if what is None else f"{what}."
        return {"keys": {path: key.doc for path, key in known.items() if path.startswith(below)}}
    if ":" in what or what.isdigit():
        from tunesmith.runs.ledger import find, find_in_runs

        if isinstance(run, Run):
            return {**find(run, what), "run": run.id}
        asked = open_run(run or "latest", workspace=workspace)  # says so where there is no run at all
        return {**find(asked, what), "run": asked.id} if run else find_in_runs(runs(workspace=workspace), what)
    guess = did_you_mean(what)
    raise UsageError(
        "CLI-003",
        f"{what!r} is neither a recipe key nor a row",
        expected="train.learning_rate, or train.jsonl:48213",
        fix=f"tunesmith explain {guess}" if guess else "tunesmith explain FILE:LINE",
    )


def _value(spec: Recipe | None, key: str, default: Any) -> Any:
    """What a recipe says; a key of a variant that it does not use, or below a null, has no value there."""
    if spec is None:
        return default
    try:
        return spec.value(key)
    except (KeyError, TypeError, IndexError):
        return None


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors."""
    from tunesmith.recipe.schema import schema as made

    return made()


def doctor(
    *,
    workspace: Path | str = WORKSPACE,
    numerics: RecipeLike | None = None,
    overrides: Iterable[str] = (),
    on_check: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """What this machine has: versions, hardware, optional parts, extras that are missing, room on the disk.

    numerics: a recipe. Then instead: whether micro-batches, recomputation, a resume, processes, merging and evaluation batches
    change anything on its own model and some of its rows, and which attention lets a document see another; {"holds",
    "checks": [...]} and what they were made with. on_check: told what is compared now.
    """
    if numerics is not None:
        from tunesmith.runner.numerics import numerics as compare

        return compare(_recipe(numerics, overrides), Path(workspace), on_check=on_check or (lambda name: None))
    import shutil

    from tunesmith.planner import hardware
    from tunesmith.runs import durable

    machine = hardware.detect()
    folder = Path(workspace).absolute()
    while not folder.exists():
        folder = folder.parent
    extras = {name: [module for module in modules if find_spec(module) is None] for name, modules in EXTRAS.items()}
    names = ("torch", "transformers", "peft", "tokenizers", "safetensors", "daft", "openai")
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("tunesmith", *names)},
        "hardware": asdict(machine),
        "quantisation": _quantisation(),
        **_speed(machine, Path(workspace)),
        "free_disk_bytes": shutil.disk_usage(folder).free,
        "file_system": durable.file_system(folder),
        "optional": {
            name: {
                "version": next(filter(None, map(_version, distributions)), None),
                "install": f"pip install '{brought}'" if "[" in brought else f"pip install {brought}",
            }
            for name, (distributions, brought) in OPTIONAL.items()
        },
        "missing": {
            name: f"pip install 'tunesmith[{name}]'  (lacks {', '.join(modules)})"
            for name, modules in extras.items()
            if modules
        },
    }


def _speed(machine: Hardware, workspace: Path) -> dict[str, Any]:
    """What can make training faster here: attention, the compiler, Liger, fused optimizer, bf16, threads. No torch but for
    what only torch can tell."""
    from tunesmith.planner import attention, switches

    on_cpu = not machine.gpus
    capability = 0.0 if on_cpu else machine.gpus[0].capability
    trouble = switches.compiler_trouble(on_cpu=on_cpu)
    timed = {
        key: {"picked": attention.best(ms), "milliseconds": ms} for key, ms in attention.read(workspace).items() if ms
    }
    return {
        "attention": list(reversed(attention.installed(on_cpu=on_cpu, precision="bf16", capability=capability))),
        "attention_timed": timed,
        "compile": {"compiler": switches.compiler(on_cpu=on_cpu), "trouble": trouble},
        "liger": {
            "version": switches.package_version("liger-kernel"),
            "trouble": switches.liger_trouble(on_cpu=on_cpu),
        },
        **_torch_facts(on_cpu),
    }


def _torch_facts(on_cpu: bool) -> dict[str, Any]:
    """fused_optimizer: whether torch has AdamW's arithmetic in one pass for this device. bf16: native, emulated (slow)
    or absent. threads: that torch takes."""
    if find_spec("torch") is None:
        return {"fused_optimizer": False, "bf16": "absent", "threads": 0}
    import torch

    on_cpu = on_cpu or not torch.cuda.is_available()  # a GPU that this torch was not built for is none
    weight = torch.zeros(1, requires_grad=True, device="cpu" if on_cpu else "cuda")
    try:
        fused = bool(torch.optim.AdamW([weight], fused=True).defaults["fused"])
    except RuntimeError:
        fused = False
    if on_cpu:
        flags = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else ""
        bf16 = (
            "native" if _cpu_multiplies_bf16() else f"emulated ({flags or 'this processor'} has no bf16 multiplication)"
        )
    else:
        bf16 = "native" if torch.cuda.is_bf16_supported(including_emulation=False) else "absent"
    return {"fused_optimizer": fused, "bf16": bf16, "threads": torch.get_num_threads()}


def _cpu_multiplies_bf16() -> bool:
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    return any(flag in text for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _quantisation() -> dict[str, Any]:
    """Whether bitsandbytes is there and works on this machine's device. Imports torch where it is."""
    version = _version("bitsandbytes")
    if version is None or find_spec("torch") is None or find_spec("transformers") is None:
        return {"bitsandbytes": version, "device": None, "trouble": "not installed", "can": []}
    from tunesmith.modeling.load import pick_device
    from tunesmith.modeling.quantise import trouble

    device = pick_device()
    problem = trouble(device)
    can = ["nf4", "int8", "adamw_8bit", "lion", "lion_8bit", *(["paged_adamw_8bit"] if device.type == "cuda" else [])]
    return {"bitsandbytes": version, "device": device.type, "trouble": problem, "can": [] if problem else can}


# -------------------------------------------------------------------------------------------------------------- parts


def _recipe(recipe: RecipeLike, overrides: Iterable[str]) -> Recipe:
    if isinstance(recipe, Recipe):
        if tuple(overrides):
            raise RecipeError(
                "CLI-004",
                "overrides (--set) need a recipe file; a Recipe, or that of a run, stays as it is",
                expected="a path",
                fix="name the recipe file; in Python: load_recipe(path, overrides)",
            )
        return recipe
    return load_recipe(recipe, overrides)


def _recipe_or_run(target: RecipeLike | Run, options: dict[str, Any]) -> tuple[RecipeLike, dict[str, Any]]:
    """A Run that is named in a recipe's place stands for its own recipe, in its own workspace."""
    if isinstance(target, Recipe) or (not isinstance(target, Run) and _is_recipe_file(Path(target))):
        return target, options
    run = target if isinstance(target, Run) else open_run(target, workspace=options.get("workspace", WORKSPACE))
    return run.recipe, {**options, "workspace": run.workspace}


def _is_recipe_file(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") or path.is_file()


def _allowed(spec: Recipe, allow_code: bool) -> frozenset[str]:
    named = code_named(spec)
    if named and not allow_code:
        raise QuestionError(
            "CLI-005",
            f"the recipe names Python code: {', '.join(named)}",
            where="evaluate.metrics, train",
            expected="your word that it may run",
            fix="read it, then add --allow-code (allow_code=True)",
        )
    return frozenset(named)


def _served(target: Run | Path | str, workspace: Path | str) -> Run | Path:
    if isinstance(target, Run):
        return target
    path = Path(target)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return Run.open(folder_of(Path(workspace).absolute(), load_recipe(path)))
    return path if (path / "config.json").is_file() else open_run(target, workspace=workspace)


def _report_what_there_is(run: Run) -> None:
    """A run that stopped gets its report as well: where it stopped, and why."""
    try:
        report(run)
    except (TunesmithError, OSError) as error:  # the error that stopped the run matters more
        print(f"tunesmith: no report could be written: {error}", file=sys.stderr)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
