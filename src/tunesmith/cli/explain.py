"""`tunesmith explain`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import RECIPE, json_option, show_json, workspace_option


@click.command("explain")
@click.argument("what", required=False)
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--run", default="latest", show_default=True, help="The run whose ledger is asked about a row.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, for editors.")
@workspace_option
@json_option
def command(what: str | None, recipe: Path | None, run: str, schema: bool, workspace: Path, as_json: bool) -> None:
    """Explain a recipe key (with RECIPE: its value and where it came from), a section of keys, or what became of a row.

    \b
    Examples:
      tunesmith explain                                    every key, a line each
      tunesmith explain train                              the keys of a section
      tunesmith explain train.learning_rate recipe.yaml    a key, and its value in a recipe (recipe.yaml of the folder if not named)
      tunesmith explain train.jsonl:48213 --run latest     line 48213 of a file of rows
      tunesmith explain --schema > recipe.schema.json      completion and checks in an editor
    """
    from tunesmith import api

    if schema:
        show_json(api.schema())
        return
    if recipe is None and Path(RECIPE).is_file():  # as every verb does
        recipe = Path(RECIPE)
    found = api.explain(what, recipe=recipe, run=run, workspace=workspace)
    if as_json:
        show_json(found)
    elif "keys" in found:
        _print_keys(found["keys"])
    else:
        for name, value in found.items():
            if value not in (None, "", {}):
                click.echo(f"{name:>12}: {value}")


def _print_keys(keys: dict[str, str]) -> None:
    width = max(map(len, keys))
    for path, doc in keys.items():
        click.echo(f"{path:<{width}}  {doc}")
