"""FSDP2: each process holds a shard of weights, gradients and optimizer state; a layer is whole only while it is at work."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunesmith.errors import ModelError
from tunesmith.modeling.compile import decoder_layers as named_layers
from tunesmith.modeling.forward import run_from_root
from tunesmith.modeling.load import DTYPES
from tunesmith.recipe.tree import Fsdp, Train
from tunesmith.stages.train.engines.local import MakeOptimizer
from tunesmith.stages.train.engines.processes import GroupEngine, group_device
from tunesmith.stages.train.optimizer import expected_state, slots_of, trainable


class FsdpEngine(GroupEngine):
    """torch's `fully_shard`, decoder layer by decoder layer, then the rest.

    Adapters and quantisation come before `wrap`: what is attached afterwards would stay unsynchronised. Gradients are
    summed over the processes (FSDP averages by default), because losses are divided by the step's weight over all of
    them.
    """

    name = "fsdp"
    in_step = True
    loads_on = torch.device("cpu")  # layer by layer a shard goes to the GPU, which never holds the whole model

    def __init__(self, max_grad_norm: float | None, spec: Fsdp) -> None:
        super().__init__(max_grad_norm)
        self.spec = spec

    def wrap(self, model: nn.Module, make: MakeOptimizer, *, precision: str = "fp32") -> nn.Module:
        """Raises ModelError TRN-024 for a model without known decoder layers."""
        self.device = group_device()
        run_from_root(model, model, self.device)
        self._shard(model, precision)
        self.model = model
        self.parameters = trainable(model)
        self.optimizer = make(self.parameters)
        self._compute_in(precision)
        return model

    def _shard(self, model: nn.Module, precision: str) -> None:
        layers = decoder_layers(model)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        low = DTYPES[precision] if precision != "fp32" else None
        settings = {
            "mesh": mesh,
            # Gradients are added up in fp32 whatever the layers compute in.
            "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None),
            "offload_policy": CPUOffloadPolicy() if self.spec.cpu_offload else OffloadPolicy(),
        }
        for layer in layers:
            fully_shard(layer, reshard_after_forward=self.spec.reshard_after_forward, **settings)
        fully_shard(model, **settings)
        for module in (*layers, model):
            module.set_force_sum_reduction_for_comms(True)  # gloo has neither mean nor scaled sum
            module.set_gradient_divide_factor(1.0)

    def reserve(self, train: Train) -> list[Tensor]:
        return [] if self.spec.cpu_offload else self._room(expected_state(self.parameters, train) // self.world_size)

    # ------------------------------------------------------------------------------------------------------ a step

    def _synchronise_and_measure(self, loss: Tensor, tokens: int, stopping: bool) -> list[float]:
        """Gradients are summed already, at the end of each backward pass: here shards' squares become one norm."""
        gradients = self._gradients()
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else loss.new_zeros(())
        *sums_3, squares = self._step_sums(loss, tokens, stopping, norm.double() ** 2)
        return [*sums_3, squares**0.5]

    def _gradients(self) -> list[Tensor]:
        return [_local(p.grad) for _, p in self.parameters if p.grad is not None and _local(p.grad).numel()]

    # ------------------------------------------------------------------------------------------------------ state

    def whole_parameters(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.parameters:
            whole = _whole(parameter)
            if self.rank == 0:
                found[name] = whole
        return found

    def gather_state(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.parameters:
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    whole = _whole(torch.as_tensor(value))
                    if self.rank == 0:
                        found[f"{slot}.{name}"] = whole
        if self.rank == 0:
            self._save_loss_scale(found)
        return found

    def load_state(self, weights: dict[str, Tensor], state: dict[str, Tensor] | None) -> None:
        self._check_names(weights)
        for name, parameter in self.parameters:
            with torch.no_grad():
                _local(parameter).copy_(_local(_shard_of(weights[name], parameter)))
            for slot in slots_of(state or {}, name):
                value = state[f"{slot}.{name}"]  # type: ignore[index]
                # AdamW's step count lies beside the weights where it is fused on a GPU, else on the CPU.
                self.optimizer.state[parameter][slot] = (
                    _shard_of(value, parameter) if value.ndim else value.clone().to(parameter.device)
                )
        self._load_loss_scale(state or {})


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks that the model's class names as wholes, in order. Raises ModelError TRN-024 when it names none."""
    layers = named_layers(model)
    if not layers:
        raise ModelError(
            "TRN-024",
            f"{type(model).__name__} does not say which of its modules are decoder layers",
            where="train.engine.type",
            expected="a decoder that transformers can split by layers",
            fix="--set train.engine.type=ddp",
        )
    return layers


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    """A CPU copy of the whole of a tensor that lies in shards; every process must ask."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.to(group_device()).full_tensor()
    return tensor.to("cpu", copy=True).contiguous()


@torch.no_grad()
def _shard_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, cut and placed as `like` is; no message is sent, nothing is shared."""
    shard = torch.zeros_like(like, dtype=whole.dtype)
    if isinstance(like, DTensor):
        whole = distribute_tensor(whole.to(group_device()), like.device_mesh, like.placements, src_data_rank=None)
    _local(shard).copy_(_local(whole))
    return shard
