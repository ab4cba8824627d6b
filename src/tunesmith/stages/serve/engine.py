"""The engine: transformers' continuous batching in a process of its own, token ids in, token ids out, on a unix socket.

It knows no text, no template, no token of access: the gate owns those. It listens where only this user can connect,
loads one model with its adapters, and leaves when the process that started it leaves (its standard input closes).

    POST /generate  {"ids", "max_new_tokens", "eos", "temperature", "top_p", "top_k", "seed", "adapter"}
                    -> lines of JSON: {"ids": [...]} as they come, last {"ids": [...], "finish": "stop" | "length"} or {"error"}
    GET  /health    200 while the generation thread lives, else 503 with the reason

On standard output, for engine_process.py: lines "phase: ..." while it starts, "fact: {...}" for what it measured, "error: {...}"
for what the user can mend. Why not `transformers serve` itself: docs/decisions/serve-engine.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.stages.serve.engine_spec import EngineSpec
from tunesmith.stages.serve.supervisor import leave_with_parent

CACHE_BYTES_CPU = 2 * 1024**3
PAGE_TOKENS = (
    32  # short answers waste at most this many positions a sequence; 256 is the library's default for flash kernels
)


def main() -> None:
    socket, spec = sys.argv[1], EngineSpec.from_json(sys.argv[2])
    leave_with_parent(lambda: os._exit(0))
    try:
        manager, numbers = start(spec)
    except TunesmithError as problem:
        say("error", {"kind": type(problem).__name__, **vars(problem.problems[0])})
        os._exit(1)  # a generation thread may still be at work
    import uvicorn

    say("phase", "ready")
    config = uvicorn.Config(application(manager, numbers), uds=socket, log_level="warning", access_log=False)
    try:
        uvicorn.Server(config).run()
    finally:
        manager.stop(block=True, timeout=5, hard_stop=True)


def say(what: str, told: Any) -> None:
    print(f"{what}: {told if isinstance(told, str) else json.dumps(told, default=str)}", flush=True)


def start(spec: EngineSpec) -> tuple[Any, dict[str, int]]:
    """A running manager of the model, and the number of each adapter by its key. Raises: ModelError MDL-1xx, SRV-018."""
    say("phase", "importing torch and transformers")
    from tunesmith.modeling.load import load_model, pick_device, resolve_attention
    from tunesmith.recipe.tree import Int8, Nf4

    if spec.compile:
        from tunesmith.stages.serve.compilation import compile_model, refuse_without_compiler

        refuse_without_compiler(pick_device())
    say("phase", "loading the model")
    quantisation = {"none": None, "nf4": Nf4(), "int8": Int8()}[spec.quantisation]
    attention = resolve_attention(spec.attention, pick_device(), spec.precision)
    model = load_model(spec.model, dtype=spec.precision, attention=attention, quantisation=quantisation)
    say("fact", {"attention": model.config._attn_implementation})
    if quantisation is not None:
        from tunesmith.modeling.quantise import facts

        say("fact", {"quantised": facts(model)})
    if spec.adapters:
        say("phase", f"loading {len(spec.adapters)} adapters")
        return start_mixed(model, spec), {key: number for number, key in enumerate(spec.adapters)}
    if spec.compile:
        say("phase", "compiling the model")
        manager, gain = compile_model(model, lambda: start_manager(model, spec.requests, compiled=True), spec.context)
        say("fact", {"compile": gain.to_json()})
        say("phase", str(gain))
        return manager, {}
    return start_manager(model, spec.requests), {}


def start_mixed(model: Any, spec: EngineSpec) -> Any:
    """A manager whose batches mix requests of several adapters: before each pass the layers are told whose tokens come."""
    from tunesmith.modeling.mixing import NO_ADAPTER, Mixture

    mixture = Mixture(model, list(spec.adapters.values()))

    def tell(_model: Any, _inputs: Any) -> None:
        batch = manager.batch_processor.inputs_and_outputs.requests_in_batch
        mixture.choose(
            [(item.state.logit_processor_kwargs.get("adapter", NO_ADAPTER), item.query_length) for item in batch]
        )

    manager = make_manager(model, spec.requests, mixed=True)
    model.register_forward_pre_hook(tell)
    manager.start()
    return manager


def start_manager(model: Any, requests: int, *, compiled: bool = False) -> Any:
    manager = make_manager(model, requests, compiled=compiled)
    manager.start()
    return manager


def make_manager(model: Any, requests: int, *, compiled: bool = False, mixed: bool = False) -> Any:
    """A ContinuousBatchingManager where every request brings its own temperature, top_p, top_k and seed.

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
    if mixed:
        # A prefix that one adapter has computed is another one's no more; and a captured graph would keep whose tokens it saw.
        settings |= {"allow_block_sharing": False, "use_cuda_graph": False, "use_async_batching": False}
    elif compiled and model.device.type == "cuda":
        settings["use_cuda_graph"] = True
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


def application(manager: Any, numbers: dict[str, int]) -> Any:
    """numbers: of each adapter, by its key."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def generate(request: Request) -> Response:
        asked = await request.json()
        number = -1 if asked["adapter"] is None else numbers[asked["adapter"]]
        return StreamingResponse(answer(manager, asked, number), media_type="application/x-ndjson")

    async def health(_request: Request) -> Response:
        error = manager.background_thread_status.fatal_error
        if error is not None or not manager.is_running():
            return JSONResponse({"error": f"the generation thread died: {error}"}, status_code=503)
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/generate", generate, methods=["POST"]), Route("/health", health)])


async def answer(manager: Any, asked: dict[str, Any], adapter: int) -> AsyncIterator[bytes]:
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
        seed=-1 if asked["seed"] is None else int(asked["seed"]),
        adapter=adapter,
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


if __name__ == "__main__":
    main()
