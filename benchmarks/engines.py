"""How far each engine is from one process: `python benchmarks/engines.py` -> results/engines.json.

Two gloo processes on the CPU against one, the functions of tests/numerics: ten SGD steps with unequal label counts per process, from
the gradients of the first to the weights after the last; a checkpoint of three AdamW steps that one process takes three further.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import ROOT, store

TESTS = [str(ROOT / "tests" / "numerics"), str(ROOT / "tests"), str(ROOT / "src")]
sys.path[:0] = TESTS

ENGINES = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    "deepspeed zero 1": "{type: deepspeed, zero_stage: 1}",
    "deepspeed zero 2": "{type: deepspeed, zero_stage: 2}",
    "deepspeed zero 3": "{type: deepspeed, zero_stage: 3}",
}
METHODS = {"full": ("full", 0.0), "lora": ("lora", 0.0), "lora, dropout 0.1": ("lora", 0.1)}
QUANTISED = ("ddp", "fsdp")  # DeepSpeed is refused by name with a quantised base
LIMIT = 1e-5


def main() -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join([*TESTS, os.environ.get("PYTHONPATH", "")])
    import gradients
    from gloo import GlooPair
    from small_training import fill_dataset

    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        fill_dataset(data)
        base = ROOT / "src" / "tunesmith" / "hub" / "builtin" / "tunesmith-tiny"
        place = {"model_dir": str(base), "dataset_dir": str(data), "micro_batch": 1}
        pair = GlooPair(f"{scratch}/store")
        try:
            rows = [measure(pair, gradients, place, engine, method) for method in METHODS for engine in ENGINES]
            rows += [
                measure(pair, gradients, place, engine, "lora", kind)
                for kind in ("nf4", "int8")
                for engine in QUANTISED
            ]
        finally:
            pair.close()
    store(
        "engines",
        {"limit": LIMIT, "steps": 10, "processes": 2, "model": "builtin:tunesmith-tiny, fp32", "engines": rows},
    )


def measure(
    pair: Any, gradients: Any, place: dict[str, Any], engine: str, method: str, quantisation: str = "none"
) -> dict[str, Any]:
    """One row: the largest absolute differences, and whether each is within the limit."""
    adapter, dropout = METHODS[method]
    settings = {**place, "adapter": adapter, "dropout": dropout, "quantisation": quantisation}
    one = gradients.trajectory(**settings)
    two, other = pair.call("gradients:trajectory", **settings, engine=ENGINES[engine])
    saved = pair.call("gradients:some_steps", first=1, last=3, **settings, engine=ENGINES[engine])[0]
    resumed, _ = gradients.some_steps(first=4, last=6, saved=saved, **settings)
    straight, _ = gradients.some_steps(first=1, last=6, **settings)
    errors = {
        "gradient_error": distance(two["gradients"], one["gradients"]),
        "weight_error_after_10_steps": distance(two["weights"], one["weights"]),
        "resume_error_on_one_process": distance(resumed, straight),
    }
    row = {
        "engine": engine, "adapter": method, "quantisation": quantisation, **errors,
        "unequal_labels": all(a != b for a, b in zip(two["labels"], other["labels"], strict=True)),
        "proven": all(error <= LIMIT for error in errors.values()),
    }  # fmt: skip
    print(
        f"{engine:<18}{method:<20}{quantisation:<6}" + "  ".join(f"{error:.1e}" for error in errors.values()),
        flush=True,
    )
    return row


def distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest absolute difference over all tensors."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


if __name__ == "__main__":
    main()
