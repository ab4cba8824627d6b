"""Attention implementations timed against each other, forward and backward, at the shapes of a training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward

from tunesmith.modeling.load import DTYPES
from tunesmith.modeling.packing import packed_attention, packed_inputs
from tunesmith.planner.attention import AttentionClass

# Shape suffixes: B rows, H heads, T tokens, D features of a head.

TOKENS_TIMED = {"cpu": 512, "cuda": 8192}  # of all rows together, unless one row is longer
SECONDS_EACH, MOST_REPEATS = 0.3, 15


class _Layer(nn.Module):
    """What an implementation asks of the attention layer that it is called by."""

    is_causal = True

    def __init__(self, asked: AttentionClass, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_key_value_groups = asked.heads // asked.kv_heads
        self.config = SimpleNamespace(_attn_implementation=name, dtype=dtype, _pre_quantization_dtype=dtype)


def measure(asked: AttentionClass, device: torch.device, precision: str) -> dict[str, float]:
    """Milliseconds of a forward and backward pass of each implementation that works, medians after a warm-up.

    Rows are as long as the longest one and together hold about TOKENS_TIMED tokens; nothing is drawn from a stream that
    anything else depends on.
    """
    found = {}
    for name in asked.names:
        try:
            found[name] = round(_time(_call(asked, name, device, DTYPES[precision]), device), 4)
        except (RuntimeError, ValueError, ImportError, TypeError):
            continue  # it is installed and cannot do these shapes: the others serve
    if device.type == "cuda":  # what was taken here is no part of the training's peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return found


def _call(asked: AttentionClass, name: str, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    rows = max(1, min(8, TOKENS_TIMED[device.type] // asked.length))
    packed = asked.layout == "packed"
    B, T = (1, rows * asked.length) if packed else (rows, asked.length)
    draw = torch.Generator().manual_seed(0)

    def states(heads: int) -> Tensor:
        drawn_BTHD = torch.randn(B, T, heads, asked.head_dim, generator=draw)
        return drawn_BTHD.to(device, dtype).transpose(1, 2).requires_grad_()

    query, key, value = states(asked.heads), states(asked.kv_heads), states(asked.kv_heads)
    layer = _Layer(asked, name, dtype)
    options = {"scaling": asked.head_dim**-0.5, "dropout": 0.0}
    attend, mask = _IMPLEMENTATIONS.get(name) or AttentionInterface()[name], None
    if name == "eager":
        mask = torch.full((T, T), torch.finfo(dtype).min, device=device, dtype=dtype).triu(1)[None, None]
    elif packed:
        told = SimpleNamespace(config=layer.config)
        options |= {
            key_: v for key_, v in packed_inputs(told, [asked.length] * rows, device).items() if key_ != "position_ids"
        }  # type: ignore[arg-type]
        mask = options.pop("attention_mask", None)
        attend = packed_attention if name == "sdpa" else attend
    parts = (query, key, value)

    def call() -> None:
        out = attend(layer, query, key, value, mask, **options)[0]
        torch.autograd.grad(out.sum(), parts)

    return call


_IMPLEMENTATIONS: dict[str, Callable] = {"eager": eager_attention_forward, "sdpa": sdpa_attention_forward}


def _time(call: Callable[[], None], device: torch.device) -> float:
    """Milliseconds."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    first = once()  # warms up, and pays for what is set up once
    until, times = time.perf_counter() + SECONDS_EACH, []
    while not times or (time.perf_counter() + min(first, times[-1]) < until and len(times) < MOST_REPEATS):
        times.append(once())
    return 1000 * statistics.median(times)
