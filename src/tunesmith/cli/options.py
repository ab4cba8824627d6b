"""Options that several verbs share, and how a pipeline verb runs and tells what happened."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tunesmith.errors import GateError, UsageError
from tunesmith.units import format_gain, format_score, format_seconds

WORKSPACE = "tunesmith-work"
RECIPE = "recipe.yaml"
SHOWN_KEYS = 5  # of those that differ from the parent run


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")(function)


def recipe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE, --set, --json."""
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the recipe: --set train.epochs=2. Repeatable.",
    )(json_option(function))
    return click.argument("recipe", required=False, type=click.Path(path_type=Path), callback=_recipe_or_here)(function)


def workspace_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--workspace",
        type=click.Path(path_type=Path),
        default=WORKSPACE,
        show_default=True,
        help="Folder of runs and artifacts.",
    )(function)


def pipeline_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every verb that works on a run takes."""
    function = click.option(
        "--allow-code", is_flag=True, help="Run the Python code that the recipe names, such as your own metrics."
    )(function)
    function = click.option("--quiet", is_flag=True, help="Print the outcome only, no progress.")(function)
    return recipe_options(workspace_option(function))


def _recipe_or_here(context: click.Context, parameter: click.Parameter, given: Path | None) -> Path:
    """The recipe named, else recipe.yaml of this folder. Raises UsageError CLI-006 when there is neither."""
    if given is not None or context.resilient_parsing:
        return given or Path(RECIPE)
    if Path(RECIPE).is_file():
        return Path(RECIPE)
    others = sorted(path.name for path in Path().glob("*.y*ml"))
    verb = context.info_name
    raise UsageError(
        "CLI-006",
        f"no RECIPE is given, and {Path.cwd()} holds no {RECIPE}",
        expected=f"tunesmith {verb} RECIPE",
        fix=f"tunesmith {verb} {others[0]}" if others else f"tunesmith init ROWS.jsonl writes {RECIPE}",
    )


def show_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1, ensure_ascii=False, default=str))


def carry_out(
    verb: str,
    recipe: Path,
    overrides: tuple[str, ...],
    workspace: Path,
    allow_code: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Run a pipeline verb of the API and print what happened."""
    from tunesmith import api

    silent = quiet or as_json
    started = time.monotonic()
    try:
        outcome = getattr(api, verb)(
            recipe,
            overrides=overrides,
            workspace=workspace,
            allow_code=allow_code,
            quiet=silent,
            on_stage=None if silent else StageLines(),
            **options,
        )
    except GateError as held:
        if held.run_folder and not as_json:
            for line in held_lines(api.open_run(held.run_folder)):
                click.echo(line)
        raise
    facts = outcome_facts(outcome)
    if as_json:
        show_json(facts)
        return
    for line in outcome_lines(facts, time.monotonic() - started):
        click.echo(line)


