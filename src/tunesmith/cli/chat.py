"""`tunesmith chat`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import workspace_option


@click.command("chat")
@click.argument("target", type=str)
@workspace_option
@click.option("--message", help="Ask this alone, print the answer, leave.")
@click.option("--system", help="System turn in front of the conversation.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy; unset: the model's own setting.")
@click.option(
    "--token", envvar="TUNESMITH_TOKEN", help="Token of an endpoint given by URL; also read from TUNESMITH_TOKEN."
)
def command(
    target: str, workspace: Path, message: str | None, system: str | None, temperature: float | None, token: str | None
) -> None:
    """Talk to TARGET: a run (or "latest"), a model folder, or the URL of an endpoint.

    \b
    Examples:
      tunesmith chat latest
      tunesmith chat ./my-model --message "Where is my order?"   one answer, then leave
      tunesmith chat http://127.0.0.1:8000/v1                    an endpoint that runs already
    """
    from tunesmith import api

    api.chat(
        target,
        workspace=workspace,
        message=message,
        system=system,
        temperature=temperature,
        token=token,
        on_phase=lambda phase: click.echo(f"  {phase}", err=True),
    )
