"""How far each engine is from one process: `python benchmarks/engines.py` -> results/engines.json.

Two gloo processes on the CPU against one, the functions of tests/numerics: ten SGD steps with unequal label counts per process, from
the gradients of the first to the weights after the last; a checkpoint of three AdamW steps that one process takes three further.
Each row also has

- `in_float64`: the same differences with all arithmetic in float64 and no clipping (its norm is rounded to float32), where
  the engine allows it. DeepSpeed keeps float32 weights itself.
- `resume_error_large_epsilon`: in float32 with AdamW's epsilon at 0.01, so that an update is a smooth function of gradients.
- `one_process_regrouped`: the float32 differences of one process from itself with other micro-batches, no engine at work.

What each must keep within, and why, is in docs/decisions/engine-tolerances.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
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
LIMIT, LIMIT_FLOAT64 = 1e-5, 1e-12
LARGE_EPSILON = ("train.optimizer={type: adamw, weight_decay: 0.1, epsilon: 0.01}",)
UNCLIPPED = ("train.max_grad_norm=null",)


def main() -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join([*TESTS, os.environ.get("PYTHONPATH", "")])
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
            rows = [
                row
                for method, quantisation, engines in (
                    *((method, "none", tuple(ENGINES)) for method in METHODS),
                    *(("lora", kind, QUANTISED) for kind in ("nf4", "int8")),
                )
                for row in Case(pair, place, method, quantisation).rows(engines)
            ]
        finally:
            pair.close()
    store(
        "engines",
        {
            "limit": LIMIT,
            "limit_float64": LIMIT_FLOAT64,
            "steps": 10,
            "processes": 2,
            "model": "builtin:tunesmith-tiny, fp32",
            **summary(rows),
            "engines": rows,
        },
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many rows are proven, and the largest difference of each kind over all rows."""
    kinds = [kind for kind in rows[0] if kind.endswith(("_error", "_steps", "_process", "_epsilon"))]
    worst = {kind: max(row[kind] for row in rows) for kind in kinds}
    worst |= {
        name: max(max(row[name].values()) for row in rows if row[name])
        for name in ("in_float64", "one_process_regrouped")
    }
    return {"rows": len(rows), "rows_proven": sum(row["proven"] for row in rows), "worst": worst}


class Case:
    """One method on one kind of base, by every engine: what one process does is computed once."""

    def __init__(self, pair: Any, place: dict[str, Any], method: str, quantisation: str) -> None:
        adapter, dropout = METHODS[method]
        self.pair, self.method, self.quantisation = pair, method, quantisation
        self.settings = {**place, "adapter": adapter, "dropout": dropout, "quantisation": quantisation}

    def rows(self, engines: tuple[str, ...]) -> list[dict[str, Any]]:
        regrouped = self.regrouped()
        return [self.row(engine, regrouped) for engine in engines]

    def row(self, engine: str, regrouped: dict[str, float]) -> dict[str, Any]:
        """The largest absolute differences, and whether they are within what rounding explains."""
        two, other = self.pair.call("gradients:trajectory", **self.settings, engine=ENGINES[engine])
        one = self.straight("fp32")
        errors = {
            "gradient_error": distance(two["gradients"], one["gradients"]),
            "weight_error_after_10_steps": distance(two["weights"], one["weights"]),
            "resume_error_on_one_process": self.resume_error(engine, "fp32"),
        }
        smooth = self.resume_error(engine, "fp32", LARGE_EPSILON)
        exact = self.in_float64(engine) if not engine.startswith("deepspeed") else None
        # Above the limit only where float64 shows that it was rounding; with AdamW's own epsilon no limit follows.
        told = [*exact.values()] if exact else [errors["weight_error_after_10_steps"], smooth]
        row = {
            "engine": engine, "adapter": self.method, "quantisation": self.quantisation, **errors,
            "resume_error_large_epsilon": smooth, "in_float64": exact, "one_process_regrouped": regrouped,
            "unequal_labels": all(a != b for a, b in zip(two["labels"], other["labels"], strict=True)),
            "proven": errors["gradient_error"] <= LIMIT and smooth <= LIMIT
            and all(error <= (LIMIT_FLOAT64 if exact else LIMIT) for error in told),
        }  # fmt: skip
        figures = [*errors.values(), smooth, *(exact or {}).values()]
        print(
            f"{engine:<18}{self.method:<20}{self.quantisation:<6}{row['proven']!s:<6}"
            + "  ".join(f"{figure:.1e}" for figure in figures),
            flush=True,
        )
        return row

    def in_float64(self, engine: str) -> dict[str, float]:
        two, _ = self.pair.call("gradients:trajectory", **self.settings, engine=ENGINES[engine], precision="fp64")
        one = self.straight("fp64")
        return {
            "gradient_error": distance(two["gradients"], one["gradients"]),
            "weight_error_after_10_steps": distance(two["weights"], one["weights"]),
            "resume_error_on_one_process": self.resume_error(engine, "fp64", UNCLIPPED),
        }

    def regrouped(self) -> dict[str, float]:
        import gradients

        settings = {**self.settings, "micro_batch": 4}
        two, one = gradients.trajectory(**settings), self.straight("fp32")
        saved = gradients.some_steps(first=1, last=3, **settings)
        return {
            "gradient_error": distance(two["gradients"], one["gradients"]),
            "weight_error_after_10_steps": distance(two["weights"], one["weights"]),
            "resume_error_on_one_process": self.resumed_from(saved, "fp32", ()),
        }

    def resume_error(self, engine: str, precision: str, adamw: tuple[str, ...] = ()) -> float:
        """Three steps by the engine and three by one process, beside six by one process."""
        more = {"precision": precision, "adamw": adamw, "engine": ENGINES[engine]}
        saved = self.pair.call("gradients:some_steps", first=1, last=3, **self.settings, **more)[0]
        return self.resumed_from(saved, precision, adamw)

    def resumed_from(self, saved: Any, precision: str, adamw: tuple[str, ...]) -> float:
        import gradients

        more = {"precision": precision, "adamw": adamw}
        weights, _ = gradients.some_steps(first=4, last=6, saved=saved, **self.settings, **more)
        return distance(weights, self.six_steps(precision, adamw))

    @cache  # noqa: B019 - a case lives as long as its rows
    def straight(self, precision: str) -> dict[str, Any]:
        import gradients

        return gradients.trajectory(**self.settings, precision=precision)

    @cache  # noqa: B019
    def six_steps(self, precision: str, adamw: tuple[str, ...]) -> dict[str, Any]:
        import gradients

        return gradients.some_steps(first=1, last=6, **self.settings, precision=precision, adamw=adamw)[0]


def distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest absolute difference over all tensors."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


if __name__ == "__main__":
    main()
