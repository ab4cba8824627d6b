"""A chat in the terminal, through an endpoint: one that runs already, or a private one for a Run or a model folder."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from openai import APIConnectionError, APIError, AuthenticationError, OpenAI

from tunesmith.errors import ModelError, UsageError
from tunesmith.runs.run import Run

TOKEN_VARIABLE = "TUNESMITH_TOKEN"
HELP = "/settings shows how answers are made, /reset forgets the conversation, /help lists all, /exit leaves; Ctrl-C stops an answer."
COMMANDS = """\
/settings           how answers are made
/temperature 0.2    0 is greedy; without a number: the endpoint's default
/top-p 0.9          the smallest set of tokens that together are this probable
/max-tokens 200     longest answer
/seed 7             the same draw each time
/model NAME         another model of this endpoint, the conversation goes on
/reset              forget the conversation
/exit               leave (so does Ctrl-D)"""


@dataclass(frozen=True)
class Sampling:
    """What a question asks for; None leaves it to the endpoint. temperature: 0 is greedy."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


def chat(
    target: Run | Path | str,
    *,
    token: str | None = None,
    message: str | None = None,
    system: str | None = None,
    model: str | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    workspace: Path | None = None,
    output: TextIO | None = None,
    read_line: Callable[[str], str] = input,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> None:
    """Talk to a model: answers appear as they are made, and the conversation so far goes along with each question.

    target: a Run, a model folder, or the URL of an endpoint (then token, or the variable TUNESMITH_TOKEN, is needed).
    message: ask this alone and return. model: one of the endpoint's; None: its first. temperature (0 is greedy), top_p,
    max_tokens, seed: None leaves them to the endpoint.
    Raises: UsageError SRV-011 (wrong token, nobody there), ModelError SRV-012 (the endpoint refused), and those of Endpoint.
    """
    output = output or sys.stdout
    with client_for(target, token, on_phase, workspace) as client:
        conversation = Conversation(client, system, Sampling(temperature, top_p, max_tokens, seed), model)
        if message is not None:
            conversation.ask(message, output)
            return
        print(HELP, file=output)
        while (line := _next_line(read_line)) is not None:
            if line == "/exit":
                return
            if line.startswith("/"):
                print(obey(conversation, line), file=output)
            elif line:
                _answer(conversation, line, output)


class Conversation:
    """The turns so far; a question that failed or was stopped is not kept.

    sampling: what each question asks for; model: the name that it asks.
    """

    def __init__(self, client: OpenAI, system: str | None, sampling: Sampling, model: str | None = None) -> None:
        self._client, self.sampling = client, sampling
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict[str, str]] = list(self._system)
        with _told():
            self.models = {card.id: card.model_extra or {} for card in client.models.list().data}
        self.model = next(iter(self.models))
        if model is not None:
            self.choose(model)

    def choose(self, model: str) -> None:
        """Raises: ModelError SRV-012 for a model that the endpoint does not have."""
        if model not in self.models:
            raise ModelError(
                "SRV-012",
                f"The endpoint refused: there is no model {model!r}.",
                expected=f"one of: {', '.join(self.models)}",
                fix=f"/model {next(iter(self.models))}",
            )
        self.model = model

    def reset(self) -> None:
        self.turns = list(self._system)

    def settings(self) -> str:
        """How answers are made, a line for each setting, with its origin."""
        card = self.models[self.model]
        defaults = {**card.get("defaults", {}), "max_tokens": card.get("max_tokens")}
        lines = [f"model        {self.model} (of {', '.join(self.models)})"]
        for name, value in vars(self.sampling).items():
            asked = f"{defaults.get(name, 'none')} (default)" if value is None else f"{value}"
            lines.append(f"{name.replace('_', '-'):<12} {asked}")
        return "\n".join(
            [*lines, f"context      {card.get('context', 'unknown')} tokens, conversation and answer together"]
        )

    def ask(self, question: str, output: TextIO) -> str:
        """The answer, written to output as it comes. Raises: UsageError SRV-011, ModelError SRV-012."""
        turns: list[Any] = [*self.turns, {"role": "user", "content": question}]
        pieces: list[str] = []
        create = self._client.chat.completions.create
        with (
            _told(),
            create(model=self.model, messages=turns, stream=True, **self.sampling.fields()) as stream,
        ):
            for chunk in stream:
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if piece:
                    pieces.append(piece)
                    print(printable(piece), end="", flush=True, file=output)
        print(file=output)
        answer = "".join(pieces)
        self.turns = [*turns, {"role": "assistant", "content": answer}]
        return answer


