"""What quantisation and 8-bit optimizers ask of the machine and of the base, known before any weight is fetched. Light."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.recipe import Recipe

NEED_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion", "lion_8bit")
NEED_CUDA = ("paged_adamw_8bit",)
# 0.49 has no optimizers for CPUs and loses the scales of 4-bit weights that transformers 5 loads.
LEAST = {"bitsandbytes": (0, 50), "accelerate": (1, 10)}


def refuse_unmet(spec: Recipe, config: Mapping[str, Any], *, has_cuda: bool) -> None:
    """config: the base's config.json.

    Raises ModelError MDL-120 when bitsandbytes is asked for and absent or too old, MDL-121 for a paged optimizer without
    CUDA, MDL-122 for a base whose files are quantised already.
    """
    quantisation, optimizer = spec.model.quantisation.type, spec.train.optimizer.type
    if optimizer in NEED_CUDA and not has_cuda:
        raise ModelError(
            "MDL-121",
            f"{optimizer} pages its state between GPU and CPU, and there is no CUDA device",
            where="train.optimizer",
            expected="a CUDA device, or an optimizer that is not paged",
            fix="train.optimizer: adamw_8bit",
        )
    asks = []
    if quantisation != "none":
        asks.append(f"model.quantisation: {quantisation}")
    if optimizer in NEED_BITSANDBYTES:
        asks.append(f"train.optimizer: {optimizer}")
    lacking = [text for name, least in LEAST.items() if (text := _lacking(name, least))]
    if asks and lacking:
        raise ModelError(
            "MDL-120",
            f"{' and '.join(asks)}: {', '.join(lacking)}",
            where=asks[0].partition(":")[0],
            expected="the extra `qlora`",
            fix="pip install 'tunesmith[qlora]'",
        )
    stored = config.get("quantization_config")
    if stored:
        method = stored.get("quant_method", "some method")
        raise ModelError(
            "MDL-122",
            f"the files of {spec.model.base} are quantised already ({method}): an adapter could never be merged into them",
            where="model.base",
            expected="the unquantised model; training quantises it in memory",
            fix="name the original model, and model.quantisation: nf4",
        )


def _lacking(name: str, least: tuple[int, int]) -> str:
    """What is wrong with an installed package, in words; empty where it will do."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    return f"{name} is {found}, older than {least[0]}.{least[1]}" if numbers < least else ""
