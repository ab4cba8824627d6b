"""Adapter dropout as a function of (seed, step, example, module, position): regrouping a step does not change it.

The usual dropout draws from a stream, so that another micro-batch size, process or resume draws other masks. Here a mask
bit is a hash of where it stands; nothing needs to be saved, and a redone step is the same step.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

# Shape suffixes: B examples, T positions, D features.
GOLDEN_32 = 0x9E3779B1  # odd, so that multiplying by it permutes the 32-bit numbers
MASK_32 = 0xFFFFFFFF

IntOrTensor = TypeVar("IntOrTensor", int, Tensor)


class StepContext:
    """What the masks of the current micro-batch follow from; the loop sets it before each forward pass.

    examples_B: int64 ids of the examples, in the order of the micro-batch's rows.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0
        self.examples_B: Tensor | None = None

    def set(self, step: int, examples_B: Tensor) -> None:
        self.step, self.examples_B = step, examples_B


class FunctionalDropout(nn.Module):
    """Dropout with probability `p` on [B, T, D]; identity in evaluation mode. `module_id` tells the layers apart."""

    def __init__(self, p: float, module_id: int, context: StepContext) -> None:
        super().__init__()
        self.p, self.module_id, self.context = p, module_id, context

    def extra_repr(self) -> str:
        return f"p={self.p}, module_id={self.module_id}"

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training:
            return x_BTD
        examples_B = self.context.examples_B
        assert examples_B is not None, "the step's examples are set before the forward pass"
        assert x_BTD.shape[:-2] == examples_B.shape, (x_BTD.shape, examples_B.shape)
        keep_BTD = self._bits(examples_B.to(x_BTD.device), x_BTD.shape) >= round(self.p * 2**32)
        return x_BTD * keep_BTD.to(x_BTD.dtype) * (1.0 / (1.0 - self.p))

    def _bits(self, examples_B: Tensor, shape: torch.Size) -> Tensor:
        """32 random bits for each element, as int64."""
        _, num_positions, num_features = shape
        key = _mix(_mix(_mix(self.context.seed) + self.context.step) + self.module_id)
        key_B = _mix(examples_B + key)
        # t * D + d does not depend on how far the rows were padded.
        place_TD = torch.arange(num_positions * num_features, device=examples_B.device).view(
            num_positions, num_features
        )
        return _mix(key_B[:, None, None] + place_TD * GOLDEN_32)


def _mix(x: IntOrTensor) -> IntOrTensor:
    """32 well-mixed bits (a finaliser like MurmurHash3's; factors below 2**31 keep products inside an int64)."""
    x = x & MASK_32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK_32
    x = ((x ^ (x >> 15)) * 0x6A09E667) & MASK_32
    return x ^ (x >> 16)
