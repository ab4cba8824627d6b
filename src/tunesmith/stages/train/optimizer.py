"""The update rule from the recipe: parameter groups with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tunesmith.recipe.tree import AdamW, Train

NamedParameters = list[tuple[str, nn.Parameter]]


def make_optimizer(parameters: NamedParameters, train: Train) -> torch.optim.Optimizer:
    """AdamW or SGD over the trainable parameters; biases and norms (one dimension) are not decayed."""
    recipe = train.optimizer
    groups = [
        {"params": [p for _, p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(recipe, AdamW):
        return torch.optim.AdamW(
            groups, lr=train.learning_rate, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, fused=True
        )
    return torch.optim.SGD(groups, lr=train.learning_rate, momentum=recipe.momentum)


def trainable(model: nn.Module) -> NamedParameters:
    """Parameters that get gradients, by name, in the order of the model."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def state_tensors(optimizer: torch.optim.Optimizer, parameters: NamedParameters) -> dict[str, torch.Tensor]:
    """The optimizer's state by "<slot>.<parameter name>", as plain CPU tensors: what a checkpoint holds."""
    found = {}
    for name, parameter in parameters:
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{slot}.{name}"] = torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
    return found


def load_state_tensors(
    optimizer: torch.optim.Optimizer, parameters: NamedParameters, tensors: dict[str, torch.Tensor]
) -> None:
    """The reverse of `state_tensors`, bit for bit."""
    for name, parameter in parameters:
        for slot in slots_of(tensors, name):
            value = tensors[f"{slot}.{name}"]
            # AdamW keeps its step count on the CPU unless it is fused on a GPU.
            device = parameter.device if value.ndim or parameter.device.type == "cuda" else torch.device("cpu")
            optimizer.state[parameter][slot] = value.to(device, copy=True)


def slots_of(tensors: Iterable[str], name: str) -> list[str]:
    """The slots that a checkpoint's state holds for one parameter, such as exp_avg."""
    return [key[: -len(name) - 1] for key in tensors if key.endswith(f".{name}") and "." not in key[: -len(name) - 1]]
