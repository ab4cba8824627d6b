"""OpenAI's protocol: a request body becomes an Ask, an answer becomes bodies and chunks.

A field that this server cannot honour is refused by name; one that changes nothing about the answer is accepted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.recipe.tree import Serve
from tunesmith.stages.serve.limits import MAX_MESSAGES, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_STRING_CHARACTERS, Refusal
from tunesmith.text.example import ROLES

# Accepted and without effect on the answer.
BOOKKEEPING = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
}
# Accepted only at the value that changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "tool_choice": ("none",),
    "functions": ([],), "function_call": ("none",), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "audio": (), "prediction": (), "reasoning_effort": (), "verbosity": (), "web_search_options": (),
}  # fmt: skip
READ = {
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop",
    "stream", "stream_options", "seed", "return_token_ids",
}  # fmt: skip
TEMPLATE_FIELDS = ("chat_template", "chat_template_kwargs")

# Below it, scores divided by the temperature leave float32: the highest is all that is left of them anyway.
NEARLY_GREEDY = 1e-4
LARGEST_SEED = 2**63 - 1

Turn = dict[str, str]


@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing. temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int

    @classmethod
    def of(
        cls, serve: Serve, vocabulary: int, generation: dict[str, Any] | None = None, asked: Collection[str] = ()
    ) -> Defaults:
        """The recipe's; for a model folder that samples, its authors' (generation_config.json) where nobody asked otherwise.

        asked: keys of `serve` that the user wrote.
        """
        own = generation if generation and generation.get("do_sample") else None
        temperature, top_p, top_k = serve.temperature, serve.top_p, vocabulary
        if own is not None:
            if "temperature" not in asked:
                temperature = 1.0 if own.get("temperature") is None else float(own["temperature"])
            if "top_p" not in asked:
                top_p = float(own.get("top_p") or 1.0)
            top_k = int(own.get("top_k") or vocabulary)
        return cls(temperature, top_p, top_k)

    def to_json(self) -> dict[str, float | int]:
        return asdict(self)


@dataclass(frozen=True)
class Ask:
    """A request that passed all checks. Exactly one of messages, text and ids is set; max_tokens None means the default.

    model: the name that was asked for. seed: what is drawn follows from it; None: from the engine's stream.
    """

    model: str
    messages: tuple[Turn, ...] | None
    text: str | None
    ids: tuple[int, ...] | None
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    return_token_ids: bool


def parse(
    raw: bytes, kind: Literal["chat", "text"], models: Collection[str], vocabulary: int, defaults: Defaults
) -> Ask:
    """The body of /v1/chat/completions (`chat`) or /v1/completions (`text`) as an Ask. Raises: Refusal 400 or 404."""
    body = _json_object(raw)
    _check_fields(body, kind)
    model = _model(body, models)
    messages, text, ids = None, None, None
    if kind == "chat":
        messages = _messages(body.get("messages"))
    else:
        text, ids = _prompt(body.get("prompt"), vocabulary)
    temperature = _number(body, "temperature", 0, 2, defaults.temperature)
    seed = _integer(body, "seed", 0, None)
    if seed is not None and seed > LARGEST_SEED:
        raise _bad("seed", f"seed is {seed}; expected a whole number from 0 to {LARGEST_SEED}.")
    field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _bad("stream_options", "stream_options must be an object.")
    return Ask(
        model=model,
        messages=messages,
        text=text,
        ids=ids,
        max_tokens=_integer(body, field, 1, None),
        temperature=0.0 if temperature < NEARLY_GREEDY else temperature,
        top_p=_number(body, "top_p", 0, 1, defaults.top_p),
        top_k=min(_integer(body, "top_k", 1, defaults.top_k) or defaults.top_k, vocabulary),
        seed=seed,
        stops=_stops(body.get("stop")),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        return_token_ids=_flag(body, "return_token_ids"),
    )


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        raise Refusal(400, f"The body is not JSON: {problem}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refusal(400, f"The body must be a JSON object, not {type(body).__name__}.", code="invalid_json")
    return body


def _check_fields(body: dict[str, Any], kind: str) -> None:
    for field in TEMPLATE_FIELDS:
        if field in body:
            raise _bad(
                field, f"{field} is refused: prompts are laid out by the template that the model was trained with."
            )
    unread = "prompt" if kind == "chat" else "messages"
    for field, value in body.items():
        if field in NEUTRAL:
            if value is not None and value not in NEUTRAL[field]:
                raise _bad(
                    field, f"{field}={json.dumps(value)[:80]} is not supported by this server.", "unsupported_parameter"
                )
        elif field not in READ | BOOKKEEPING or field == unread:
            raise _bad(field, f"Unrecognized request argument: {field}", "unknown_parameter")


def _model(body: dict[str, Any], models: Collection[str]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or model not in models:
        raise no_model(json.dumps(model)[:200], models)
    return model


def no_model(asked: str, models: Iterable[str]) -> Refusal:
    served = ", ".join(f'"{name}"' for name in models)
    return Refusal(
        404, f"There is no model {asked} here; this server serves {served}.", param="model", code="model_not_found"
    )


def _messages(value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise _bad("messages", "messages must be a list with at least one message.")
    if len(value) > MAX_MESSAGES:
        raise _bad("messages", f"{len(value)} messages; at most {MAX_MESSAGES} are taken.")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(item: Any, where: str) -> Turn:
    if not isinstance(item, dict):
        raise _bad(where, f"{where} must be an object with role and content.")
    role = "system" if item.get("role") == "developer" else item.get("role")
    if role not in ROLES:
        raise _bad(f"{where}.role", f"{where}.role is {json.dumps(role)[:80]}; expected one of {', '.join(ROLES)}.")
    for field in set(item) - {"role", "content", "name", "refusal", "annotations", "audio", "tool_call_id"}:
        if item[field]:
            raise _bad(f"{where}.{field}", f"{where}.{field} is not supported by this server.", "unsupported_parameter")
    return {"role": role, "content": _content(item.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    if isinstance(value, list):
        for part in value:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise _bad(where, f"{where} holds a part that is not text; this server takes text only.")
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise _bad(where, f"{where} must be text.")
    return _text(value, where)


def _prompt(value: Any, vocabulary: int) -> tuple[str | None, tuple[int, ...] | None]:
    if isinstance(value, str) and value:
        return _text(value, "prompt"), None
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        if not all(0 <= item < vocabulary for item in value):
            raise _bad("prompt", f"prompt holds token ids outside 0..{vocabulary - 1}.")
        return None, tuple(value)
    raise _bad("prompt", "prompt must be a text or a list of token ids, one prompt a request, and not empty.")


def _text(value: str, where: str) -> str:
    if len(value) > MAX_STRING_CHARACTERS:
        raise _bad(where, f"{where} has {len(value)} characters; at most {MAX_STRING_CHARACTERS} are taken.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _bad(where, f"{where} holds half of a surrogate pair, which no text encoding can carry.")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise _bad("stop", "stop must be a text or a list of texts, none empty.")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise _bad("stop", f"at most {MAX_STOPS} stop texts of at most {MAX_STOP_CHARACTERS} characters are taken.")
    return tuple(stops)


def _number(body: dict[str, Any], field: str, low: float, high: float, default: float) -> float:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _bad(field, f"{field} is {json.dumps(value)[:80]}; expected a number from {low} to {high}.")
    return float(value)


def _integer(body: dict[str, Any], field: str, low: int, default: int | None) -> int | None:
    value = body.get(field)
    if value is None:
        return default
    if type(value) is not int or value < low:
        raise _bad(field, f"{field} is {json.dumps(value)[:80]}; expected a whole number of at least {low}.")
    return value


def _flag(body: dict[str, Any], field: str) -> bool:
    value = body.get(field)
    if value not in (None, True, False):
        raise _bad(field, f"{field} is {json.dumps(value)[:80]}; expected true or false.")
    return bool(value)


def _bad(param: str, message: str, code: str = "invalid_value") -> Refusal:
    return Refusal(400, message, param=param, code=code)


# ------------------------------------------------------------------------------------------------------- answers


class TextStream:
    """Ids in, text out as soon as it is certain: no half characters, nothing that may be the start of a stop text.

    decode: ids -> text. What was fed in all gives the same text as decoding all ids at once, cut at the first stop text.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: tuple[str, ...]) -> None:
        self._decode, self._stops = decode, stops
        self._settled_ids: list[int] = []
        self._open_ids: list[int] = []
        self._text = ""
        self._sent = 0
        self.is_stopped = False

    def feed(self, ids: list[int]) -> str:
        """New certain text after these ids; empty while nothing is certain."""
        if self.is_stopped:
            return ""
        self._open_ids += ids
        # The last settled ids go along, because decoders look left (spaces, bytes of one character).
        context = self._decode(self._settled_ids)
        grown = self._decode(self._settled_ids + self._open_ids)
        if grown.endswith("\ufffd") or not grown.startswith(context):
            return ""
        self._text += grown[len(context) :]
        self._settled_ids, self._open_ids = (self._settled_ids + self._open_ids)[-8:], []
        return self._release(final=False)

    def finish(self, all_ids: list[int]) -> str:
        """What is left, the text of all ids being the truth."""
        if self.is_stopped:
            return ""
        whole = self._decode(all_ids)
        if whole.startswith(self._text[: self._sent]):
            self._text = whole
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        found = [at for at in (self._text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.is_stopped = True
            end = max(min(found), self._sent)
        else:
            end = len(self._text) if final else len(self._text) - self._held_back()
        released, self._sent = self._text[self._sent : end], max(end, self._sent)
        return released

    def _held_back(self) -> int:
        """Characters at the end that may be the start of a stop text."""
        for size in range(min(len(self._text), max(map(len, self._stops), default=0)), 0, -1):
            if any(stop.startswith(self._text[-size:]) for stop in self._stops):
                return size
        return 0


@dataclass
class Reply:
    """The shapes in which one answer goes out."""

    id: str
    model: str
    kind: Literal["chat", "text"]
    prompt_tokens: int

    def whole(self, text: str, finish: str, tokens: int, ids: list[int] | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"text": text}
        if ids is not None:
            choice["token_ids"] = ids
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [choice], "usage": self.usage(tokens)}

    def chunk(self, text: str | None = None, *, role: bool = False, finish: str | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.kind == "chat":
            choice["delta"] = {**({"role": "assistant"} if role else {}), **({} if text is None else {"content": text})}
        else:
            choice["text"] = text or ""
        return {
            **self._head("chat.completion.chunk" if self.kind == "chat" else "text_completion"),
            "choices": [choice],
        }

    def usage_chunk(self, tokens: int) -> dict[str, Any]:
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [], "usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": int(time.time()), "model": self.model}


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
