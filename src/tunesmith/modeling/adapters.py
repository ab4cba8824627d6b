"""LoRA adapters through PEFT: attached, saved, loaded, merged. The only door to peft."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.modeling.dropout import FunctionalDropout, StepContext
from tunesmith.recipe import Lora

ADAPTER = "default"


def attach_lora(model: nn.Module, lora: Lora, seed: int, context: StepContext | None = None) -> nn.Module:
    """The model with fresh fp32 adapters; every other weight is frozen. The start follows from the seed alone.

    Raises ModelError MDL-105 when a target names no linear layer of this model.
    """
    linears = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [target for target in lora.targets if target not in linears]
    if unknown:
        raise ModelError(
            "MDL-105",
            f"the model has no linear layer named {', '.join(unknown)}",
            where="adapter.targets",
            expected=f"some of: {', '.join(sorted(linears))}",
            fix="adapter.targets: [" + ", ".join(sorted(linears - {"lm_head"})) + "]",
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft speaks of tied weights it does not touch
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    if lora.dropout:
        _install_dropout(adapted, lora.dropout, context or StepContext(seed))
    return adapted


def _install_dropout(model: nn.Module, p: float, context: StepContext) -> None:
    layers = [module for _, module in model.named_modules() if isinstance(module, LoraLayer)]
    for number, layer in enumerate(layers):
        layer.lora_dropout[ADAPTER] = FunctionalDropout(p, number, context)


def save_adapter(model: nn.Module, folder: Path) -> None:
    """The adapter as PEFT writes it: adapter_config.json, adapter_model.safetensors. Raises MDL-106 when it is empty."""
    assert isinstance(model, PeftModel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, safe_serialization=True)
    (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's empty card; export writes a real one
    if (Path(folder) / "adapter_model.safetensors").stat().st_size < 1000:
        raise ModelError(
            "MDL-106", "the saved adapter is empty", expected="adapter weights", fix="please report this: it is a bug"
        )


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """The model with a saved adapter. Raises ModelError MDL-107 when they do not fit together."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise ModelError(
            "MDL-107",
            f"the adapter in {folder} does not fit this model: {error}",
            expected="an adapter trained on this base",
            fix="give the base model that the adapter's adapter_config.json names",
        ) from error


def merge_adapter(model: nn.Module) -> nn.Module:
    """The plain model with the adapter folded into its weights. The model must be in 16 or 32 bits, not quantised."""
    assert isinstance(model, PeftModel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.merge_and_unload(safe_merge=True)
