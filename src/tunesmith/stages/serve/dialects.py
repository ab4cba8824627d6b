"""How the gate asks an engine for tokens: ours (engine.py), or vLLM's OpenAI server. Ids in, ids out, lines of progress.

Each dialect gives the same lines: {"ids": [...]} as they come, last {"ids": [...], "finish": "stop" | "length"}, or {"error"}.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx

from tunesmith.stages.serve.engine_spec import VLLM_MODEL, EngineName


@dataclass(frozen=True)
class Order:
    """What the engine is asked. eos: ids that end the answer. adapter: its key, None for the model alone."""

    ids: list[int]
    max_new_tokens: int
    eos: list[int]
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    adapter: str | None


class TransformersDialect:
    path = "/generate"

    def body(self, order: Order) -> dict[str, Any]:
        return dict(vars(order))

    async def lines(self, response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
        async for line in response.aiter_lines():
            yield json.loads(line)


class VllmDialect:
    """vLLM's /v1/completions with token ids as the prompt. Streams, so that a client that leaves ends its request there."""

    path = "/v1/completions"

    def body(self, order: Order) -> dict[str, Any]:
        return {
            "model": order.adapter or VLLM_MODEL,
            "prompt": order.ids,
            "max_tokens": order.max_new_tokens,
            "temperature": order.temperature,
            "top_p": max(order.top_p, 1e-6),  # 0 is refused there; both keep one token
            "top_k": order.top_k,
            "seed": order.seed,
            # Ends are the template's, and no others that the folder may name.
            "ignore_eos": True,
            "stop_token_ids": order.eos,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "stream": True,
        }

    async def lines(self, response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            told = json.loads(data)
            if "error" in told:
                error = told["error"]
                yield {"error": error.get("message", str(error)) if isinstance(error, dict) else str(error)}
                return
            for choice in told["choices"]:
                ids = choice.get("token_ids") or []
                finish = choice.get("finish_reason")
                if not ids and choice.get("text"):
                    yield {"error": "this vLLM sends no token ids; 0.10.2 or newer does"}
                    return
                if finish not in (None, "stop", "length"):
                    yield {"error": f"vLLM ended the answer: {finish}"}
                elif finish or ids:
                    yield {"ids": ids, **({"finish": finish} if finish else {})}


Dialect = TransformersDialect | VllmDialect
DIALECTS: dict[EngineName, type[Dialect]] = {"transformers": TransformersDialect, "vllm": VllmDialect}
