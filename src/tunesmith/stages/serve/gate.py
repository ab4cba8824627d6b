"""The gate: an OpenAI-compatible endpoint in front of the engine. It owns the token, the limits and the template.

Every route but /healthz needs `Authorization: Bearer TOKEN`; the check stands before the router, so an unknown path
answers 401 as well. A prompt is laid out and encoded here by the very code that evaluation used, so text that looks like
a control token stays text. The engine only ever sees token ids.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.errors import TunesmithError
from tunesmith.stages.serve.deployment import Choice
from tunesmith.stages.serve.dialects import Dialect, Order
from tunesmith.stages.serve.limits import BODY_SECONDS, REQUEST_SECONDS, Limits, Refusal
from tunesmith.stages.serve.protocol import DONE, Ask, Defaults, Reply, TextStream, event, no_model, parse
from tunesmith.text.example import Message
from tunesmith.text.tokenizers import Tokenizer

log = logging.getLogger("tunesmith.serve")
PUBLIC_PATHS = frozenset({"/healthz"})


@dataclass
class Served:
    """What one gate serves: models by public name, their vocabulary, bounds, defaults; the engine's socket, why the engine no
    longer works (None while it does), and how it is spoken to."""

    choices: Mapping[str, Choice]
    vocabulary: int
    limits: Limits
    defaults: Defaults
    engine_socket: str
    engine_problem: Callable[[], str | None]
    dialect: Dialect


class Gate:
    """State of one endpoint: requests in flight, whether it drains, whether the engine is ready."""

    def __init__(self, served: Served, token: str) -> None:
        self.served = served
        self.in_flight = 0
        self.is_draining = False
        self.is_ready = False
        self._token = token
        self._engine: httpx.AsyncClient | None = None

    def application(self) -> ASGIApp:
        routes = [
            Route("/healthz", self.health),
            Route("/readyz", self.readiness),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{model:path}", self.show_model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _no_route}
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        return TokenCheck(app, self._token)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        transport = httpx.AsyncHTTPTransport(uds=self.served.engine_socket, limits=httpx.Limits(max_connections=None))
        timeout = httpx.Timeout(REQUEST_SECONDS, connect=5.0)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=timeout) as self._engine:
            yield

    # ------------------------------------------------------------------------------------------------- routes

    async def health(self, _request: Request) -> Response:
        """Is this process worth keeping: 503 only when the engine is gone for good."""
        if self.served.engine_problem():
            return JSONResponse({"status": "failed"}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def readiness(self, _request: Request) -> Response:
        """May requests be sent here now: 503 while loading, while draining, and when the engine is gone."""
        self._check_open()
        return JSONResponse({"status": "ready", "in_flight": self.in_flight, "queue": self.served.limits.queue})

    async def list_models(self, _request: Request) -> Response:
        cards = [self._model_card(choice) for choice in self.served.choices.values()]
        return JSONResponse({"object": "list", "data": cards})

    async def show_model(self, request: Request) -> Response:
        asked = request.path_params["model"]
        if asked not in self.served.choices:
            raise no_model(json.dumps(asked)[:200], self.served.choices)
        return JSONResponse(self._model_card(self.served.choices[asked]))

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, "chat")

    async def complete(self, request: Request) -> Response:
        return await self._generate(request, "text")

    def _model_card(self, choice: Choice) -> dict[str, Any]:
        """OpenAI's fields, and what a client would like to know: the bounds, and what holds where it says nothing."""
        limits = self.served.limits
        return {
            "id": choice.name,
            "object": "model",
            "created": 0,
            "owned_by": "tunesmith",
            "kind": choice.kind,
            "context": limits.context,
            "max_tokens": limits.max_new_tokens,
            "defaults": self.served.defaults.to_json(),
        }

    # --------------------------------------------------------------------------------------------- generation

    async def _generate(self, request: Request, kind: Literal["chat", "text"]) -> Response:
        """One answer, whole or streamed. The place in the queue is held until the last byte is out."""
        self._check_open()
        place = self._take_place()
        try:
            raw = await read_body(request, self.served.limits.body_bytes)
            served = self.served
            ask = parse(raw, kind, served.choices, served.vocabulary, served.defaults)
            choice = served.choices[ask.model]
            # Encoding a long prompt takes a while; other requests go on meanwhile.
            ids = await asyncio.to_thread(_encode, choice.tokenizer, ask)
            max_tokens = served.limits.answer_tokens(len(ids), ask.max_tokens)
            reply = Reply(f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}", ask.model, kind, len(ids))
            answer = Answer(self, choice, ask, ids, max_tokens)
            if not ask.stream:
                text = "".join([piece async for piece in answer.pieces(request)])
                body = reply.whole(
                    text, answer.finish, len(answer.ids), answer.text_ids if ask.return_token_ids else None
                )
                return JSONResponse(body)
            # The first piece is awaited here, so that an engine that fails at once still gives a proper status.
            pieces = answer.pieces(request)
            first = await anext(pieces, None)
            stream = EventStream(answer.events(reply, first, pieces), pieces, place)
            place = None
            return stream
        except ClientDisconnect:
            return Response(status_code=499)
        finally:
            if place:
                place.leave()

    def _check_open(self) -> None:
        if problem := self.served.engine_problem():
            raise _engine_failed(problem)
        if self.is_draining or not self.is_ready:
            reason = "The server is shutting down." if self.is_draining else "The model is still being loaded."
            raise Refusal(503, reason, kind="server_error", code="not_ready", retry_after_s=5)

    def _take_place(self) -> Place:
        if self.in_flight >= self.served.limits.queue:
            message = f"{self.in_flight} requests are in flight and serve.queue is {self.served.limits.queue}. Try again shortly."
            raise Refusal(429, message, kind="rate_limit_error", code="queue_full", retry_after_s=1)
        return Place(self)

    async def lines(self, order: Order) -> AsyncGenerator[dict[str, Any], None]:
        """What the engine sends, line by line. Leaving early closes the connection, which cancels the request there."""
        assert self._engine is not None, "requests come after the start of the application"
        dialect = self.served.dialect
        try:
            async with self._engine.stream("POST", dialect.path, json=dialect.body(order)) as response:
                response.raise_for_status()
                async with aclosing(dialect.lines(response)) as lines:
                    async for line in lines:
                        yield line
        except httpx.ReadTimeout:
            raise _timed_out() from None
        except httpx.HTTPError as problem:
            log.error("engine: %s: %s", type(problem).__name__, problem)
            raise _engine_failed("The engine broke off; its log has the reason.") from None


