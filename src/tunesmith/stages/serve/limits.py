"""What one request may cost: bounds checked before anything is parsed or computed, and the refusals they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.recipe.tree import Serve

MAX_HEADER_BYTES = 16_384
MAX_CONNECTIONS = 256
MAX_MESSAGES = 1_024
MAX_STRING_CHARACTERS = 1_000_000
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
BODY_SECONDS = 30.0
REQUEST_SECONDS = 600.0
DRAIN_SECONDS = 60.0


@dataclass(frozen=True)
class Limits:
    """Bounds of one endpoint: `context` is the model's, the rest the recipe's `serve.*`.

    context: tokens, prompt and answer together. max_new_tokens: bound and default of max_tokens.
    body_bytes: largest body. queue: requests in flight before 429.
    """

    context: int
    max_new_tokens: int
    body_bytes: int
    queue: int

    @classmethod
    def of(cls, serve: Serve, context: int) -> Limits:
        return cls(context, serve.max_new_tokens, serve.max_body_bytes, serve.queue)

    def answer_tokens(self, prompt_tokens: int, asked: int | None) -> int:
        """Tokens the answer may have: what was asked, clamped to the recipe's bound and to what the context leaves.

        A large max_tokens is clamped, not refused: clients send it by habit. A prompt that leaves no room is refused.
        Raises: Refusal 400 context_length_exceeded with both numbers.
        """
        room = self.context - prompt_tokens
        if room < 1:
            raise Refusal(
                400,
                f"The prompt has {prompt_tokens} tokens; this model's context is {self.context} tokens, prompt and "
                "answer together. Send a shorter prompt.",
                param="messages",
                code="context_length_exceeded",
            )
        return min(self.max_new_tokens if asked is None else asked, self.max_new_tokens, room)


class Refusal(Exception):
    """An answer that is an error: HTTP status and an OpenAI error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return headers if self.retry_after_s is None else {**headers, "Retry-After": str(self.retry_after_s)}


def context_tokens(config: dict[str, Any]) -> int:
    """Positions the model can attend to, from config.json. Raises: ModelError SRV-005 when it does not say."""
    context = text_config(config).get("max_position_embeddings")
    if context:
        return int(context)
    raise ModelError(
        "SRV-005",
        "config.json of the model does not say how long its context is.",
        expected="max_position_embeddings",
        fix="add max_position_embeddings to the model's config.json",
    )


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json about text; models that also see or hear keep it apart."""
    return config.get("text_config") or config
