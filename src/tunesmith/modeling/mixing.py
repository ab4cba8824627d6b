"""Several adapters on one base in one forward pass: each token gets the low-rank sum of its own adapter, or none.

For sequences laid end to end in one row, as continuous batching has them. Shape suffixes: T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.modeling.adapters import load_adapters

NO_ADAPTER = -1


class Mixture:
    """The adapters of one model, and which tokens of the coming forward pass belong to which."""

    def __init__(self, model: nn.Module, folders: Sequence[Path]) -> None:
        self._places: dict[str, Tensor | None] = {}  # None: every token
        self._device = next(model.parameters()).device
        for layer in load_adapters(model, folders):
            layer.forward = self._forward_of(layer)

    def choose(self, spans: Sequence[tuple[int, int]]) -> None:
        """spans: (adapter's number or NO_ADAPTER, tokens) of each sequence, in the order of the row."""
        present = {number for number, _ in spans}
        if len(present) == 1:
            (number,) = present
            self._places = {} if number == NO_ADAPTER else {str(number): None}
            return
        owner_T = torch.repeat_interleave(
            torch.tensor([number for number, _ in spans]), torch.tensor([tokens for _, tokens in spans])
        )
        self._places = {
            str(number): (owner_T == number).nonzero().squeeze(-1).to(self._device)
            for number in sorted(present - {NO_ADAPTER})
        }

    def _forward_of(self, layer: Any) -> Callable[..., Tensor]:
        def forward(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
            y = layer.base_layer(x, *arguments, **named)
            for key, places_T in self._places.items():
                if key not in layer.lora_A:  # this adapter leaves the layer alone
                    continue
                down = layer.lora_A[key]
                own = x if places_T is None else x.index_select(-2, places_T)
                change = (layer.lora_B[key](down(own.to(down.weight.dtype))) * layer.scaling[key]).to(y.dtype)
                y = y + change if places_T is None else y.index_add(-2, places_T, change)
            return y

        return forward
