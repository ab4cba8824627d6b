"""From files to a torch model: the only door to transformers' model classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tunesmith.errors import ModelError
from tunesmith.hub import ModelFiles, refuse_code, refuse_odd_files
from tunesmith.modeling.patches import keep_deepspeed_off_stdout
from tunesmith.planner.attention import PACKAGES, installed
from tunesmith.recipe.tree import Int8, Nf4, Quantisation

# Of a file that is read: the densest formats in use take a quarter of a byte for a weight. Slack: a model without its weights.
WEIGHTS_PER_BYTE, SLACK_WEIGHTS = 8, 10_000_000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device() -> torch.device:
    """The GPU of this process (LOCAL_RANK is honoured by torch.cuda.set_device before), else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def resolve_precision(asked: str, device: torch.device) -> str:
    """fp32, bf16 or fp16: what "auto" means on this device. Raises ModelError MDL-101 for what the device cannot do."""
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if has_bf16 else "fp16"
    if asked == "fp16" and device.type == "cpu":
        raise ModelError(
            "MDL-101",
            "fp16 does not train on a CPU",
            where="model.precision",
            expected="fp32 or bf16 here",
            fix="model.precision: auto",
        )
    if asked == "bf16" and not has_bf16:
        raise ModelError(
            "MDL-108",
            f"{torch.cuda.get_device_name(device)} has no bf16",
            where="model.precision",
            expected="fp16 or fp32 here",
            fix="model.precision: auto",
        )
    return asked


def resolve_attention(asked: str, device: torch.device, precision: str = "bf16") -> str:
    """eager, sdpa, flash_attention_2 or _3; auto is the first of what is installed, by rule. Training times them instead.

    Raises ModelError MDL-102 when flash attention is asked for and cannot serve.
    """
    here = installed(on_cpu=device.type != "cuda", precision=precision, capability=capability_of(device))
    if asked == "auto":
        return here[0]
    if asked not in here:
        raise ModelError(
            "MDL-102",
            f"{asked} cannot serve here (device {device.type}, precision {precision})",
            where="model.attention",
            expected=f"a CUDA device that it is made for, the package {PACKAGES[asked]}, and bf16 or fp16",
            fix="model.attention: auto",
        )
    return asked


def capability_of(device: torch.device) -> float:
    """Such as 9.0; 0 for what is no GPU."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return major + minor / 10


def load_model(
    files: ModelFiles | Path,
    *,
    dtype: str = "fp32",
    attention: str = "sdpa",
    device: torch.device | None = None,
    quantisation: Quantisation | None = None,
) -> nn.Module:
    """The model in evaluation mode. dtype: fp32, bf16 or fp16 of the weights in memory.

    quantisation: how the linear layers are held (frozen then); None or NoQuantisation: as all other weights.
    Raises ModelError MDL-103 when the weights cannot be loaded, MDL-104 when some of them are missing or do not fit,
    MDL-124 when nothing could be quantised, MDL-112 when config.json describes far more than the files hold.
    """
    path = files.path if isinstance(files, ModelFiles) else Path(files)
    device = device or pick_device()
    packed = quantisation if isinstance(quantisation, (Nf4, Int8)) else None
    _refuse_made_up(path)
    transformers_logging.disable_progress_bar()  # our own events tell what happens
    keep_deepspeed_off_stdout()
    settings = {}
    if packed:
        from tunesmith.modeling import quantise  # bitsandbytes is an extra

        settings = quantise.loading_settings(packed, DTYPES[dtype], device)
    try:
        model, info = _from_files(path, DTYPES[dtype], attention, settings)
    except Exception as error:  # transformers raises a dozen kinds; every one is an answer about these files
        raise _unusable(path, error) from error
    lacking = [*sorted(info["missing_keys"]), *(str(entry[0]) for entry in info["mismatched_keys"])]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise ModelError(
            "MDL-104",
            f"{path} lacks weights: {', '.join(lacking[:5])}{more}",
            where="model.base",
            expected="every weight that config.json calls for, in its shape",
            fix="fetch the model again; its files do not belong together",
        )
    return quantise.finish(model, DTYPES[dtype]).eval() if packed else model.to(device).eval()


def _refuse_made_up(path: Path) -> None:
    """What weights lack would be made up at random, in full size: a config.json of a line could fill the memory."""
    held = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    described = sum(parameter.numel() for parameter in empty_model(path).parameters())
    if described > WEIGHTS_PER_BYTE * held + SLACK_WEIGHTS:
        raise ModelError(
            "MDL-112",
            f"{path}/config.json describes {described:,} weights, and its files hold {held:,} bytes",
            where="model.base",
            expected="weights that belong to their config.json",
            fix="fetch the model again; its files do not belong together",
        )


def empty_model(path: Path) -> nn.Module:
    """The architecture without weights (on the meta device): its modules by name, in a fraction of a second.

    Raises ModelError MDL-103 when the installed transformers does not know it.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        "MDL-103",
        f"{path} could not be loaded: {type(error).__name__}: {error}",
        where="model.base",
        expected="a causal language model that the installed transformers knows",
        fix="check the architecture in config.json against the installed transformers version",
    )


def _from_files(path: Path, dtype: torch.dtype, attention: str, settings: Mapping[str, Any]) -> tuple[nn.Module, dict]:
    def load(implementation: str) -> tuple[nn.Module, dict]:
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **settings,
        )

    try:
        return load(attention)
    except ValueError as error:
        if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
            return load("eager")  # an architecture without sdpa; config._attn_implementation says so
        raise


def load_token_classifier(path: Path, device: torch.device) -> tuple[nn.Module, Any]:
    """(model in evaluation mode with its labels in config.id2label, its fast tokenizer) of a folder.

    Raises ModelError MDL-130 when it cannot be loaded or could run code, MDL-131 when it is no token classifier with a fast tokenizer.
    """
    try:
        refuse_odd_files(path)
        refuse_code(path)
        transformers_logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, use_fast=True)
        model, info = AutoModelForTokenClassification.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises a dozen kinds; every one is an answer about these files
        raise ModelError(
            "MDL-130",
            f"{path} could not be loaded: {type(error).__name__}: {str(error)[:300]}",
            where="data.filters.pii.model",
            expected="a folder with a token classification model in safetensors and its tokenizer",
            fix="fetch the model into a folder and name it; or data.filters.pii.model: null",
        ) from error
    lacking = sorted(info["missing_keys"])
    if lacking or not tokenizer.is_fast:
        why = f"lacks weights: {', '.join(lacking[:5])}" if lacking else "has no fast tokenizer, so no places of tokens"
        raise ModelError(
            "MDL-131",
            f"{path} {why}",
            where="data.filters.pii.model",
            expected="a model trained for token classification (weights of its classifier included), with tokenizer.json",
            fix="name the folder of such a model; or data.filters.pii.model: null",
        )
    return model.to(device).eval(), tokenizer


def recompute_activations(model: nn.Module) -> None:
    """Layers keep their inputs only and run again in the backward pass: less memory, about a third more time."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # transformers >= 5.20
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)


def still_dropout(model: nn.Module) -> None:
    """Takes the model's own dropout away (GPT-2, OPT ...), which draws from a stream that no resume could repeat.

    The configuration is left as it is, so that the saved model is the one that was loaded.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
