"""The command line: one file per verb, loaded when it is called, so that `--help` answers at once."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
from typing import Any

import click

from tunesmith import __version__
from tunesmith.errors import EXIT_BUG, TunesmithError, UsageError

VERBS = {
    "init": "Look at data and write a commented recipe.",
    "check": "Say everything that is wrong with a recipe and its rows; train nothing.",
    "plan": "Predict memory, time and disk before anything is loaded.",
    "prepare": "Rows to a Dataset: read, filtered, deduplicated, split, encoded, accounted for.",
    "train": "Train the adapter or the model; goes on where it was stopped.",
    "evaluate": "Compare base and tuned model on the same held-out items; judge the gate.",
    "export": "Write merged files and the adapter, proven equal to what was trained.",
    "serve": "Keep an OpenAI-compatible endpoint for a finished run.",
    "chat": "Talk to a run, a model folder or an endpoint.",
    "run": "All of it: raw rows to an evaluated, gated, exported and proven-to-serve model.",
    "tune": "Search the values that make the best model; goes on where it was stopped.",
    "runs": "List runs, or compare two.",
    "report": "Write a run's report again and name its file.",
    "explain": "Explain a recipe key, or what became of a row.",
    "doctor": "What this machine has and lacks.",
}

EPILOG = """\b
A first run:
  tunesmith init rows.jsonl          looks at the rows, writes recipe.yaml
  tunesmith check recipe.yaml        what is wrong, before anything is trained
  tunesmith run recipe.yaml          does it; the same command goes on after any stop
`tunesmith VERB --help` shows examples; without RECIPE a verb takes recipe.yaml of this folder.
\b
Exit statuses: 0 done, 2 usage, 3 the gate says hold, 64 recipe, 65 data or a question, 66 model, 70 our bug,
74 files or disk, 75 stopped (run again), 130/143 Ctrl-C/SIGTERM after saving.
"""


class Verbs(click.Group):
    """Loads a verb's file only when that verb is called."""

    def list_commands(self, context: click.Context | None) -> list[str]:  # type: ignore[override]
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        return importlib.import_module(f"tunesmith.cli.{name}").command

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
            near = difflib.get_close_matches(arguments[0], VERBS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" One of: {', '.join(VERBS)}."
            raise click.UsageError(f"there is no verb {arguments[0]!r}.{hint}", context)
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="tunesmith")
def group() -> None:
    """Fine-tune language models: raw rows in, a model you can trust in production out, by one recipe and one command."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A user's mistake is answered without a traceback; a bug of ours keeps its own and exits 70."""
    given = arguments if arguments is not None else sys.argv[1:]
    try:
        group.main(arguments, prog_name="tunesmith", standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is answered
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(UsageError.exit_status)
    except click.ClickException as error:
        _tell_usage(error, given)
        sys.exit(UsageError.exit_status)
    except TunesmithError as error:
        _tell(error, given)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as leaving:
        # click leaves with 1, which is no status of ours, where the reader has gone: `tunesmith ... | head`. That is no error.
        sys.exit(0 if leaving.code == 1 else leaving.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        sys.exit(0)
    except Exception:
        import traceback

        traceback.print_exc()
        click.echo(
            "tunesmith: this is a bug of ours. Please report it with the lines above; your data is untouched.", err=True
        )
        sys.exit(EXIT_BUG)


main.list_commands = group.list_commands  # type: ignore[attr-defined]


def _tell(error: TunesmithError, arguments: list[str]) -> None:
    if "--json" in arguments:
        click.echo(json.dumps(error.to_json(), indent=1, ensure_ascii=False))
    else:
        click.echo(str(error), err=True)


def _tell_usage(error: click.ClickException, arguments: list[str]) -> None:
    """What click finds wrong with the command line, in the form that was asked for."""
    if "--json" in arguments:
        _tell(UsageError("CLI-007", error.format_message(), fix="tunesmith VERB --help"), arguments)
    else:
        error.show()
