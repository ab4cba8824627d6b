"""`tunesmith init`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("init")
@click.argument("data", type=str)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default="recipe.yaml",
    show_default=True,
    help="The recipe to write.",
)
@click.option("--base", help="Base model: a folder, or owner/name on the hub.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(data: str, out: Path, base: str | None, force: bool) -> None:
    """Look at DATA (a file, folder or glob) and write a commented recipe for it."""
    from tunesmith import api

    written = api.init(data, out=out, base=base, force=force)
    click.echo(f"wrote {written}")
    click.echo(f"next:   tunesmith check {written}")
    click.echo(f"        tunesmith run {written}")
