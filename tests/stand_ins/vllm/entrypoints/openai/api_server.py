"""Speaks as vLLM's OpenAI server does, as far as the gate speaks to it, and answers without a model.

An answer is the prompt's ids backwards, each plus 1 for the second adapter, then the first stop token. What it was started with
and asked lies in VLLM_STAND_IN (a folder), for tests to look at. Fields and flags that vLLM does not have are refused, as there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

FIELDS = {
    "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "ignore_eos", "stop_token_ids", "skip_special_tokens",
    "return_token_ids", "stream",
}  # fmt: skip
FOLDER = Path(os.environ["VLLM_STAND_IN"])


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("uds", "model", "served-model-name", "dtype", "quantization", "generation-config"):
        parser.add_argument(f"--{name}")
    for name in ("max-model-len", "max-num-seqs", "max-loras", "max-lora-rank"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("enforce-eager", "enable-lora"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--lora-modules", nargs="*", default=[])
    asked = parser.parse_args()
    (FOLDER / "started.json").write_text(json.dumps({**vars(asked), "pid": os.getpid(), "argv": sys.argv[1:]}))
    adapters = [module.partition("=")[0] for module in asked.lora_modules]
    models = [asked.served_model_name, *adapters]

    async def complete(request: Request) -> Response:
        body = await request.json()
        with (FOLDER / "asked.jsonl").open("a") as file:
            file.write(json.dumps(body) + "\n")
        if set(body) - FIELDS or body["model"] not in models or not 0 < body["top_p"] <= 1:
            return JSONResponse({"error": {"message": f"bad request: {body}"}}, 400)
        return StreamingResponse(answer(body, adapters), media_type="text/event-stream")

    async def health(_request: Request) -> Response:
        return Response(status_code=200)

    routes = [Route("/v1/completions", complete, methods=["POST"]), Route("/health", health)]
    uvicorn.run(Starlette(routes=routes), uds=asked.uds, log_level="warning")


async def answer(body: dict, adapters: list[str]) -> AsyncIterator[bytes]:
    if body["prompt"] == [7, 7, 7]:
        yield event({"error": {"message": "out of blocks", "type": "InternalServerError", "code": 500}})
        return
    shift = 1 if body["model"] in adapters[1:] else 0
    ids = [token + shift for token in reversed(body["prompt"])]
    ids = [token for token in ids if token not in body["stop_token_ids"]] + body["stop_token_ids"][:1]
    sent = ids[: body["max_tokens"]]
    for place, token in enumerate(sent):
        is_last = place == len(sent) - 1
        finish = None if not is_last else "stop" if token in body["stop_token_ids"] else "length"
        choice = {"index": 0, "text": "?", "token_ids": [token], "finish_reason": finish, "stop_reason": None}
        yield event({"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": None})
        await asyncio.sleep(0)
    yield b"data: [DONE]\n\n"


def event(told: dict) -> bytes:
    return b"data: " + json.dumps(told).encode() + b"\n\n"


if __name__ == "__main__":
    main()
