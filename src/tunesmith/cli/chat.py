"""`tunesmith chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import workspace_option


@click.command("chat")
@click.argument("target", type=str)
@workspace_option
@click.option("--message", help="Ask this alone, print the answer, leave.")
@click.option("--system", help="System turn in front of the conversation.")
@click.option("--model", help="One of several models of the endpoint; unset: its first.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), help="0 is greedy; unset: the endpoint's (serve.temperature)."
)
@click.option("--top-p", type=click.FloatRange(0, 1), help="Unset: the endpoint's (serve.top_p).")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer; unset: serve.max_new_tokens.")
@click.option("--seed", type=click.IntRange(0), help="The same draw each time.")
@click.option(
    "--token", envvar="TUNESMITH_TOKEN", help="Token of an endpoint given by URL; also read from TUNESMITH_TOKEN."
)
def command(target: str, workspace: Path, **options: Any) -> None:
    """Talk to TARGET: a run (or "latest"), a model folder, or the URL of an endpoint.

    \b
    Examples:
      tunesmith chat latest
      tunesmith chat ./my-model --message "Where is my order?"   one answer, then leave
      tunesmith chat http://127.0.0.1:8000/v1                    an endpoint that runs already
      tunesmith chat latest --temperature 0                      greedy, as in evaluation
    """
    from tunesmith import api

    api.chat(target, workspace=workspace, on_phase=lambda phase: click.echo(f"  {phase}", err=True), **options)
