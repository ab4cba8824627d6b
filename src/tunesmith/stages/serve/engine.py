"""The engine: transformers' continuous batching in a process of its own, token ids in, token ids out, on a unix socket.

It knows no text, no template, no token of access: the gate owns those. It listens where only this user can connect,
loads one model, and leaves when the process that started it leaves (its standard input closes).

    POST /generate  {"ids", "max_new_tokens", "eos", "temperature", "top_p", "top_k"}
                    -> lines of JSON: {"ids": [...]} as they come, last {"ids": [...], "finish": "stop" | "length"} or {"error"}
    GET  /health    200 while the generation thread lives, else 503 with the reason

Why not `transformers serve` itself: docs/decisions/serve-engine.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

CACHE_BYTES_CPU = 2 * 1024**3
PAGE_TOKENS = (
    32  # short answers waste at most this many positions a sequence; 256 is the library's default for flash kernels
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--requests", type=int, required=True, help="requests in flight at most")
    arguments = parser.parse_args()
    _leave_with_parent()
    precision = stored_precision(arguments.model)
    print("phase: importing torch and transformers", flush=True)
    import uvicorn

    from tunesmith.modeling.load import load_model, pick_device, resolve_attention

    print("phase: loading the model", flush=True)
    attention = resolve_attention("auto", pick_device())
    model = load_model(arguments.model, dtype=precision, attention=attention)
    manager = start_manager(model, arguments.requests)
    print("phase: ready", flush=True)
    config = uvicorn.Config(application(manager), uds=arguments.socket, log_level="warning", access_log=False)
    try:
        uvicorn.Server(config).run()
    finally:
        manager.stop(block=True, timeout=5, hard_stop=True)


def stored_precision(folder: Path) -> str:
    """fp32, bf16 or fp16, as config.json says the weights are; fp32 where it says nothing."""
    config = json.loads((folder / "config.json").read_text())
    stored = config.get("dtype") or config.get("torch_dtype") or "float32"
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(stored, "fp32")


def start_manager(model: Any, requests: int) -> Any:
    """A running ContinuousBatchingManager where every request brings its own temperature, top_p and top_k.

    The library creates a processor only for what the generation config asks for, and decides greedy or not once for all
    requests. So all processors are made here, and greedy is one of them: it leaves a single finite score, hence sampling
    cannot choose anything else.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig
    from transformers.generation.logits_process import LogitsProcessorList

    from tunesmith.stages.serve.sampling import request_processors

    generation = GenerationConfig(do_sample=True, eos_token_id=-1, pad_token_id=0, use_cache=False)
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    settings: dict[str, Any] = {"per_request_processors": True}
    if "auto_switch_to_flash" in known:
        settings["auto_switch_to_flash"] = False  # the attention is the one modeling chose; the switch looks on the hub
    if model.device.type == "cpu":
        # Left alone, the library takes 60 % of the machine's memory for the cache.
        blocks, batch_tokens = cpu_cache(model.config.get_text_config(), requests, model.dtype.itemsize)
        page_size = "page_size" if "page_size" in known else "block_size"  # its name before transformers 5.18
        settings |= {page_size: PAGE_TOKENS, "num_blocks": blocks, "max_batch_tokens": batch_tokens}
    manager = model.init_continuous_batching(
        generation_config=generation, continuous_batching_config=ContinuousBatchingConfig(**settings)
    )
    processors = manager.logit_processor
    processors.logits_processor = LogitsProcessorList(request_processors(model.config.get_text_config().vocab_size))
    processors.tensors_required = len(processors.logits_processor)
    processors.do_processing = True
    processors._retrieve_processors_kwargs()
    manager.start()
    return manager


def cpu_cache(config: Any, requests: int, bytes_per_value: int) -> tuple[int, int]:
    """Blocks of PAGE_TOKENS positions, and tokens computed at once, for `requests` sequences within CACHE_BYTES_CPU.

    One sequence of full context always fits, whatever the bound says.
    """
    context = config.max_position_embeddings
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    block_bytes = 2 * config.num_hidden_layers * heads * head_dim * bytes_per_value * PAGE_TOKENS
    per_sequence = -(-context // PAGE_TOKENS) + 1
    blocks = min(requests * per_sequence, max(per_sequence, CACHE_BYTES_CPU // block_bytes))
    return blocks, min(2048, max(256, context))


def application(manager: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def generate(request: Request) -> Response:
        return StreamingResponse(answer(manager, await request.json()), media_type="application/x-ndjson")

    async def health(_request: Request) -> Response:
        error = manager.background_thread_status.fatal_error
        if error is not None or not manager.is_running():
            return JSONResponse({"error": f"the generation thread died: {error}"}, status_code=503)
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/generate", generate, methods=["POST"]), Route("/health", health)])


async def answer(manager: Any, asked: dict[str, Any]) -> AsyncIterator[bytes]:
    """Lines of JSON with the new ids; a client that leaves cancels its request, so that nobody else waits for it."""
    outputs: asyncio.Queue[Any] = asyncio.Queue()
    request_id = os.urandom(12).hex()
    manager.register_result_handler(request_id, outputs.put_nowait)
    temperature = float(asked["temperature"])
    eos = list(asked["eos"]) or [-1]
    accepted = manager.add_request(
        asked["ids"],
        request_id=request_id,
        max_new_tokens=asked["max_new_tokens"],
        streaming=True,
        eos_token_id=eos,
        greedy=temperature == 0,
        temperature=temperature or 1.0,
        top_p=float(asked["top_p"]),
        top_k=int(asked["top_k"]),
    )
    sent, finished = 0, False
    try:
        if accepted is None:
            finished = True
            yield _line({"error": "the engine takes no new requests"})
            return
        while not finished:
            output = await outputs.get()
            finished = output.is_finished()
            new, sent = output.generated_tokens[sent:], len(output.generated_tokens)
            if output.error is not None:
                yield _line({"error": output.error})
            elif finished:
                stopped = bool(output.generated_tokens) and output.generated_tokens[-1] in eos
                yield _line({"ids": new, "finish": "stop" if stopped else "length"})
            elif new:
                yield _line({"ids": new})
    finally:
        manager.output_router.result_handlers.pop(request_id, None)
        if not finished:
            manager.cancel_request(request_id)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _leave_with_parent() -> None:
    """End this process when the parent's end of standard input closes, also after a SIGKILL of the parent."""

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