class StageLines:
    """A line on standard error for each stage that ends; progress within a stage is the console tracker's."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.is_terminal = sys.stderr.isatty()

    def __call__(self, name: str, status: str) -> None:
        from tunesmith.units import format_seconds

        if status == "started":
            self.started = time.monotonic()
            return
        ending = {
            "done": f"done in {format_seconds(time.monotonic() - self.started)}",
            "reused": "reused: nothing it depends on has changed",
        }.get(status, status)
        # On a terminal the tracker leaves its line open, to be written over.
        erase = "\r\x1b[2K" if self.is_terminal else ""
        click.echo(f"{erase}  {name:<9} {ending}", err=True, color=self.is_terminal)


def outcome_facts(outcome: Any) -> dict[str, Any]:
    """What a program wants to know of a finished verb."""
    run = outcome.run
    scores = _scores(run)
    exported = (run.outputs("export") or {}).get("parity")
    parity = json.loads((exported.path / "parity.json").read_bytes()) if exported else {}
    return {
        "run": run.id,
        "folder": str(run.path),
        "workspace": str(run.workspace),
        "did_nothing": outcome.did_nothing,
        "stages": {
            stage.name: {"status": stage.status, "seconds": round(stage.seconds, 2)} for stage in outcome.stages
        },
        "scores": scores["parts"] if scores else None,
        "gate": scores["gate"] if scores else None,
        "quantised_base": parity.get("quantised_base"),
        "report": str(run.path / "report.html"),
        "parent": run.parent,
        "base_model": _base_model(run),
        "outputs": {
            stage.name: {name: str(artifact.path) for name, artifact in (run.outputs(stage.name) or {}).items()}
            for stage in outcome.stages
        },
    }


def held_lines(run: Any) -> list[str]:
    """What a run whose model is held has come to; why it is held stands in the error that follows."""
    scores = _scores(run)
    return [
        f"run {run.id}: held by the gate",
        *_score_lines(scores["parts"] if scores else None),
        f"report: {run.path / 'report.html'}",
    ]


def _scores(run: Any) -> dict[str, Any] | None:
    """Of its evaluation, once it has one."""
    evaluation = run.outputs("evaluate")
    return json.loads((evaluation["evaluation"].path / "evaluation.json").read_bytes()) if evaluation else None


def _score_lines(parts: Mapping[str, Any] | None) -> list[str]:
    return [
        f"  {part}, {metric}: {score_line(values)}"
        for part, found in (parts or {}).items()
        for metric, values in found["metrics"].items()
    ]


def _base_model(run: Any) -> dict[str, Any] | None:
    """The commit of a base from the hub; with "latest" when this attempt saw that its branch has moved."""
    moved = [e.value for e in run.events() if e.name == "run/base_model_moved" and e.attempt == run.attempt]
    return moved[-1] if moved else run.base_model


def quantised_line(found: dict[str, Any]) -> str:
    """What an export after training on a quantised base merged into, and how much that changed."""
    return (
        f"export: merged into {found['merged_into']}; beside what training saw: KL {found['kl_per_token']:.2g} nats per token, "
        f"{found['equal_answers']} of {found['answers']} greedy answers equal"
    )


def score_line(values: Mapping[str, Any]) -> str:
    """One metric of one part, for a person: base, tuned, paired gain."""
    base, tuned, gain = values["base"], values["tuned"], values["gain"]
    low, high = format_gain(gain["low"]), format_gain(gain["high"])
    note = "" if values["higher_is_better"] else "; lower is better"
    return (
        f"base {format_score(base['value'])} -> tuned {format_score(tuned['value'])}"
        f"  (gain {format_gain(gain['value'])}, {low} to {high}, n = {gain['n']}{note})"
    )


def outcome_lines(facts: dict[str, Any], seconds: float) -> list[str]:
    """The closing lines for a person."""
    lines = []
    if facts["did_nothing"]:
        lines.append(f"nothing to do: everything is up to date (run {facts['run']})")
    else:
        lines.append(f"run {facts['run']}: {', '.join(facts['stages'])} in {format_seconds(seconds)}")
    if facts["parent"] and not facts["did_nothing"]:
        lines += _parent_lines(facts["parent"])
    lines += _moved_lines(facts["base_model"])
    lines += _score_lines(facts["scores"])
    if facts["gate"]:
        lines.append(f"  gate: {facts['gate']['verdict']} - {facts['gate']['reason']}")
    if facts["quantised_base"]:
        lines.append(f"  {quantised_line(facts['quantised_base'])}")
    lines.append(f"report: {facts['report']}")
    if "serve" in facts["stages"]:
        elsewhere = Path(facts["workspace"]) != Path(WORKSPACE).absolute()
        run = facts["run"] + (f" --workspace {os.path.relpath(facts['workspace'])}" if elsewhere else "")
        lines += [
            f"next:   {program()} chat {run}      talk to it",
            f"        {program()} serve {run}     keep an OpenAI-compatible endpoint",
            f"        {program()} init YOUR_ROWS.jsonl    a recipe for data of your own",
        ]
    return lines


def _parent_lines(parent: Mapping[str, Any]) -> list[str]:
    """The run that this one came from, and a line for each key that differs."""
    from tunesmith.recipe import change_lines

    changed = change_lines(parent["changed"])
    if not changed:
        return [f"parent run {parent['run']}: nothing in the recipe differs"]
    more = [f"  and {len(changed) - SHOWN_KEYS} more"] if len(changed) > SHOWN_KEYS else []
    return [f"parent run {parent['run']}, since then:", *(f"  {line}" for line in changed[:SHOWN_KEYS]), *more]


def program() -> str:
    """What to type for tunesmith here: its name, or its place where the name is not on PATH (after make quickstart, say)."""
    beside = Path(sys.executable).with_name("tunesmith")
    if shutil.which("tunesmith") or not beside.exists():
        return "tunesmith"
    return os.path.relpath(beside) if Path.cwd() in beside.parents else str(beside)


def _moved_lines(base: dict[str, Any] | None) -> list[str]:
    if not base or "latest" not in base:
        return []
    return [
        f"base model: {base['revision'] or 'main'} of {base['base']} has moved to {base['latest'][:12]} since; "
        f"this run stays with {base['commit'][:12]}",
        f"            (--set model.revision={base['latest']} makes a run of the new one)",
    ]
