"""Whether all of a tensor is finite."""

from __future__ import annotations

import math

import torch


def is_finite(tensor: torch.Tensor) -> bool:
    """Of a tensor, or of this process's shard of it, without another tensor of its size. Whole numbers always are."""
    tensor = getattr(tensor, "to_local", lambda: tensor)().detach()
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return math.isfinite(float(torch.linalg.vector_norm(tensor, math.inf)))
