"""Which engine the recipe names."""

from __future__ import annotations

import os

import torch

from tunesmith.recipe.tree import DeepSpeed, Fsdp, Train
from tunesmith.stages.train.checks import check_engine
from tunesmith.stages.train.engines.local import LocalEngine


def make_engine(train: Train) -> LocalEngine:
    """The engine of `train.engine`; it joins the other processes that torchrun started, if there are any.

    Raises RecipeError for what cannot run here (as `checks.check_engine`).
    """
    check_engine(train, on_cpu=not torch.cuda.is_available())
    if isinstance(train.engine, Fsdp):
        from tunesmith.stages.train.engines.fsdp import FsdpEngine

        return FsdpEngine(train.max_grad_norm, train.engine)
    if isinstance(train.engine, DeepSpeed):
        from tunesmith.stages.train.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(train)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from tunesmith.stages.train.engines.replicas import ReplicaEngine

        return ReplicaEngine(train.max_grad_norm)
    return LocalEngine(train.max_grad_norm)
