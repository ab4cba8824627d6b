"""Options that several verbs share, and how a pipeline verb runs and tells what happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

WORKSPACE = "tunesmith-work"


def recipe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE, --set, --json."""
    function = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")(function)
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key, for example --set train.epochs=2. Repeatable.",
    )(function)
    return click.argument("recipe", type=click.Path(path_type=Path))(function)


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
        "--allow-code", is_flag=True, help="Run the Python code that the recipe names (custom metrics)."
    )(function)
    function = click.option("--quiet", is_flag=True, help="Print the outcome only.")(function)
    return recipe_options(workspace_option(function))


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
    if silent:
        overrides = (*overrides,)
    started = time.monotonic()

    def on_stage(name: str, status: str) -> None:
        if not silent and status in ("done", "reused"):
            click.echo(
                f"  {name:<9} {'done' if status == 'done' else 'reused: nothing it depends on has changed'}", err=True
            )

    outcome = getattr(api, verb)(
        recipe, overrides=overrides, workspace=workspace, allow_code=allow_code, on_stage=on_stage, **options
    )
    facts = outcome_facts(outcome)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    for line in outcome_lines(facts, time.monotonic() - started, recipe):
        click.echo(line)


def outcome_facts(outcome: Any) -> dict[str, Any]:
    """What a program wants to know of a finished verb."""
    run = outcome.run
    evaluation = run.outputs("evaluate")
    scores = json.loads((evaluation["evaluation"].path / "evaluation.json").read_bytes()) if evaluation else None
    return {
        "run": run.id,
        "folder": str(run.path),
        "did_nothing": outcome.did_nothing,
        "stages": {
            stage.name: {"status": stage.status, "seconds": round(stage.seconds, 2)} for stage in outcome.stages
        },
        "scores": scores["parts"] if scores else None,
        "gate": scores["gate"] if scores else None,
        "report": str(run.path / "report.html"),
        "parent": run.parent,
        "outputs": {
            stage.name: {name: str(artifact.path) for name, artifact in (run.outputs(stage.name) or {}).items()}
            for stage in outcome.stages
        },
    }


def outcome_lines(facts: dict[str, Any], seconds: float, recipe: Path) -> list[str]:
    """The closing lines for a person."""
    from tunesmith.units import format_seconds

    lines = []
    if facts["did_nothing"]:
        lines.append(f"nothing to do: everything is up to date (run {facts['run']})")
    else:
        lines.append(f"run {facts['run']}: {', '.join(facts['stages'])} in {format_seconds(seconds)}")
    if facts["parent"] and not facts["did_nothing"]:
        changed = "; ".join(
            f"{key}: {old} -> {new}" for key, (old, new) in list(facts["parent"]["changed"].items())[:5]
        )
        lines.append(f"parent run {facts['parent']['run']} ({changed or 'nothing in the recipe differs'})")
    for part, found in (facts["scores"] or {}).items():
        for metric, values in found["metrics"].items():
            base, tuned, gain = values["base"], values["tuned"], values["gain"]
            lines.append(
                f"  {part}, {metric}: base {base['value']:.3f} -> tuned {tuned['value']:.3f}"
                f"  (gain {gain['value']:+.3f}, {gain['low']:+.3f} to {gain['high']:+.3f}, n = {found['n']})"
            )
    if facts["gate"]:
        lines.append(f"  gate: {facts['gate']['verdict']} - {facts['gate']['reason']}")
    lines.append(f"report: {facts['report']}")
    if "serve" in facts["stages"]:
        lines += [
            f"next:   tunesmith chat {facts['run']}      talk to it",
            f"        tunesmith serve {facts['run']}     keep an OpenAI-compatible endpoint",
            "        tunesmith init YOUR_ROWS.jsonl    a recipe for data of your own",
        ]
    return lines
