"""The Python API: the same words as the command line. Everything raises TunesmithError for what the user can mend."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import FileError, Problem, QuestionError, RecipeError, TunesmithError, UsageError
from tunesmith.recipe import Recipe, code_named, load_recipe
from tunesmith.recipe.keys import all_keys, did_you_mean, sections
from tunesmith.runs.run import Listener, Run, folder_of, list_runs

if TYPE_CHECKING:
    from tunesmith.planner import Plan
    from tunesmith.runner import Outcome

WORKSPACE = "tunesmith-work"
RecipeLike = Recipe | Path | str
EXTRAS = {
    "prepare": ("daft", "orjson", "tokenizers", "transformers"),
    "train": ("torch", "transformers", "peft", "safetensors", "psutil"),
    "evaluate": ("torch", "transformers", "rouge_score"),
    "serve": ("fastapi", "uvicorn", "httpx", "openai", "accelerate"),
    "hub": ("huggingface_hub",),
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
    on_stage: told (stage, "started" | "done" | "reused" | "failed").
    """
    from tunesmith import tracking
    from tunesmith.runner import execute

    spec = _recipe(recipe, overrides)
    sinks = tuple(name for name in spec.track if not (quiet and name == "console"))
    begun: list[Run] = []

    def begin(run: Run) -> None:
        begun.append(run)
        run.listeners.extend(tracking.open_sinks(sinks, run))

    try:
        outcome = execute(
            spec,
            Path(workspace),
            until=until,
            allow_code=_allowed(spec, allow_code),
            listeners=listeners,
            on_begin=begin,
            on_stage=on_stage,
        )
    except TunesmithError:
        for run in begun:
            _report_what_there_is(run)
        raise
    if not outcome.did_nothing or not (outcome.run.path / "report.html").exists():
        report(outcome.run)
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


def export(recipe: RecipeLike, *, to: Path | str | None = None, **options: Any) -> Outcome:
    """Up to the exported files. to: also copy the merged model there, every hash checked."""
    outcome = run(recipe, until="export", **options)
    if to is not None:
        from tunesmith.stages.export.run import export_to

        export_to(outcome.run, Path(to))
    return outcome


def serve(target: Run | Path | str, *, workspace: Path | str = WORKSPACE, **options: Any) -> None:
    """Keep an OpenAI-compatible endpoint for a finished Run, or for a model folder, until Ctrl-C or SIGTERM.

    options: host, port, token, on_ready, on_phase (see stages.serve.run.keep).
    """
    from tunesmith.stages.serve.run import keep

    keep(_served(target, workspace), **options)


def chat(target: Run | Path | str, *, workspace: Path | str = WORKSPACE, **options: Any) -> None:
    """Talk to a Run, a model folder, or the URL of an endpoint. options: token, message, system, temperature."""
    from tunesmith.stages.serve.chat import chat as talk

    talk(target if "://" in str(target) else _served(target, workspace), **options)


# ---------------------------------------------------------------------------------------------------- before training


@dataclass
class Check:
    """What `check` found. problems: all of them, recipe first; facts: what is fine, for people to read."""

    problems: list[Problem] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    exit_status: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": not self.problems,
            "exit_status": self.exit_status,
            "facts": self.facts,
            "problems": [asdict(p) for p in self.problems],
        }


def check(recipe: RecipeLike, *, overrides: Iterable[str] = ()) -> Check:
    """Everything that is wrong with a recipe, its model and its rows; nothing is trained or written."""
    found = Check()
    try:
        spec = _recipe(recipe, overrides)
    except TunesmithError as error:
        return Check(list(error.problems), [], error.exit_status)
    found.facts.append("the recipe is fine")
    for part in (_check_model, _check_rows, _check_code):
        try:
            part(spec, found)
        except TunesmithError as error:
            found.problems += error.problems
            found.exit_status = found.exit_status or error.exit_status
    return found


def _check_model(spec: Recipe, found: Check) -> None:
    from tunesmith import hub

    files = hub.resolve(spec.model.base, spec.model.revision)
    found.facts.append(f"the base model {files.source} is there ({files.config.get('model_type')})")
    made = plan(spec)
    peak = made.to_json()["figures"].get("peak_memory")
    if peak:
        from tunesmith.units import format_bytes

        found.facts.append(
            f"training needs about {format_bytes(peak['value'])} ({format_bytes(peak['low'])} to {format_bytes(peak['high'])})"
        )


