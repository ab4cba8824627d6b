"""What quantisation and 8-bit optimizers ask of the machine and of the base, known before any weight is fetched. Light."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.recipe import Recipe

NEED_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion", "lion_8bit")
NEED_CUDA = ("paged_adamw_8bit",)


def refuse_unmet(spec: Recipe, config: Mapping[str, Any], *, has_cuda: bool) -> None:
    """config: the base's config.json.

    Raises ModelError MDL-120 when bitsandbytes is asked for and not installed, MDL-121 for a paged optimizer without
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
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if asks and missing:
        raise ModelError(
            "MDL-120",
            f"{' and '.join(asks)} needs {' and '.join(missing)}, not installed here",
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
