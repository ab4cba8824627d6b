"""ZeRO by DeepSpeed's own engine: it shards, reduces, judges, clips and updates; examples, loss and rates stay ours.

The only door to deepspeed.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_grad,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_grad,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from tunesmith.errors import ModelError, TunesmithError
from tunesmith.modeling.forward import run_from_root
from tunesmith.modeling.load import DTYPES
from tunesmith.planner.memory import state_width
from tunesmith.recipe.tree import DeepSpeed, Train
from tunesmith.stages.train.engines.deepspeed_config import Facts, engine_config, read_config, stage_of
from tunesmith.stages.train.engines.local import MakeOptimizer, Verdict
from tunesmith.stages.train.engines.loss_scale import LossScale
from tunesmith.stages.train.engines.patches import compile_nothing
from tunesmith.stages.train.engines.processes import GroupEngine, group_device
from tunesmith.stages.train.optimizer import slots_of, trainable


class DeepSpeedEngine(GroupEngine):
    """`deepspeed.initialize` around our model and our optimizer.

    DeepSpeed averages gradients over the processes; losses are multiplied by their number, so that gradients are sums,
    as losses are divided by the step's weight over all of them. It never divides by accumulation steps: the boundary is
    told with each backward pass. Checkpoints hold whole fp32 weights and states by name, as those of every engine do.
    """

    name = "deepspeed"
    in_step = True

    def __init__(self, train: Train) -> None:
        super().__init__(train.max_grad_norm)
        # DeepSpeed reads it whenever it likes, and no launcher has set it where one process trains alone.
        self._sets_local_rank = "LOCAL_RANK" not in os.environ
        os.environ.setdefault("LOCAL_RANK", "0")
        self.train = train
        assert isinstance(train.engine, DeepSpeed)
        self.user = read_config(train.engine)
        if stage_of(train.engine) == 3:
            self.loads_on = torch.device("cpu")  # weight by weight a shard goes to the GPU

    def wrap(self, model: nn.Module, make: MakeOptimizer, *, precision: str = "fp32") -> nn.Module:
        """Raises RecipeError TRN-030 for keys of the user's file that are refused, ModelError TRN-029 with DeepSpeed's
        own words when it does not start."""
        self.device = group_device()
        self.parameters = trainable(model)
        self.optimizer = make(self.parameters)
        on_cpu = self.device.type == "cpu"
        facts = Facts(self.train, precision, self.world_size, _hidden_size(model), on_cpu=on_cpu)
        config, self.notes = engine_config(self.user, facts)
        self.stage = config["zero_optimization"]["stage"]
        run_from_root(model, self._forward, self.device)
        self.loss_scale = LossScale() if precision == "fp16" else None
        self.model = model
        finer = self._lower(model, DTYPES[precision])
        self.engine = self._initialize(model, config)
        for name, parameter in self.parameters:
            if name in finer:
                self._put(parameter, finer[name])
        return model

    def _lower(self, model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        """Bring all weights to the number format of training, as DeepSpeed would. Returns those that were finer.

        DeepSpeed makes its fp32 copies from what is left, so that the start would differ from that of other engines.
        """
        finer = {}
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            low = parameter.detach().to(dtype)
            if parameter.requires_grad and not torch.equal(low.to(parameter.dtype), parameter.detach()):
                finer[name] = _cpu_copy(parameter)
            parameter.data = low
        return finer

    def _initialize(self, model: nn.Module, config: dict[str, Any]) -> Any:
        compile_nothing()
        self._linear = nn.functional.linear
        logger = logging.getLogger("DeepSpeed")
        try:
            with redirect_stdout(sys.stderr), _level(logger, logging.ERROR):
                if self.stage == 3:
                    deepspeed.zero.Init(module=model, config_dict_or_path=config, dtype=next(model.parameters()).dtype)
                    for buffer in model.buffers():
                        buffer.data = buffer.data.to(self.device)
                engine, *_ = deepspeed.initialize(
                    model=model,
                    optimizer=self.optimizer,
                    model_parameters=[parameter for _, parameter in self.parameters],
                    config=config,
                )
        except TunesmithError:
            raise
        except Exception as error:  # a dozen kinds, asserts among them; each is an answer about this configuration
            raise ModelError(
                "TRN-029",
                f"DeepSpeed {deepspeed.__version__} does not start: {type(error).__name__}: {str(error).strip()}",
                where="train.engine",
                expected="settings that this DeepSpeed, this model and these devices allow",
                fix="change what it names, in train.engine or in its config file",
            ) from error
        # torch 2.13 renames collectives that DeepSpeed calls by their old names, thousands of times.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
        return engine

    def _forward(self, **inputs: Any) -> Any:
        return self.engine(**inputs)

    # ------------------------------------------------------------------------------------------------------ a step

    def backward(self, loss: Tensor, is_last: bool = True) -> None:
        scale = self.loss_scale.value if self.loss_scale else 1.0
        self.engine.set_gradient_accumulation_boundary(is_last)
        if self.loss_scale:
            self.engine.optimizer.override_loss_scale(scale)
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, loss: Tensor, tokens: int = 0, stopping: bool = False) -> Verdict:
        """Update, unless the loss or the gradients are not finite: DeepSpeed then leaves weights and averages alone."""
        loss_value, num_tokens, num_stopping = self._step_sums(loss, tokens, stopping)
        if not math.isfinite(loss_value):
            self._spoil()
        self.engine.step()
        finite = self.engine.was_step_applied()
        norm = float(self.engine.get_global_grad_norm())
        again = False
        if self.loss_scale:
            if finite:
                self.loss_scale.note_finite()
            elif math.isfinite(loss_value):
                again = self.loss_scale.note_overflow()
        return Verdict(finite, again, loss_value, norm, int(num_tokens), num_stopping > 0)

    def discard(self) -> None:
        self._spoil()
        self.engine.step()

    def reserve(self, train: Train) -> list[Tensor]:
        on_gpu = sum(partition.numel() for partition in self._partitions() if partition.device.type == "cuda")
        return self._room(round(on_gpu * state_width(train.optimizer)))

    def _spoil(self) -> None:
        """Makes one gradient not finite, on every process, so that DeepSpeed withholds the update and cleans up itself."""
        _, parameter = self.parameters[0]
        if self.stage == 3:
            safe_set_local_grad(parameter, torch.full_like(parameter.ds_tensor, math.nan))
        else:
            safe_set_full_grad(parameter, torch.full_like(parameter, math.nan))

    # ------------------------------------------------------------------------------------------------------ state

    def whole_parameters(self) -> dict[str, Tensor]:
        found = {}
        for name, parameter in self.parameters:
            whole = safe_get_full_fp32_param(parameter)
            if self.rank == 0:
                found[name] = _cpu_copy(whole)
        return found

    def gather_state(self) -> dict[str, Tensor]:
        held = self.engine.optimizer.optimizer.state.get(self._partitions()[0], {})
        if held:
            self._link_state()
        found = {}
        for name, parameter in self.parameters:
            for slot, value in held.items():
                if value is None:
                    continue
                is_whole = torch.is_tensor(value) and value.ndim > 0
                whole = safe_get_full_optimizer_state(parameter, slot) if is_whole else torch.as_tensor(value)
                if self.rank == 0:
                    found[f"{slot}.{name}"] = _cpu_copy(whole)
        if self.rank == 0:
            self._save_loss_scale(found)
        return found

    def load_state(self, weights: dict[str, Tensor], state: dict[str, Tensor] | None) -> None:
        self._check_names(weights)
        if state is not None:
            self._make_room(state)
        for name, parameter in self.parameters:
            self._put(parameter, weights[name])
            for slot in slots_of(state or {}, name):
                value = state[f"{slot}.{name}"]  # type: ignore[index]
                if value.ndim:
                    self._put(parameter, value, slot)
        self._update_low_precision(weights)
        self._load_loss_scale(state or {})

    def _partitions(self) -> list[Tensor]:
        """What DeepSpeed's inner optimizer updates: this process's fp32 weights, laid end to end."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            found = getattr(self.engine.optimizer, name, None)
            if found:
                return list(found)
        raise AssertionError(f"{type(self.engine.optimizer).__name__} is a ZeRO optimizer that is not known here")

    def _make_room(self, state: dict[str, Tensor]) -> None:
        """The inner optimizer has no state before its first update: make it as that update would, then link it."""
        inner = self.engine.optimizer.optimizer
        name, _ = self.parameters[0]
        for partition in self._partitions():
            for slot in slots_of(state, name):
                value = state[f"{slot}.{name}"]
                if value.ndim:
                    inner.state[partition][slot] = torch.zeros_like(partition)
                else:  # AdamW's step count, the same for all
                    on_gpu = partition.device.type == "cuda"
                    inner.state[partition][slot] = value.clone().to(partition.device if on_gpu else "cpu")
        self._link_state()

    def _link_state(self) -> None:
        """Parameters of stages 1 and 2 find their part of the state through links. DeepSpeed makes all of them after
        the first group's first update, when the second group has no state yet (0.19.8): here they are made anew."""
        if self.stage != 3:
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _put(self, parameter: Tensor, whole: Tensor, slot: str | None = None) -> None:
        whole = whole.to(self.device)
        if self.stage == 3:
            part = _partition_of(whole, parameter, self.rank)
            if slot is None:
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, slot)
        elif slot is None:
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, slot)

    @torch.no_grad()
    def _update_low_precision(self, weights: dict[str, Tensor]) -> None:
        """The weights that forward passes use, in the number format of training."""
        for name, parameter in self.parameters:
            if self.stage != 3:
                parameter.copy_(weights[name])
                continue
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if self.rank == 0:
                    parameter.copy_(weights[name])

    def close(self) -> None:
        engine = getattr(self, "engine", None)
        if engine is not None:
            engine.destroy()
            nn.functional.linear = self._linear  # stage 3 puts its own there, for all that follows in this process
        if self._owns_group and deepspeed.comm.is_initialized():
            # Of a group that torch alone ends DeepSpeed keeps what it has made: the next training of this process, such
            # as a search's next trial, would be refused (tests/e2e/test_recipes.py trains twice).
            deepspeed.comm.destroy_process_group()
        if self._sets_local_rank:
            os.environ.pop("LOCAL_RANK", None)
        super().close()


def _cpu_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _partition_of(whole: Tensor, parameter: Any, rank: int) -> Tensor:
    """The part of a whole tensor that stage 3 gives to a process: equal parts of the flat numbers, zeros behind them."""
    size = parameter.ds_tensor.numel()
    part = torch.zeros(size, dtype=whole.dtype, device=whole.device)
    mine = whole.flatten()[rank * size : (rank + 1) * size]
    part[: mine.numel()] = mine
    return part


def _hidden_size(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config
    return int(getattr(config, "hidden_size", 0) or 0)


@contextmanager
def _level(logger: logging.Logger, level: int) -> Iterator[None]:
    """DeepSpeed warns of what is tested here; its other lines go beside the results, not between them."""
    before = logger.level
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    logger.setLevel(level)
    try:
        yield
    finally:
        if logger.level == level:  # else the user's log_level holds
            logger.setLevel(before)