def _check_rows(spec: Recipe, found: Check) -> None:
    from tunesmith.stages.prepare.filters import filter_rows
    from tunesmith.stages.prepare.rows import read_all

    rows = list(read_all(spec, lambda count: None))
    bad = [row for row in rows if row.problem]
    formats: dict[str, int] = {}
    for row in rows:
        if row.format:
            formats[row.format] = formats.get(row.format, 0) + 1
    shown = ", ".join(f"{name}: {count:,}" for name, count in formats.items())
    found.facts.append(f"{len(rows):,} rows read ({shown or 'none recognised'})")
    for row in bad[:20]:
        assert row.problem is not None
        found.problems.append(
            Problem(row.problem["code"], row.place, row.problem["what"], row.problem["expected"], row.problem["fix"])
        )
    if bad and spec.data.on_bad_row == "stop":
        found.exit_status = 65
    elif bad:
        found.facts.append(f"{len(bad):,} bad rows would be set apart (data.on_bad_row: quarantine)")
        found.problems = [
            problem for problem in found.problems if problem.where.partition(":")[0] not in {row.file for row in bad}
        ]
    drops = filter_rows(rows, spec)
    found.facts.append(f"the filters would drop {len(drops):,} rows")


def _check_code(spec: Recipe, found: Check) -> None:
    for name in code_named(spec):
        found.facts.append(f"it names Python code, which runs only with --allow-code: {name}")


def plan(recipe: RecipeLike, *, overrides: Iterable[str] = ()) -> Plan:
    """Predicted memory, time and disk, and the choices that follow, before anything is loaded."""
    from tunesmith import hub, planner
    from tunesmith.planner import hardware

    spec = _recipe(recipe, overrides)
    return planner.plan(
        spec,
        hub.resolve_config(spec.model.base, spec.model.revision).config,
        statistics=None,
        hardware=hardware.detect(),
    )


def init(data: Path | str, *, out: Path | str = "recipe.yaml", base: str | None = None, force: bool = False) -> Path:
    """Look at data and write a commented recipe for it. Raises FileError CLI-001 when `out` exists and force is not set."""
    from tunesmith.recipe.write import commented_recipe
    from tunesmith.stages.prepare.look import look

    out = Path(out)
    if out.exists() and not force:
        raise FileError(
            "CLI-001", f"{out} exists already", expected="a new file", fix="--out OTHER.yaml, or --force to replace it"
        )
    seen = look(str(data))
    if not seen.formats:
        first = seen.first_problems[0] if seen.first_problems else {"what": "no rows", "fix": "check the path"}
        raise QuestionError(
            "CLI-002",
            f"no row of {data} is recognised: {first['what']}",
            where=str(data),
            expected="a known row format",
            fix=first["fix"],
        )
    relative = os.path.relpath(Path(data).resolve(), out.resolve().parent)
    out.write_text(commented_recipe(seen, relative, base))
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
        from tunesmith.runs.ledger import find

        return find(run if isinstance(run, Run) else open_run(run or "latest", workspace=workspace), what)
    guess = did_you_mean(what)
    raise UsageError(
        "CLI-003",
        f"{what!r} is neither a recipe key nor a row",
        expected="train.learning_rate, or train.jsonl:48213",
        fix=f"tunesmith explain {guess}" if guess else "tunesmith explain FILE:LINE --run latest",
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


def doctor(*, workspace: Path | str = WORKSPACE) -> dict[str, Any]:
    """What this machine has: versions, hardware, extras that are missing, room on the disk."""
    import shutil

    from tunesmith.planner import hardware

    folder = Path(workspace).absolute()
    while not folder.exists():
        folder = folder.parent
    extras = {name: [module for module in modules if find_spec(module) is None] for name, modules in EXTRAS.items()}
    names = ("torch", "transformers", "peft", "tokenizers", "safetensors", "daft", "openai")
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("tunesmith", *names)},
        "hardware": asdict(hardware.detect()),
        "attention": ["eager", "sdpa", *(["flash_attention_2"] if find_spec("flash_attn") else [])],
        "free_disk_bytes": shutil.disk_usage(folder).free,
        "missing": {
            name: f"pip install 'tunesmith[{name}]'  (lacks {', '.join(modules)})"
            for name, modules in extras.items()
            if modules
        },
    }


# -------------------------------------------------------------------------------------------------------------- parts


def _recipe(recipe: RecipeLike, overrides: Iterable[str]) -> Recipe:
    if isinstance(recipe, Recipe):
        if tuple(overrides):
            raise RecipeError(
                "CLI-004",
                "overrides need a recipe file, not a Recipe",
                expected="a path",
                fix="load_recipe(path, overrides)",
            )
        return recipe
    return load_recipe(recipe, overrides)


def _allowed(spec: Recipe, allow_code: bool) -> frozenset[str]:
    named = code_named(spec)
    if named and not allow_code:
        raise QuestionError(
            "CLI-005",
            f"the recipe names Python code: {', '.join(named)}",
            where="evaluate.metrics",
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
