"""`tunesmith report`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import json_option, show_json, workspace_option


@click.command("report")
@click.argument("run", default="latest")
@workspace_option
@json_option
def command(run: str, workspace: Path, as_json: bool) -> None:
    """Write report.html and report.json of RUN (default: latest) from stored facts, and print where.

    \b
    Examples:
      tunesmith report
      tunesmith report support-desk-1f0c --json
    """
    from tunesmith import api

    page = api.report(run, workspace=workspace)
    if as_json:
        show_json({"run": page.parent.name, "page": str(page), "facts": str(page.with_suffix(".json"))})
    else:
        click.echo(page)
