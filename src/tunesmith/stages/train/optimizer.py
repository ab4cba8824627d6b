"""The update rule from the recipe: parameter groups with and without weight decay, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tunesmith.planner.memory import state_width
from tunesmith.recipe.tree import Adafactor, AdamW, AdamW8bit, Lion, Lion8bit, PagedAdamW8bit, Train

NamedParameters = list[tuple[str, nn.Parameter]]


def make_optimizer(parameters: NamedParameters, train: Train) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; biases and norms (one dimension) are not decayed."""
    recipe, rate = train.optimizer, train.learning_rate
    groups = [
        {"params": [p for _, p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(recipe, (AdamW8bit, Lion)):
        return _of_bitsandbytes(recipe, groups, rate)
    if isinstance(recipe, AdamW):
        return torch.optim.AdamW(groups, lr=rate, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, fused=True)
    if isinstance(recipe, Adafactor):
        return torch.optim.Adafactor(groups, lr=rate, beta2_decay=recipe.beta2_decay)
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum)


def _of_bitsandbytes(recipe: AdamW8bit | Lion, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    from bitsandbytes import optim  # an extra

    betas = (recipe.beta1, recipe.beta2)
    if isinstance(recipe, Lion):
        return (optim.Lion8bit if isinstance(recipe, Lion8bit) else optim.Lion32bit)(groups, lr=rate, betas=betas)
    make = optim.PagedAdamW8bit if isinstance(recipe, PagedAdamW8bit) else optim.AdamW8bit
    return make(groups, lr=rate, betas=betas, eps=recipe.epsilon)


def trainable(model: nn.Module) -> NamedParameters:
    """Parameters that get gradients, by name, in the order of the model."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def expected_state(parameters: NamedParameters, train: Train) -> int:
    """Bytes that the optimizer's state will take once the first update has made it."""
    return round(sum(parameter.numel() for _, parameter in parameters) * state_width(train.optimizer))


def state_tensors(optimizer: torch.optim.Optimizer, parameters: NamedParameters) -> dict[str, torch.Tensor]:
    """The optimizer's state by "<slot>.<parameter name>", as plain CPU tensors: what a checkpoint holds.

    An 8-bit state is its bytes (state1, state2), the scale of each block (absmax1, absmax2) and the values that the bytes
    stand for (qmap1, qmap2).
    """
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
    places = {
        id(p): (g, i, group) for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])
    }
    for name, parameter in parameters:
        saved = {slot: tensors[f"{slot}.{name}"] for slot in slots_of(tensors, name)}
        group_index, index, group = places[id(parameter)]
        if saved and hasattr(optimizer, "init_state"):
            # bitsandbytes makes its own buffers (paged ones are memory of a special kind) and counts steps as a number.
            optimizer.init_state(group, parameter, group_index, index)
            state = optimizer.state[parameter]
            for slot, value in saved.items():
                if isinstance(state[slot], torch.Tensor):
                    state[slot].copy_(value)
                else:
                    state[slot] = type(state[slot])(value.item())
            continue
        for slot, value in saved.items():
            # The count of steps stays on the CPU unless the update is one fused kernel on the GPU.
            is_count = not value.ndim and not group.get("fused")
            optimizer.state[parameter][slot] = value.to("cpu" if is_count else parameter.device, copy=True)


def slots_of(tensors: Iterable[str], name: str) -> list[str]:
    """The slots that a checkpoint's state holds for one parameter, such as exp_avg."""
    return [key[: -len(name) - 1] for key in tensors if key.endswith(f".{name}") and "." not in key[: -len(name) - 1]]
