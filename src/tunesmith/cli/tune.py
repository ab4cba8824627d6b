"""`tunesmith tune`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import recipe_options, show_json, workspace_option


@click.command("tune")
@recipe_options
@workspace_option
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.option(
    "--storage",
    metavar="URL",
    envvar="TUNESMITH_STORAGE",
    help="Database shared with other machines; a URL with a password goes into TUNESMITH_STORAGE.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the best recipe to this file.")
@click.option("--allow-code", is_flag=True, help="Run the Python code that the recipe names, such as your own metrics.")
@click.option("--quiet", is_flag=True, help="Print the outcome only, no progress.")
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    workspace: Path,
    workers: int,
    storage: str | None,
    out: Path | None,
    allow_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Search the values of RECIPE that make the best model: what is searched, how, and for how long stands in its section
    `tune`. Stop it at any moment: the same command goes on. It ends with a table, a page and the best recipe.

    \b
    Examples:
      tunesmith tune recipe.yaml
      tunesmith tune recipe.yaml --set tune.trials=30 --workers 2
      tunesmith tune recipe.yaml --set tune.space.train.epochs=default   and nothing else
      tunesmith tune recipe.yaml --storage postgresql://USER@HOST/NAME   the same on each machine
    """
    from tunesmith import api

    say = None if quiet or as_json else lambda line: click.echo(f"  {line}", err=True)
    result = api.tune(
        recipe,
        overrides=overrides,
        workspace=workspace,
        workers=workers,
        storage=storage,
        out=out,
        allow_code=allow_code,
        say=say,
    )
    if as_json:
        show_json(result.to_json())
        return
    from tunesmith.tuning.results import table

    for line in table(result):
        click.echo(line)
    if result.running:
        click.echo(f"{result.running} unfinished: at work elsewhere, or saved until the same command goes on")
    click.echo(f"page: {result.files['page']}")
    if result.best:
        click.echo(
            f"best: {result.metric.replace('_', ' ')} {result.best['value']:.6g} in trial {result.best['number']}"
        )
        click.echo(f"next: tunesmith run {out or result.files['best']} --workspace {workspace}")
