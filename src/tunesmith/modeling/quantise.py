"""Quantised bases for QLoRA: the only door to bitsandbytes for models.

The linear layers of the blocks are quantised while the files load; embeddings, norms and the output layer stay in the number
format of training. Quantised weights are frozen for good: gradients pass through them to the adapters, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from tunesmith.errors import ModelError
from tunesmith.recipe.tree import Int8, Nf4

QUANTISED = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)


def loading_settings(quantisation: Nf4 | Int8, compute: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told besides files and formats. compute: format in which unpacked weights multiply."""
    if isinstance(quantisation, Nf4):
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quantisation.double_quantisation,
            bnb_4bit_compute_dtype=compute,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "device_map": {"": device}}


def finish(model: nn.Module, compute: torch.dtype) -> nn.Module:
    """A model as transformers loaded it, made fit for training: frozen, and the same in training as in evaluation.

    Raises ModelError MDL-124 when the model has no linear layer that was quantised.
    """
    layers = dict(quantised_layers(model))
    if not layers:
        raise ModelError(
            "MDL-124",
            f"{type(model).__name__} has no linear layer that could be quantised",
            where="model.quantisation",
            expected="a decoder made of linear layers",
            fix="model.quantisation: none",
        )
    for layer in layers.values():
        layer.__class__ = Nf4Linear if isinstance(layer, bnb.nn.Linear4bit) else Int8Linear
        layer.prepare(compute)
    return model.requires_grad_(False)


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and layer of each linear layer with quantised weights."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QUANTISED))


def facts(model: nn.Module) -> dict[str, Any]:
    """How a quantised model lies in memory: layers, weights and bits per weight with all scales, and bytes of the rest."""
    layers = dict(quantised_layers(model))
    num_weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    num_bytes = sum(_stored_bytes(layer) for layer in layers.values())
    inside = {id(layer.weight) for layer in layers.values()}
    rest = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in inside and not p.requires_grad)
    return {
        "layers": len(layers),
        "weights": num_weights,
        "bits_per_weight": round(num_bytes * 8 / num_weights, 3),
        "bytes": num_bytes,
        "unquantised_bytes": rest,
    }


def _stored_bytes(layer: nn.Module) -> int:
    tensors = [layer.weight]
    if isinstance(layer, bnb.nn.Linear4bit):
        state = layer.weight.quant_state
        tensors.append(state.absmax)
        if state.nested:
            tensors.append(state.state2.absmax)
    else:
        tensors.append(layer.scales)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Nf4Linear(bnb.nn.Linear4bit):
    """The 4-bit layer of bitsandbytes, for training and evaluation in turns, wherever its weights may go."""

    def prepare(self, compute: torch.dtype) -> None:
        self.compute_dtype = compute
        # On CPUs with AVX512-BF16 an evaluation would repack the weights for inference, in bf16 and for good: no gradient
        # passes through them afterwards (bitsandbytes 0.50, nn.modules.Linear4bit.forward).
        self.support_avx512bf16_for_cpu = False

    def forward(self, x: Tensor) -> Tensor:
        # The scales are neither parameters nor buffers: who moves the weights (FSDP cuts them on the CPU) leaves them behind.
        if self.quant_state.absmax.device != x.device:
            self.quant_state.to(x.device)
        return super().forward(x)


class Int8Linear(bnb.nn.Linear8bitLt):
    """The int8 weights of bitsandbytes, unpacked for each product; activations are not quantised.

    LLM.int8() would quantise activations too, with columns above a threshold, found over all rows of a micro-batch, kept in
    fp16: the gradient of a step would depend on how its examples were grouped, and bf16 activations beyond 65,504 would
    overflow. On the CPU bitsandbytes itself trains as this does, but validates as LLM.int8().

    scales: float32 [out]; a buffer, so that it outlives what sharding engines do to parameters.
    """

    def prepare(self, compute: torch.dtype) -> None:
        self.compute_dtype = compute
        self.register_buffer("scales", self.weight.SCB.detach().float() / 127, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = _Int8Product.apply(x.to(self.compute_dtype), self.weight, self.scales)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.to(x.dtype)


class _Int8Product(torch.autograd.Function):
    """x [..., in] times int8 weights [out, in] scaled by row. Keeps the int8 weights for the way back, never the unpacked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scales)
        return F.linear(x, _unpacked(weight, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scales = ctx.saved_tensors
        return gradient @ _unpacked(weight, scales, gradient.dtype), None, None


def _unpacked(weight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """One rounding only: in-place products are computed in the wider of the two formats."""
    return weight.detach().to(dtype, copy=True).mul_(scales[:, None])


def trouble(device: torch.device) -> str:
    """Empty where bitsandbytes works on this device, else what it answered: a tensor is quantised and brought back."""
    try:
        sample = torch.linspace(-1, 1, 64 * 64, device=device).view(64, 64)
        packed, state = bnb.functional.quantize_4bit(sample, quant_type="nf4", compress_statistics=True)
        error = float((bnb.functional.dequantize_4bit(packed, state) - sample).abs().max())
    except Exception as problem:  # a library that was built for another machine fails in its own ways
        return f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else 'no reason given'}"
    return "" if error < 0.2 else f"4-bit weights come back wrong by {error:.2g}"
