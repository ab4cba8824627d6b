"""Adapter dropout as a function of (seed, step, example, module, position): regrouping a step does not change it.

The usual dropout draws from a stream, so that another micro-batch size, process or resume draws other masks. Here a mask
bit is a hash of where it stands; nothing needs to be saved, and a redone step is the same step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Shape suffixes: B examples, T positions, D features.
PRIME_A, PRIME_B, PRIME_C = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
MASK32 = 0xFFFFFFFF


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
    """Dropout with probability `p` on [B, T, D]; identity in evaluation mode or when p is 0."""

    def __init__(self, p: float, module_id: int, context: StepContext) -> None:
        super().__init__()
        self.p, self.module_id, self.context = p, module_id, context

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x_BTD
        assert self.context.examples_B is not None, "the step's examples are set before the forward pass"
        uniform_BTD = self._uniform(x_BTD.shape, x_BTD.device)
        return x_BTD * (uniform_BTD >= self.p).to(x_BTD.dtype) / (1.0 - self.p)

    def _uniform(self, shape: torch.Size, device: torch.device) -> Tensor:
        _, num_positions, num_features = shape
        base = _mix(
            torch.tensor(
                self.context.seed * PRIME_A + self.context.step * PRIME_B + self.module_id * PRIME_C, device=device
            )
        )
        row_B = _mix(base + self.context.examples_B.to(device))
        place_TD = torch.arange(num_positions * num_features, device=device).view(num_positions, num_features)
        return _mix(row_B[:, None, None] + place_TD * PRIME_A).float() / 2**32


def _mix(x: Tensor) -> Tensor:
    """32 well-mixed bits of each int64 (the finaliser of MurmurHash3, kept inside 63 bits)."""
    x = x & MASK32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK32
    x = ((x ^ (x >> 15)) * 0x6A09E667) & MASK32
    return x ^ (x >> 16)