def obey(conversation: Conversation, line: str) -> str:
    """Carry out a line that begins with a slash; what to tell the user about it."""
    word, _, value = line.partition(" ")
    value = value.strip()
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "/temperature": ("temperature", float),
        "/top-p": ("top_p", float),
        "/max-tokens": ("max_tokens", int),
        "/seed": ("seed", int),
    }
    if word == "/reset":
        conversation.reset()
        return "(forgotten)"
    if word == "/settings":
        return conversation.settings()
    if word == "/model" and value:
        try:
            conversation.choose(value)
        except ModelError as problem:
            return str(problem)
        return f"(now {value})"
    if word in readers:
        name, read = readers[word]
        try:
            wanted = read(value) if value else None
        except ValueError:
            return f"(a number is expected: {word} 1; without one: the default)"
        conversation.sampling = replace(conversation.sampling, **{name: wanted})
        return f"({name.replace('_', '-')}: {'default' if wanted is None else wanted})"
    return COMMANDS


def printable(text: str) -> str:
    """The text without what a terminal would obey: control characters other than newline and tab become visible."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def client_for(
    target: Run | Path | str, token: str | None, on_phase: Callable[[str], None], workspace: Path | None = None
) -> Iterator[OpenAI]:
    """An openai client for a URL, or for a private endpoint that lives as long as the block."""
    if isinstance(target, str):
        token = token or os.environ.get(TOKEN_VARIABLE)
        if not token:
            raise _unreachable(f"{target} needs a token and none was given.")
        url = target.rstrip("/")
        with OpenAI(base_url=url if url.endswith("/v1") else f"{url}/v1", api_key=token, max_retries=1) as client:
            yield client
        return
    import tempfile

    from tunesmith.stages.serve.endpoint import Endpoint
    from tunesmith.stages.serve.run import deployment_of

    private = deployment_of(target, workspace=workspace, host="127.0.0.1", port=0)
    with tempfile.TemporaryDirectory(prefix="tunesmith-chat-", ignore_cleanup_errors=True) as folder:
        log_path = Path(folder) / "engine.log"
        with (
            Endpoint(private, log_path=log_path, on_phase=on_phase) as endpoint,
            OpenAI(base_url=endpoint.url, api_key=endpoint.token, max_retries=0) as client,
        ):
            yield client


def _answer(conversation: Conversation, line: str, output: TextIO) -> None:
    try:
        conversation.ask(line, output)
    except KeyboardInterrupt:
        print("\n(stopped; not kept)", file=output)
    except ModelError as problem:  # one refused question does not end the conversation
        print(problem, file=output)


def _next_line(read_line: Callable[[str], str]) -> str | None:
    try:
        return read_line("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the client as ours."""
    try:
        yield
    except AuthenticationError as problem:
        raise _unreachable("The endpoint does not accept this token.") from problem
    except APIConnectionError as problem:
        raise _unreachable(f"Nobody answers at {problem.request.url}.") from problem
    except APIError as problem:
        raise ModelError(
            "SRV-012", f"The endpoint refused: {problem.message}", fix="/reset shortens the conversation"
        ) from problem


def _unreachable(what: str) -> UsageError:
    return UsageError(
        "SRV-011", what, expected="the URL and token that `tunesmith serve` printed",
        fix=f"--token TOKEN, or the environment variable {TOKEN_VARIABLE}; or name a run instead of a URL",
    )  # fmt: skip
