"""`tunesmith serve`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import workspace_option


@click.command("serve")
@click.argument("target", type=str)
@workspace_option
@click.option("--host", help="Address to listen on; anything but loopback needs a token of at least 32 characters.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one.")
@click.option(
    "--token",
    envvar="TUNESMITH_TOKEN",
    help="What clients must send; made and shown when not given. Also read from TUNESMITH_TOKEN.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of serve: --set serve.temperature=0.2. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line when it is ready, for programs.")
def command(
    target: str,
    workspace: Path,
    host: str | None,
    port: int | None,
    token: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Keep an OpenAI-compatible endpoint for TARGET: a run (or "latest"), its recipe, or a model folder. Ctrl-C ends it.

    \b
    Examples:
      tunesmith serve latest
      tunesmith serve ./my-model --port 0 --json   the line names url and token
      tunesmith serve latest --set serve.compile=true --set serve.quantisation=nf4
    """
    from tunesmith import api

    def ready(endpoint: Any, token_file: Path | None) -> None:
        if as_json:
            told = {"url": endpoint.url, "model": endpoint.name, "token": None if token else endpoint.token}
            click.echo(json.dumps({**told, "token_file": token_file and str(token_file), "pid": os.getpid()}))
            return
        click.echo(f"serving {endpoint.name} at {endpoint.url}")
        click.echo(f"token:  {endpoint.token}" if token is None else "token:  the one you gave")
        click.echo(f'try:    curl {endpoint.url}/models -H "Authorization: Bearer $TOKEN"')
        click.echo("Ctrl-C finishes what is in flight and ends it")

    api.serve(
        target,
        workspace=workspace,
        host=host,
        port=port,
        token=token,
        overrides=overrides,
        on_ready=ready,
        on_phase=lambda phase: None if as_json else click.echo(f"  {phase}", err=True),
    )
