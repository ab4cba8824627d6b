"""From files to a torch model: the only door to transformers' model classes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tunesmith.errors import ModelError
from tunesmith.hub import ModelFiles

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device() -> torch.device:
    """The GPU of this process (LOCAL_RANK is honoured by torch.cuda.set_device before), else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def resolve_precision(asked: str, device: torch.device) -> str:
    """fp32, bf16 or fp16: what "auto" means on this device. Raises ModelError MDL-101 for what the device cannot do."""
    if asked == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if asked == "fp16" and device.type == "cpu":
        raise ModelError(
            "MDL-101",
            "fp16 does not train on a CPU",
            where="model.precision",
            expected="fp32 or bf16 here",
            fix="model.precision: auto",
        )
    return asked


def resolve_attention(asked: str, device: torch.device) -> str:
    """eager, sdpa or flash_attention_2. Raises ModelError MDL-102 when flash attention is asked for and not there."""
    flash = device.type == "cuda" and find_spec("flash_attn") is not None
    if asked == "auto":
        return "flash_attention_2" if flash else "sdpa"
    if asked == "flash_attention_2" and not flash:
        raise ModelError(
            "MDL-102",
            "flash_attention_2 needs a CUDA device and the flash_attn package",
            where="model.attention",
            expected="sdpa or eager here",
            fix="model.attention: auto",
        )
    return asked


def load_model(
    files: ModelFiles | Path, *, dtype: str = "fp32", attention: str = "sdpa", device: torch.device | None = None
) -> nn.Module:
    """The model in evaluation mode. dtype: fp32, bf16 or fp16 of the weights in memory.

    Raises ModelError MDL-103 when the weights cannot be loaded, MDL-104 when some of them are missing or left over.
    """
    path = files.path if isinstance(files, ModelFiles) else Path(files)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises a dozen kinds; every one is an answer about these files
        raise ModelError(
            "MDL-103",
            f"{path} could not be loaded: {type(error).__name__}: {error}",
            where="model.base",
            expected="a causal language model that the installed transformers knows",
            fix="check the architecture in config.json against the installed transformers version",
        ) from error
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        raise ModelError(
            "MDL-104",
            f"{path} lacks weights: {', '.join(map(str, [*missing, *info['mismatched_keys']][:5]))}",
            where="model.base",
            expected="every weight that config.json calls for",
            fix="fetch the model again; its files do not belong together",
        )
    return model.to(device or pick_device()).eval()
