"""Compiling the served model: what it cost when the server started, and what it gained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.fx.experimental._config
from torch import nn

from tunesmith.errors import ModelError

PROMPT_TOKENS = 17
ANSWER_TOKENS = 32
ANSWERS = 4
PASSES = 2


@dataclass(frozen=True)
class Gain:
    """seconds: until the compiled model had answered for the first time. before, after: tokens per second, uncompiled and not."""

    seconds: float
    before: float
    after: float

    def __str__(self) -> str:
        times = self.after / self.before
        return f"compiled in {self.seconds:.0f} s: {self.after:,.0f} tokens/s, {times:.2f} times the {self.before:,.0f} before"

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def compile_model(model: nn.Module, start: Callable[[], Any], context: int) -> tuple[Any, Gain]:
    """The manager of the compiled model, warm, and what compiling it gained.

    start: makes a running manager of the model as it is now. context: longest sequence.
    Raises: ModelError SRV-018 when torch.compile does not work here.
    """
    plain = start()
    answer(plain, context)  # first use: allocations, kernels
    before = speed(plain, context)
    plain.stop(block=True, timeout=30, hard_stop=True)
    started = time.perf_counter()
    # Lengths change with every step, so sizes stay symbolic: a graph for each would never be done compiling.
    # And two sizes that happen to be equal in the first batch (prompt and cache, tokens and features) are still two sizes: each
    # such coincidence would be compiled once more when it ends.
    torch.fx.experimental._config.use_duck_shape = False
    model.compile(dynamic=True)
    compiled = start()
    for answers in (ANSWERS, 1):  # a size of one is compiled apart, and the first lone request is not to wait for it
        answer(compiled, context, answers)
        answer(compiled, context, answers)  # the second time prompts meet a cache that has something in it
    seconds = time.perf_counter() - started
    return compiled, Gain(seconds, before, speed(compiled, context))


def speed(manager: Any, context: int) -> float:
    """Tokens generated per second, several answers side by side: the best of a few passes, as on a machine left alone."""
    fastest = 0.0
    for _ in range(PASSES):
        started = time.perf_counter()
        tokens = answer(manager, context)
        fastest = max(fastest, tokens / (time.perf_counter() - started))
    return fastest


def answer(manager: Any, context: int, answers: int = ANSWERS) -> int:
    """Answers so many made-up prompts at once and returns the number of tokens. Raises: ModelError SRV-018 when the engine cannot."""
    prompt_tokens = min(PROMPT_TOKENS, context // 2)
    count = min(ANSWER_TOKENS, context - prompt_tokens)
    asked = [
        manager.add_request([1 + number] * prompt_tokens, max_new_tokens=count, eos_token_id=[-1], greedy=True)
        for number in range(answers)
    ]
    tokens = 0
    for _ in asked:
        output = manager.get_result()
        error = manager.background_thread_status.fatal_error if output is None else output.error
        if output is None or output.error is not None:
            raise _cannot(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
        tokens += len(output.generated_tokens)
    return tokens


def refuse_without_compiler(device: torch.device) -> None:
    """Asked before a large model is loaded in vain. Raises: ModelError SRV-018 on a CPU without a C++ compiler."""
    if device.type != "cpu":
        return
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as problem:
        raise _cannot(f"this machine has no C++ compiler ({problem})") from problem


def _cannot(why: str) -> ModelError:
    return ModelError(
        "SRV-018",
        f"the model cannot be compiled: {why}",
        where="serve.compile",
        expected="a model and a machine that torch.compile can work with (on a CPU: a C++ compiler)",
        fix="--set serve.compile=false",
    )
