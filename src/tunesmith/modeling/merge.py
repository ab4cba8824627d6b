"""An adapter folded into its base: the plain model that behaves like both together."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tunesmith.modeling.adapters import load_adapter, merge_adapter


def merge(base_model: nn.Module, adapter_folder: Path) -> nn.Module:
    """The base with the adapter in `adapter_folder` added to its weights, in evaluation mode; `base_model` is changed.

    Sums are made in the base's own number format: load the base in fp32 for the closest result.
    Raises ModelError MDL-107 when the adapter does not fit.
    """
    return merge_adapter(load_adapter(base_model, adapter_folder)).eval()