class Place:
    """A place among the requests in flight; leaving twice counts once."""

    def __init__(self, gate: Gate) -> None:
        self._gate: Gate | None = gate
        gate.in_flight += 1

    def leave(self) -> None:
        if self._gate:
            self._gate.in_flight -= 1
            self._gate = None


class Answer:
    """One answer while it is made: text pieces out, ids and the reason of the end kept."""

    def __init__(self, gate: Gate, choice: Choice, ask: Ask, prompt: list[int], max_tokens: int) -> None:
        self.ask = ask
        self._gate, self._tokenizer = gate, choice.tokenizer
        self._stop_ids = set(choice.tokenizer.stop_ids)
        self._order = Order(
            prompt, max_tokens, sorted(self._stop_ids), ask.temperature, ask.top_p, ask.top_k, ask.seed, choice.adapter
        )
        self.ids: list[int] = []
        self.finish = "length"

    @property
    def text_ids(self) -> list[int]:
        """The ids that make the text: without the stop token."""
        return [item for item in self.ids if item not in self._stop_ids]

    async def pieces(self, request: Request) -> AsyncGenerator[str, None]:
        """Text as it becomes certain. Raises: Refusal 503/504 from the engine; ClientDisconnect."""
        text = TextStream(self._tokenizer.decode, self.ask.stops)
        # A deadline by hand: the generator may be driven by two tasks, which asyncio.timeout does not survive.
        deadline = time.monotonic() + REQUEST_SECONDS
        lines = self._gate.lines(self._order)
        try:
            async for line in lines:
                if "error" in line:
                    raise _engine_failed(line["error"])
                self.ids += line["ids"]
                self.finish = line.get("finish", self.finish)
                if piece := text.feed([item for item in line["ids"] if item not in self._stop_ids]):
                    yield piece
                if text.is_stopped:
                    self.finish = "stop"
                    return
                if await request.is_disconnected():
                    raise ClientDisconnect
                if time.monotonic() > deadline:
                    raise _timed_out()
        finally:
            await lines.aclose()  # cancels the request in the engine when it is not finished
        if piece := text.finish(self.text_ids):
            yield piece
        if text.is_stopped:
            self.finish = "stop"

    async def events(
        self, reply: Reply, first: str | None, rest: AsyncGenerator[str, None]
    ) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; an error after the first byte is an event too, and no [DONE] follows it."""
        try:
            yield event(reply.chunk("", role=True))
            if first:
                yield event(reply.chunk(first))
            async for piece in rest:
                yield event(reply.chunk(piece))
            yield event(reply.chunk(finish=self.finish))
            if self.ask.include_usage:
                yield event(reply.usage_chunk(len(self.ids)))
            yield DONE
        except Refusal as refusal:
            yield event(refusal.body())
        except ClientDisconnect:
            return
        finally:
            await rest.aclose()


class EventStream(StreamingResponse):
    """Server-sent events that give the place in the queue back, also when the client left before the first byte."""

    def __init__(self, events: AsyncGenerator[bytes, None], rest: AsyncGenerator[str, None], place: Place) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._closing, self._place = (events, rest), place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.leave()
            for generator in self._closing:
                await generator.aclose()


def _encode(tokenizer: Tokenizer, ask: Ask) -> list[int]:
    if ask.ids is not None:
        return list(ask.ids)
    if ask.text is not None:
        return encode_text(tokenizer, ask.text)
    return encode_turns(tokenizer, ask.messages or ())


def encode_turns(tokenizer: Tokenizer, turns: tuple[dict[str, str], ...]) -> list[int]:
    """Token ids of a chat prompt, as evaluation makes them. Raises: Refusal 400 where the template refuses the turns."""
    try:
        return tokenizer.encode_prompt([Message(turn["role"], turn["content"]) for turn in turns])
    except TunesmithError as problem:
        raise Refusal(
            400, f"The model's template refuses these messages: {problem.headline}", param="messages"
        ) from None


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of plain text, as training on plain text makes them; control tokens stay text."""
    ((ids, _),) = tokenizer.encode_segments([tokenizer.text_segments(text)])
    return ids.tolist()


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be larger than `limit` bytes. Raises: Refusal 413 or 408."""
    too_large = Refusal(413, f"The body is larger than {limit} bytes (serve.max_body_bytes).", code="body_too_large")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    body += part
                elif size > 8 * limit:
                    raise too_large
    except TimeoutError:
        raise Refusal(408, f"The body did not arrive within {BODY_SECONDS:.0f} s.", code="timeout") from None
    # A body somewhat too large is read to its end, unstored: a client that is cut off while sending sees no answer.
    if size > limit:
        raise too_large
    return bytes(body)


class TokenCheck:
    """Denies by default: only PUBLIC_PATHS pass without the token. Compared in constant time."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._may_pass(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            refusal = Refusal(
                401,
                "The token is missing or wrong. Send it as: Authorization: Bearer TOKEN.",
                kind="authentication_error",
                code="invalid_api_key",
            )
            await JSONResponse(refusal.body(), 401, refusal.headers())(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _may_pass(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return scope["path"] in PUBLIC_PATHS or hmac.compare_digest(given, self._expected)


def _timed_out() -> Refusal:
    return Refusal(504, f"No complete answer within {REQUEST_SECONDS:.0f} s.", kind="server_error", code="timeout")


def _engine_failed(reason: str) -> Refusal:
    return Refusal(503, reason, kind="server_error", code="engine_failed")


async def _refused(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())


async def _no_route(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    refusal = Refusal(
        problem.status_code, f"{request.method} {request.url.path}: {problem.detail}", code="no_such_route"
    )
    return JSONResponse(refusal.body(), problem.status_code, problem.headers)
