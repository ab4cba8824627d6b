"""A chat in the terminal, through an endpoint: one that runs already, or a private one for a Run or a model folder."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from openai import APIConnectionError, APIError, AuthenticationError, OpenAI

from tunesmith.errors import ModelError, UsageError
from tunesmith.runs.run import Run

HELP = "/reset forgets the conversation, /exit leaves (so does Ctrl-D); Ctrl-C stops an answer."
TOKEN_VARIABLE = "TUNESMITH_TOKEN"


def chat(
    target: Run | Path | str,
    *,
    token: str | None = None,
    message: str | None = None,
    system: str | None = None,
    temperature: float | None = None,
    output: TextIO | None = None,
    read_line: Callable[[str], str] = input,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> None:
    """Talk to a model: answers appear as they are made, and the conversation so far goes along with each question.

    target: a Run, a model folder, or the URL of an endpoint (then token, or the variable TUNESMITH_TOKEN, is needed).
    message: ask this alone and return. temperature: None leaves it to the model's generation config, 0 is greedy.
    Raises: UsageError SRV-011 (wrong token, nobody there), ModelError SRV-012 (the endpoint refused), and those of Endpoint.
    """
    output = output or sys.stdout
    with client_for(target, token, on_phase) as client:
        conversation = Conversation(client, system, temperature)
        if message is not None:
            conversation.ask(message, output)
            return
        print(HELP, file=output)
        while (line := _next_line(read_line)) is not None:
            if line == "/exit":
                return
            if line == "/reset":
                conversation.reset()
                print("(forgotten)", file=output)
            elif line:
                _answer(conversation, line, output)


class Conversation:
    """The turns so far; a question that failed or was stopped is not kept."""

    def __init__(self, client: OpenAI, system: str | None, temperature: float | None) -> None:
        self._client, self._temperature = client, temperature
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict[str, str]] = list(self._system)
        with _told():
            self.model = client.models.list().data[0].id

    def reset(self) -> None:
        self.turns = list(self._system)

    def ask(self, question: str, output: TextIO) -> str:
        """The answer, written to output as it comes. Raises: UsageError SRV-011, ModelError SRV-012."""
        turns: list[Any] = [*self.turns, {"role": "user", "content": question}]
        extra = {} if self._temperature is None else {"temperature": self._temperature}
        pieces: list[str] = []
        with (
            _told(),
            self._client.chat.completions.create(model=self.model, messages=turns, stream=True, **extra) as stream,
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


def printable(text: str) -> str:
    """The text without what a terminal would obey: control characters other than newline and tab become visible."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def client_for(target: Run | Path | str, token: str | None, on_phase: Callable[[str], None]) -> Iterator[OpenAI]:
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

    from tunesmith.stages.serve.endpoint import Endpoint, open_for
    from tunesmith.stages.serve.run import served_model

    model, name, serve, _ = served_model(target)
    with tempfile.TemporaryDirectory(prefix="tunesmith-chat-", ignore_cleanup_errors=True) as folder:
        private = open_for(serve, host="127.0.0.1", port=0)
        log_path = Path(folder) / "engine.log"
        with (
            Endpoint(model, name, private, log_path=log_path, on_phase=on_phase) as endpoint,
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
