"""`tunesmith runs`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import json_option, show_json, workspace_option
from tunesmith.units import format_score


@click.command("runs")
@click.argument("compare", nargs=-1, type=str)
@workspace_option
@json_option
def command(compare: tuple[str, ...], workspace: Path, as_json: bool) -> None:
    """List the runs of a workspace; with two names, compare them: differing keys and scores side by side.

    \b
    Examples:
      tunesmith runs
      tunesmith runs support-desk-1f0c support-desk-9e21   what differs, and what it gained
    """
    from tunesmith import api

    if len(compare) not in (0, 2):
        raise click.UsageError("name no run, or two to compare")
    if compare:
        found: Any = _compared(*(api.open_run(name, workspace=workspace) for name in compare))
    else:
        found = [_facts(run) for run in api.runs(workspace=workspace)]
    if as_json:
        show_json(found)
    elif compare:
        _print_comparison(found)
    else:
        _print_list(found, workspace)


def _facts(run: Any) -> dict[str, Any]:
    finished = [stage for stage in ("prepare", "train", "evaluate", "export", "serve") if run.outputs(stage)]
    evaluation = run.outputs("evaluate")
    scores = json.loads((evaluation["evaluation"].path / "evaluation.json").read_bytes()) if evaluation else None
    return {
        "run": run.id,
        "finished": finished,
        "last_active": run.last_active,
        "parent": run.parent,
        "gate": scores["gate"]["verdict"] if scores else None,
        "scores": {
            part: {name: values["tuned"]["value"] for name, values in found["metrics"].items()}
            for part, found in (scores["parts"] if scores else {}).items()
        },
    }


def _compared(first: Any, second: Any) -> dict[str, Any]:
    from tunesmith.recipe import difference

    return {"runs": [_facts(first), _facts(second)], "changed": difference(first.recipe, second.recipe)}


def _print_list(found: list[dict[str, Any]], workspace: Path) -> None:
    if not found:
        click.echo(f"no runs in {workspace}; tunesmith run RECIPE makes one")
    for facts in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["last_active"]))
        stages = facts["finished"][-1] if facts["finished"] else "nothing finished"
        scores = "; ".join(
            f"{part}: {', '.join(f'{n} {format_score(v)}' for n, v in values.items())}"
            for part, values in facts["scores"].items()
        )
        click.echo(f"{facts['run']:<32} {when}  {stages:<9} {facts['gate'] or '':<5} {scores}")


def _print_comparison(found: dict[str, Any]) -> None:
    first, second = found["runs"]
    click.echo(f"{first['run']}  ->  {second['run']}")
    from tunesmith.recipe import change_lines

    for line in change_lines(found["changed"]):
        click.echo(f"  {line}")
    if not found["changed"]:
        click.echo("  the recipes are equal")
    for part in dict.fromkeys([*first["scores"], *second["scores"]]):
        for name in dict.fromkeys([*first["scores"].get(part, {}), *second["scores"].get(part, {})]):
            old, new = (side["scores"].get(part, {}).get(name) for side in (first, second))
            click.echo(f"  {part}, {name}: {format_score(old)} -> {format_score(new)}")
