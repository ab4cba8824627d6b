"""`tunesmith report`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import workspace_option


@click.command("report")
@click.argument("run", default="latest")
@workspace_option
def command(run: str, workspace: Path) -> None:
    """Write report.html and report.json of RUN (default: latest) from stored facts, and print where."""
    from tunesmith import api

    click.echo(api.report(run, workspace=workspace))
