"""Adapter dropout as a function of (seed, step, example, module, position): regrouping a step does not change it.

The usual dropout draws from a stream, so that another micro-batch size, process or resume draws other masks. Here a mask
bit is a hash of where it stands; nothing needs to be saved, and a redone step is the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from tunesmith.modeling.packing import positions

# Shape suffixes: E examples, B rows, T columns, D features.
GOLDEN_32 = 0x9E3779B1  # odd, so that multiplying by it permutes the 32-bit numbers
MASK_32 = 0xFFFFFFFF

IntOrTensor = TypeVar("IntOrTensor", int, Tensor)


class StepContext:
    """What the masks of the current micro-batch follow from; the loop sets it before each forward pass.

    examples_E: int64 ids of the examples, in the order of the micro-batch. lengths: tokens of each where they are packed
    end to end; None where each has its row.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0
        self.examples_BT: Tensor | None = None  # broadcasts to [B, T]
        self.positions_BT: Tensor | None = None  # in the example; None: the column

    def set(self, step: int, examples_E: Tensor, lengths: Sequence[int] | None = None) -> None:
        self.step = step
        if lengths is None:
            self.examples_BT, self.positions_BT = examples_E[:, None], None
        else:
            sizes = torch.tensor(lengths, device=examples_E.device)
            self.examples_BT = examples_E.repeat_interleave(sizes)[None]
            self.positions_BT = positions(lengths).to(examples_E.device)[None]


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
        examples_BT = self.context.examples_BT
        assert examples_BT is not None, "the step's examples are set before the forward pass"
        assert x_BTD.shape[0] == examples_BT.shape[0], (x_BTD.shape, examples_BT.shape)
        keep_BTD = self._bits(examples_BT.to(x_BTD.device), x_BTD.shape) >= round(self.p * 2**32)
        return x_BTD * keep_BTD.to(x_BTD.dtype) * (1.0 / (1.0 - self.p))

    def _bits(self, examples_BT: Tensor, shape: torch.Size) -> Tensor:
        """32 random bits for each element, as int64."""
        _, num_columns, num_features = shape
        key = _mix(_mix(_mix(self.context.seed) + self.context.step) + self.module_id)
        key_BT = _mix(examples_BT + key)
        positions_BT = self.context.positions_BT
        if positions_BT is None:
            positions_BT = torch.arange(num_columns, device=examples_BT.device)[None]
        # t * D + d does not depend on how far the rows were padded, nor on what stands before an example.
        features_D = torch.arange(num_features, device=examples_BT.device)
        place_BTD = positions_BT.to(examples_BT.device)[..., None] * num_features + features_D
        return _mix(key_BT[..., None] + place_BTD * GOLDEN_32)


def _mix(x: IntOrTensor) -> IntOrTensor:
    """32 well-mixed bits (a finaliser like MurmurHash3's; factors below 2**31 keep products inside an int64)."""
    x = x & MASK_32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK_32
    x = ((x ^ (x >> 15)) * 0x6A09E667) & MASK_32
    return x ^ (x >> 16)
