"""What becomes of each key of a DeepSpeed JSON file: one table, which drives behaviour, tests and docs/deepspeed.md. Light.

obeyed      handed to DeepSpeed as it is; "auto" is filled in where the row says with what
recipe      the recipe decides: "auto" and an equal value are fine, another one is refused with both values
overridden  ours holds, and the reason is told once
refused     what it asks for cannot be had here; a value that asks for nothing is left out in silence
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import FileError, Problem, RecipeError
from tunesmith.recipe.tree import AdamW, DeepSpeed, Train

Act = Literal["obeyed", "recipe", "overridden", "refused"]
AUTO = "auto"
DEFAULT_STAGE = 2
BUCKET = 200_000_000  # elements; DeepSpeed's own default of 5e8 takes 2 GB per buffer in fp32


class _Unsaid:
    def __repr__(self) -> str:
        return "unsaid"


UNSAID = _Unsaid()  # the recipe leaves it to the file, or nothing is known yet


@dataclass(frozen=True)
class Facts:
    """What "auto" and the recipe's rows are filled from. precision "" and hidden_size 0: not known yet. stage: found
    from recipe and file."""

    train: Train
    precision: str = ""
    world_size: int = 1
    hidden_size: int = 0
    on_cpu: bool = False
    stage: Any = DEFAULT_STAGE

    @property
    def engine(self) -> DeepSpeed:
        assert isinstance(self.train.engine, DeepSpeed), self.train.engine
        return self.train.engine


Value = Callable[[Facts], Any]


@dataclass(frozen=True)
class Row:
    """One key by its dotted path; "pipeline.*" is a section with all that is in it.

    why: for the docs, and the reason that is told. value: what "auto" becomes (obeyed), what the recipe says (recipe),
    what holds instead (overridden; None leaves the key out). key_of_recipe: what to change instead of the file.
    harmless: values that ask for nothing new. other: a value that somebody may write. passes: DeepSpeed is told.
    """

    key: str
    act: Act
    why: str
    value: Value | None = None
    key_of_recipe: str = ""
    harmless: tuple[Any, ...] = ()
    other: Any = None
    passes: bool = True


def _optimizer(name: str) -> Value:
    """A setting of the recipe's optimizer, or unsaid where it has no such setting."""

    def value(facts: Facts) -> Any:
        optimizer = facts.train.optimizer
        if name == "betas":
            return [optimizer.beta1, optimizer.beta2] if isinstance(optimizer, AdamW) else UNSAID
        return getattr(optimizer, name, UNSAID)

    return value


def _is(format: str) -> Value:
    return lambda facts: facts.precision == format if facts.precision else UNSAID


def _accumulation(facts: Facts) -> Any:
    """Micro-batches are added up in fp32, so that cutting a step into more of them changes nothing."""
    return "fp32" if facts.precision == "bf16" else UNSAID


def _of_hidden(factor: float, power: int) -> Value:
    """As transformers fills these keys in: a multiple of the hidden size or of its square."""
    return lambda facts: int(factor * facts.hidden_size**power) if facts.hidden_size else UNSAID


def _reduce_bucket(facts: Facts) -> Any:
    return BUCKET if facts.stage != 3 else _of_hidden(1, 2)(facts)


def _unless_auto(value: Any) -> Any:
    return UNSAID if value == AUTO else value


def _device_of(name: str) -> Value:
    return lambda facts: _unless_auto(getattr(facts.engine, name))


def _constant(value: Any) -> Value:
    return lambda facts: value


def _micro_batch(facts: Facts) -> int:
    return max(1, facts.train.batch_size // facts.world_size)


OWN_FILES = "checkpoints are written by tunesmith, in the one format that all engines read"
OWN_STEP = "tunesmith cuts a step into micro-batches and tells DeepSpeed which one is the last"
OWN_SUM = "gradients are summed over processes: losses are divided by the step's weight already"
OWN_ORDER = "which rows a step sees follows from (seed, step) alone"
OWN_RATE = "rates follow train.schedule and train.learning_rate"
OWN_SCALE = "tunesmith finds the loss scale of fp16 itself and does an overflown step again"
OWN_RECOMPUTATION = "recomputation is train.gradient_checkpointing"
NO_NVME = "state on NVMe cannot be gathered into a checkpoint here; offload to cpu"
NO_OTHER_PARALLELISM = "only data is divided over processes here"
NOT_READ = "no part of DeepSpeed 0.19 reads it"
GONE = "DeepSpeed 0.19 has removed it"
UNTESTED = "no test here has shown that it trains the same model"
OFF: dict[str, Any] = {"enabled": False}
OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}

ROWS: tuple[Row, ...] = (
    # ---------------------------------------------------------------------------------------------- batch and step
    Row(
        "train_batch_size", "recipe", "examples per step", lambda f: f.train.batch_size, "train.batch_size",
        other=7, passes=False,
    ),
    Row("train_micro_batch_size_per_gpu", "overridden", OWN_STEP, _micro_batch, "train.micro_batch", other=3),
    Row("gradient_accumulation_steps", "overridden", OWN_STEP, _constant(1), "train.micro_batch", other=4),
    Row("managed_gradient_accumulation", "overridden", OWN_STEP, _constant(True), other=False),
    Row(
        "gradient_clipping", "recipe", "global norm; null in the recipe is 0, which never clips (DeepSpeed clips at 1.0 "
        "when the file is silent)", lambda f: f.train.max_grad_norm or 0.0, "train.max_grad_norm", other=0.3,
    ),
    Row("gradient_allreduce_op", "overridden", OWN_SUM, _constant("mean"), other="sum"),
    Row("prescale_gradients", "refused", OWN_SUM, harmless=(False,), other=True),
    Row("gradient_predivide_factor", "refused", OWN_SUM, harmless=(1, 1.0), other=2.0),
    Row("communication_data_type", "obeyed", "number format of gradients on their way", other="fp32"),
    Row("disable_allgather", "refused", NOT_READ, harmless=(False,), other=True),
    # --------------------------------------------------------------------------------------- optimizer and schedule
    Row(
        "optimizer.type", "recipe", "AdamW or SGD of torch", lambda f: OPTIMIZERS.get(f.train.optimizer.type, UNSAID),
        "train.optimizer.type", other="Lion", passes=False,
    ),
    Row("optimizer.params.lr", "recipe", "peak rate", lambda f: f.train.learning_rate, "train.learning_rate", other=0.5, passes=False),
    Row("optimizer.params.betas", "recipe", "of AdamW", _optimizer("betas"), "train.optimizer.beta1", other=[0.5, 0.5], passes=False),
    Row("optimizer.params.eps", "recipe", "of AdamW", _optimizer("epsilon"), "train.optimizer.epsilon", other=0.1, passes=False),
    Row(
        "optimizer.params.weight_decay", "recipe", "not on biases and norms", _optimizer("weight_decay"),
        "train.optimizer.weight_decay", other=0.7, passes=False,
    ),
    Row("optimizer.params.momentum", "recipe", "of SGD", _optimizer("momentum"), "train.optimizer.momentum", other=0.7, passes=False),
    Row("optimizer.params.adam_w_mode", "refused", "AdamW decays apart from gradients", harmless=(True,), other=False),
    Row("optimizer.params.torch_adam", "overridden", "the optimizer is torch's", other=False),
    Row("optimizer.params.*", "refused", "train.optimizer has no such setting", other={"amsgrad": True}),
    Row("optimizer.legacy_fusion", "refused", "the optimizer is torch's", harmless=(False,), other=True),
    Row("scheduler.*", "overridden", OWN_RATE, other={"type": "WarmupLR"}),
    Row("zero_allow_untested_optimizer", "overridden", "the optimizer is torch's, and tested here", _constant(True), other=False),
    Row(
        "zero_force_ds_cpu_optimizer", "overridden", "torch's fused optimizer runs on the CPU without compiling anything",
        _constant(False), other=True,
    ),
    # ------------------------------------------------------------------------------------------------ number format
    Row("bf16.enabled", "recipe", "weights in bf16, fp32 copies in the shards", _is("bf16"), "model.precision", other=True),
    Row("bf16.immediate_grad_update", "obeyed", "stage 1", other=True),
    Row("bf16.check_grad_overflow", "overridden", "what is not finite never changes a weight", _constant(True), other=False),
    Row("bf16.bf16_master_weights_and_grads", "refused", "checkpoints hold fp32 weights", harmless=(False,), other=True),
    Row("bf16.bf16_optimizer_states", "refused", "checkpoints hold fp32 state", harmless=(False,), other=True),
    Row("fp16.enabled", "recipe", "weights in fp16, fp32 copies in the shards", _is("fp16"), "model.precision", other=True),
    Row("fp16.auto_cast", "refused", "inputs are token ids", harmless=(False,), other=True),
    Row("fp16.loss_scale", "overridden", OWN_SCALE, _constant(1.0), other=128),
    Row("fp16.initial_scale_power", "overridden", OWN_SCALE, other=8),
    Row("fp16.loss_scale_window", "overridden", OWN_SCALE, other=100),
    Row("fp16.hysteresis", "overridden", OWN_SCALE, other=1),
    Row("fp16.consecutive_hysteresis", "overridden", OWN_SCALE, other=True),
    Row("fp16.min_loss_scale", "overridden", OWN_SCALE, other=2),
    Row("fp16.fp16_master_weights_and_grads", "refused", "checkpoints hold fp32 weights", harmless=(False,), other=True),
    Row("torch_autocast.*", "refused", "bf16 and fp16 say the number format", harmless=(OFF,), other={"enabled": True}),
    Row("data_types.grad_accum_dtype", "obeyed", "filled with fp32 under bf16", _accumulation, other="fp32"),
    Row(
        "data_types.param_dtype", "recipe", "as bf16 and fp16 say", lambda f: f.precision or UNSAID, "model.precision",
        other="fp16",
    ),
    Row("data_types.buffer_dtype", "obeyed", "number format of buffers", other="fp32"),
    Row("data_types.keep_in_fp32_modules", "obeyed", "buffers that stay in fp32", _constant("auto"), other=["rotary"]),
    # --------------------------------------------------------------------------------------------------------- ZeRO
    Row(
        "zero_optimization.stage", "recipe", "1, 2 or 3; the recipe's auto takes the file's", lambda f: _unless_auto(f.engine.zero_stage),
        "train.engine.zero_stage", other=3,
    ),
    Row("zero_optimization.contiguous_gradients", "obeyed", "gradients laid end to end; ours: true", _constant(True), other=False),
    Row("zero_optimization.overlap_comm", "obeyed", "messages during the backward pass; ours: true", _constant(True), other=False),
    Row("zero_optimization.reduce_scatter", "obeyed", "or all-reduce", _constant(True), other=False),
    Row(
        "zero_optimization.reduce_bucket_size", "obeyed", "elements per message; ours: 2e8, at stage 3 hidden size squared",
        _reduce_bucket, other=1_000_000,
    ),
    Row("zero_optimization.use_multi_rank_bucket_allreduce", "obeyed", "stages 1 and 2", other=False),
    Row("zero_optimization.allgather_bucket_size", "obeyed", "elements per message; ours: 2e8", _constant(BUCKET), other=1_000_000),
    Row("zero_optimization.allgather_partitions", "refused", NOT_READ, harmless=(True,), other=False),
    Row("zero_optimization.compute_grad_norm", "overridden", "the norm is told with each step", other=False),
    Row(
        "zero_optimization.round_robin_gradients", "refused", "DeepSpeed 0.19.8 then gathers weights from the wrong places, and "
        "checkpoints would be wrong", harmless=(False,), other=True,
    ),
    Row("zero_optimization.parameter_alignment", "obeyed", "stages 1 and 2", other=True),
    Row("zero_optimization.ignore_unused_parameters", "obeyed", "stage 2 with offloading", other=False),
    Row("zero_optimization.sub_group_size", "obeyed", "elements per update; stage 3", other=3000),
    Row(
        "zero_optimization.stage3_prefetch_bucket_size", "obeyed", "ours: 0.9 x hidden size squared", _of_hidden(0.9, 2), other=50_000,
    ),
    Row("zero_optimization.stage3_param_persistence_threshold", "obeyed", "ours: 10 x hidden size", _of_hidden(10, 1), other=0),
    Row("zero_optimization.stage3_model_persistence_threshold", "obeyed", "stage 3", other=100_000),
    Row("zero_optimization.stage3_max_live_parameters", "obeyed", "stage 3", other=1_000_000),
    Row("zero_optimization.stage3_max_reuse_distance", "obeyed", "stage 3", other=1_000_000),
    Row("zero_optimization.stage3_module_granularity_threshold", "obeyed", "stage 3", other=100),
    Row("zero_optimization.stage3_use_all_reduce_for_fetch_params", "obeyed", "stage 3", other=True),
    Row("zero_optimization.stage3_allgather_sequential", "obeyed", "stage 3", other=True),
    Row(
        "zero_optimization.stage3_gather_16bit_weights_on_model_save", "overridden",
        "weights are gathered whole and in fp32, whatever the file says", harmless=(True,), other=False,
    ),
    Row("zero_optimization.memory_efficient_linear", "obeyed", "stage 3", other=False),
    Row("zero_optimization.override_module_apply", "obeyed", "stage 3", other=False),
    Row("zero_optimization.log_trace_cache_warnings", "obeyed", "stage 3", other=True),
    Row("zero_optimization.enable_sanity_checks", "obeyed", "stage 3", other=True),
    Row("zero_optimization.leaf_module.*", "obeyed", "modules that are gathered as wholes; stage 3", other={"names": ["mlp"]}),
    Row(
        "zero_optimization.offload_optimizer.device", "recipe", "none or cpu, cpu on CUDA only; the recipe's auto takes the file's",
        _device_of("offload_optimizer"), "train.engine.offload_optimizer", other="cpu",
    ),
    Row("zero_optimization.offload_optimizer.pin_memory", "obeyed", "page-locked memory", other=False),
    Row("zero_optimization.offload_optimizer.ratio", "refused", UNTESTED, harmless=(1, 1.0), other=0.3),
    Row("zero_optimization.offload_optimizer.super_offload", "refused", UNTESTED, harmless=(False,), other=True),
    Row("zero_optimization.offload_optimizer.cpuadam_cores_perc", "refused", "for super_offload only", harmless=(0.8,), other=0.5),
    Row("zero_optimization.offload_optimizer.nvme_path", "refused", NO_NVME, harmless=(None,), other="/nvme"),
    Row("zero_optimization.offload_optimizer.buffer_count", "refused", "for nvme only", harmless=(4,), other=8),
    Row("zero_optimization.offload_optimizer.pipeline_read", "refused", "for nvme only", harmless=(False,), other=True),
    Row("zero_optimization.offload_optimizer.pipeline_write", "refused", "for nvme only", harmless=(False,), other=True),
    Row("zero_optimization.offload_optimizer.fast_init", "refused", "for nvme only", harmless=(False,), other=True),
    Row(
        "zero_optimization.offload_param.device", "recipe", "none or cpu, cpu on CUDA and at stage 3 only; the recipe's auto takes "
        "the file's", _device_of("offload_parameters"), "train.engine.offload_parameters", other="cpu",
    ),
    Row("zero_optimization.offload_param.pin_memory", "obeyed", "page-locked memory", other=False),
    Row("zero_optimization.offload_param.nvme_path", "refused", NO_NVME, harmless=(None,), other="/nvme"),
    Row("zero_optimization.offload_param.buffer_count", "refused", "for nvme only", harmless=(5,), other=8),
    Row("zero_optimization.offload_param.buffer_size", "refused", "for nvme only", harmless=(100_000_000,), other=8),
    Row("zero_optimization.offload_param.max_in_cpu", "refused", "for nvme only", harmless=(1_000_000_000,), other=8),
    Row("zero_optimization.load_from_fp32_weights", "overridden", OWN_FILES, harmless=(True,), other=False),
    Row("zero_optimization.elastic_checkpoint", "overridden", OWN_FILES, harmless=(False,), other=True),
    Row("zero_optimization.pipeline_loading_checkpoint", "overridden", OWN_FILES, harmless=(False,), other=True),
    Row("zero_optimization.cpu_offload", "refused", "its name is offload_optimizer.device now", harmless=(False,), other=True),
    Row("zero_optimization.cpu_offload_param", "refused", "its name is offload_param.device now", harmless=(False,), other=True),
    Row("zero_optimization.cpu_offload_use_pin_memory", "refused", "its name is pin_memory now", harmless=(False,), other=True),
    Row(
        "zero_optimization.stage3_gather_fp16_weights_on_model_save", "overridden",
        "weights are gathered whole and in fp32, whatever the file says", harmless=(True,), other=False,
    ),
    Row("zero_optimization.legacy_stage1", "refused", GONE, harmless=(False,), other=True),
    Row("zero_optimization.zero_hpz_partition_size", "refused", UNTESTED, harmless=(1,), other=2),
    Row("zero_optimization.zero_quantized_weights", "refused", UNTESTED, harmless=(False,), other=True),
    Row("zero_optimization.zero_quantized_nontrainable_weights", "refused", UNTESTED, harmless=(False,), other=True),
    Row("zero_optimization.zero_quantized_gradients", "refused", UNTESTED, harmless=(False,), other=True),
    Row("zero_optimization.zeropp_loco_param.*", "refused", GONE, other={"err_beta": 0.8}),
    Row("zero_optimization.mics_shard_size", "refused", GONE, harmless=(-1,), other=2),
    Row("zero_optimization.mics_hierarchical_params_gather", "refused", GONE, harmless=(False,), other=True),
    Row("zero_optimization.zenflow.*", "refused", UNTESTED, harmless=(None,), other={"topk_ratio": 0.1}),
    Row("zero_optimization.save_muon_momentum_buffer_in_memory", "refused", "for Muon only", harmless=(False,), other=True),
    # ------------------------------------------------------------------------------------- what is printed, measured
    Row("steps_per_print", "obeyed", "lines in the log of the processes", other=5),
    Row("wall_clock_breakdown", "obeyed", "times in the log of the processes", other=True),
    Row("memory_breakdown", "obeyed", "memory in the log of the processes", other=True),
    Row("dump_state", "obeyed", "the engine's settings in the log of the processes", other=True),
    Row("log_level", "obeyed", "of DeepSpeed's log", other="info"),
    Row("vocabulary_size", "obeyed", "a warning where it is no multiple of 8", other=1000),
    Row("disable_python_gc", "obeyed", "no garbage collection during training", other=True),
    Row("flops_profiler.enabled", "obeyed", "a profile of one step in the log of the processes", other=True),
    Row("flops_profiler.profile_step", "obeyed", "which step", other=2),
    Row("flops_profiler.module_depth", "obeyed", "how deep", other=2),
    Row("flops_profiler.top_modules", "obeyed", "how many", other=3),
    Row("flops_profiler.detailed", "obeyed", "with each module", other=False),
    Row("flops_profiler.output_file", "obeyed", "where it is written", other="profile.txt"),
    Row("flops_profiler.recompute_fwd_factor", "obeyed", "1 where activations are recomputed", other=1.0),
    Row("comms_logger.enabled", "obeyed", "messages are counted and timed", other=True),
    Row("comms_logger.verbose", "obeyed", "each message in the log", other=True),
    Row("comms_logger.prof_all", "obeyed", "all kinds", other=False),
    Row("comms_logger.prof_ops", "obeyed", "or these", other=["all_reduce"]),
    Row("comms_logger.debug", "obeyed", "with the caller", other=True),
    Row("timers.throughput.enabled", "obeyed", "examples per second in the log", other=False),
    Row("timers.throughput.synchronized", "obeyed", "the timer waits for the device", other=False),
    Row("tensorboard.enabled", "obeyed", "besides track", other=True),
    Row("tensorboard.output_path", "obeyed", "its folder", other="boards"),
    Row("tensorboard.job_name", "obeyed", "its name", other="mine"),
    Row("csv_monitor.enabled", "obeyed", "besides track", other=True),
    Row("csv_monitor.output_path", "obeyed", "its folder", other="tables"),
    Row("csv_monitor.job_name", "obeyed", "its name", other="mine"),
    Row("wandb.*", "refused", "trackers that leave the machine are the recipe's track", harmless=(OFF,), other={"enabled": True}),
    Row("comet.*", "refused", "trackers that leave the machine are the recipe's track", harmless=(OFF,), other={"enabled": True}),
    # ------------------------------------------------------------------------------------------ what tunesmith does
    Row("activation_checkpointing.*", "overridden", OWN_RECOMPUTATION, other={"partition_activations": True}),
    Row("checkpoint.*", "overridden", OWN_FILES, other={"tag_validation": "FAIL"}),
    Row("datastates_ckpt.*", "overridden", OWN_FILES, harmless=(False,), other={"host_cache_size": 1}),
    Row("dataloader_drop_last", "refused", OWN_ORDER, harmless=(False,), other=True),
    Row("data_efficiency.*", "refused", OWN_ORDER, harmless=(OFF,), other={"enabled": True}),
    Row("curriculum_learning.*", "refused", OWN_ORDER, harmless=(OFF,), other={"enabled": True}),
    Row("aio.*", "refused", NO_NVME, other={"block_size": 1}),
    Row("autotuning.*", "refused", "tunesmith plan chooses what fits", harmless=(OFF,), other={"enabled": True}),
    Row("compile.*", "refused", UNTESTED, harmless=({"deepcompile": False},), other={"deepcompile": True}),
    Row("hybrid_engine.*", "refused", "answers are generated by other stages", harmless=(OFF,), other={"enabled": True}),
    Row("weight_quantization.*", "refused", "for inference only", other={"post_init_quant": {}}),
    # --------------------------------------------------------------------------------------------- other parallelism
    Row("tensor_parallel.*", "refused", NO_OTHER_PARALLELISM, harmless=({"autotp_size": 0}, {"autotp_size": 1}), other={"autotp_size": 2}),
    Row("pipeline.*", "refused", NO_OTHER_PARALLELISM, other={"stages": 2}),
    Row("expert_parallel.*", "refused", NO_OTHER_PARALLELISM, harmless=(OFF,), other={"enabled": True}),
    Row("use_data_before_expert_parallelism", "refused", NO_OTHER_PARALLELISM, harmless=(False,), other=True),
    Row("sequence_parallel_size", "refused", NO_OTHER_PARALLELISM, harmless=(1,), other=2),
    Row("data_parallel_size", "refused", "it is train.processes", other=2),
    Row("seq_parallel_communication_data_type", "refused", NO_OTHER_PARALLELISM, other="fp32"),
    # -------------------------------------------------------------------------------------------------------- the past
    Row("bfloat16.*", "refused", "its name is bf16 now", harmless=(OFF,), other={"enabled": True}),
    Row("amp.*", "refused", GONE, harmless=(OFF,), other={"enabled": True}),
    Row("nebula.*", "refused", GONE, harmless=(OFF,), other={"enabled": True}),
    Row("elasticity.*", "refused", GONE, harmless=(OFF,), other={"enabled": True}),
    Row("compression_training.*", "refused", GONE, other={"weight_quantization": {}}),
    Row("quantize_training.*", "refused", GONE, harmless=(OFF,), other={"enabled": True}),
    Row("sparse_gradients", "refused", GONE, harmless=(False,), other=True),
    Row("sparse_attention.*", "refused", GONE, other={"mode": "fixed"}),
    Row("eigenvalue.*", "refused", GONE, harmless=(OFF,), other={"enabled": True}),
    Row("graph_harvesting", "refused", GONE, harmless=(False,), other=True),
    Row("progressive_layer_drop.*", "refused", GONE, harmless=(OFF,), other={"enabled": True}),
)  # fmt: skip
BY_KEY = {row.key: row for row in ROWS}

# Told to DeepSpeed where the recipe names no file; "auto" in a file becomes the same.
DEFAULTS = {
    1: ("contiguous_gradients", "overlap_comm", "reduce_bucket_size", "allgather_bucket_size"),
    2: ("contiguous_gradients", "overlap_comm", "reduce_bucket_size", "allgather_bucket_size"),
    3: (
        "contiguous_gradients", "overlap_comm", "reduce_bucket_size", "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
    ),
}  # fmt: skip
FILLED = ("data_types.grad_accum_dtype",)  # even where a file is silent


# --------------------------------------------------------------------------------------------------------- the file


def read_config(engine: DeepSpeed) -> dict[str, Any] | None:
    """The user's file as it is; None where the recipe names none.

    Raises FileError TRN-026 when it cannot be read, RecipeError TRN-027 when it is no JSON object.
    """
    if engine.config is None:
        return None
    path = Path(engine.config)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            "TRN-026",
            f"the DeepSpeed configuration {path} cannot be read: {error}",
            where="train.engine.config",
            expected="a JSON file in UTF-8",
            fix="check the path; it is relative to the recipe's folder. Or leave train.engine.config out",
        ) from error
    try:
        content = json.loads(text, object_pairs_hook=_each_key_once)
        if not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}")
    except ValueError as error:
        raise RecipeError(
            "TRN-027",
            f"{path} is no JSON object: {error}",
            where="train.engine.config",
            expected='{"zero_optimization": {"stage": 2}, ...}, each key once',
            fix="mend the file, or leave train.engine.config out",
        ) from error
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} is written twice")
        found[name] = value
    return found


# ------------------------------------------------------------------------------------------------------- its answer


def engine_config(user: Mapping[str, Any] | None, facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """What DeepSpeed is told, and what the user is told of it.

    Raises RecipeError TRN-030 with all problems at once: unknown keys (TRN-031), values that contradict the recipe
    (TRN-032), keys that are refused (TRN-033), offloading without CUDA (TRN-034).
    """
    answer = _Answer(replace(facts, stage=_stage(facts.engine, user)), user or {})
    for key, value in _leaves(user or {}):
        answer.take(key, value)
    answer.complete(has_file=user is not None)
    if answer.problems:
        count = len(answer.problems)
        raise RecipeError(
            "TRN-030",
            f"{facts.engine.config or 'train.engine'} asks for {count} thing{'s' * (count > 1)} that cannot be had",
            problems=answer.problems,
        )
    return answer.config, answer.notes


class _Answer:
    """Built key by key: config, what DeepSpeed is told; notes and problems, what the user is told."""

    def __init__(self, facts: Facts, user: Mapping[str, Any]) -> None:
        self.facts, self.user = facts, user
        self.config: dict[str, Any] = {}
        self.notes: list[str] = []
        self.problems: list[Problem] = []

    def take(self, key: str, value: Any) -> None:
        row = row_of(key)
        if row is None:
            guess = did_you_mean(key)
            fix = f"{guess}  (did you mean this?)" if guess else "remove it; docs/deepspeed.md lists all keys"
            self._refuse("TRN-031", "no key of DeepSpeed's configuration", "a key that DeepSpeed reads", fix, where=key)
        else:
            getattr(self, f"_{row.act}")(row, key, value)

    def complete(self, *, has_file: bool) -> None:
        """What holds whether it was written or not; then our own defaults, where there is no file."""
        for row in ROWS:
            if row.act in ("recipe", "overridden") and row.value and row.passes:
                self._put(row.key, row.value(self.facts), over=True)
        for key in FILLED:
            self._put(key, self._filled(BY_KEY[key]), over=False)
        stage = self.facts.stage
        self._put("zero_optimization.stage", stage, over=True)
        if not has_file:
            for name in DEFAULTS.get(stage, ()):
                self._put(f"zero_optimization.{name}", self._filled(BY_KEY[f"zero_optimization.{name}"]), over=False)
        self._check_stage(stage)
        self._check_offload(stage)

    # ------------------------------------------------------------------------------------------------------- acts

    def _obeyed(self, row: Row, key: str, value: Any) -> None:
        if value != AUTO:
            self._put(key, value, over=True)
        elif row.value is None:
            fix = f"leave {key} out, which takes DeepSpeed's default"
            self._refuse("TRN-036", 'nothing says what "auto" would be', "a value", fix, where=key)
        else:
            self._put(key, self._filled(row), over=True)

    def _recipe(self, row: Row, key: str, value: Any) -> None:
        assert row.value is not None, row
        ours = row.value(self.facts)
        if value == AUTO:
            return
        if isinstance(ours, _Unsaid) and row.passes:
            self._put(key, value, over=True)
        elif not _same(ours, value):
            said = "no such setting" if isinstance(ours, _Unsaid) else json.dumps(ours)
            self._refuse(
                "TRN-032",
                f"{json.dumps(value)} in the file, and the recipe says {said} ({row.key_of_recipe})",
                'equal values, or "auto" in the file',
                _as_override(row, value),
                where=key,
            )

    def _overridden(self, row: Row, key: str, value: Any) -> None:
        ours = row.value(self.facts) if row.value else None
        is_off = key.startswith("fp16.") and self.facts.precision != "fp16"
        if value == AUTO or value in row.harmless or (row.value and _same(ours, value)) or is_off:
            return
        held = f"{json.dumps(ours)} holds" if row.value else "it is left out"
        self.notes.append(f"DeepSpeed: {key} is {json.dumps(value)} in the file, and {held}: {row.why}")

    def _refused(self, row: Row, key: str, value: Any) -> None:
        section = row.key.removesuffix(".*")
        whole = _value_at(self.user, section)
        if value == AUTO or value in row.harmless or whole in row.harmless or _is_switched_off(row, whole):
            return
        self._refuse("TRN-033", f"{json.dumps(value)} is refused: {row.why}", "", f"remove {key}", where=key)

    # ------------------------------------------------------------------------------------------------------ checks

    def _check_stage(self, stage: Any) -> None:
        if stage not in (1, 2, 3):
            self._refuse(
                "TRN-035",
                f"{json.dumps(stage)} is no stage of ZeRO: without it each process has everything, as with engine ddp",
                "1, 2 or 3",
                "--set train.engine.type=ddp",
                where="zero_optimization.stage",
            )

    def _check_offload(self, stage: Any) -> None:
        for section, name in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_parameters")):
            device = _value_at(self.config, f"zero_optimization.{section}.device") or "none"
            where = f"train.engine.{name}" if self._said(name) else f"zero_optimization.{section}.device"
            if device == "none":
                self.config.get("zero_optimization", {}).pop(section, None)
            elif device != "cpu":
                told = f"{json.dumps(device)} is refused: {NO_NVME}"
                self._refuse("TRN-033", told, "cpu or none", f"{where}: cpu", where=where)
            elif self.facts.on_cpu:
                self._refuse(
                    "TRN-034",
                    "offloading moves memory from a GPU to the CPU, and this machine has no CUDA device",
                    "a CUDA device, or none: on a CPU everything lies in the CPU's memory already",
                    f"{where}: none",
                    where=where,
                )
            elif section == "offload_param" and stage != 3:
                self._refuse(
                    "TRN-037",
                    f"cpu at stage {stage}, which keeps all weights",
                    "stage 3",
                    f"{where}: none",
                    where=where,
                )

    def _said(self, name: str) -> bool:
        return getattr(self.facts.engine, name) != AUTO

    # -------------------------------------------------------------------------------------------------------- small

    def _filled(self, row: Row) -> Any:
        return row.value(self.facts) if row.value else UNSAID

    def _put(self, key: str, value: Any, *, over: bool) -> None:
        if isinstance(value, _Unsaid) or value is None:
            return
        node = self.config
        *above, last = key.split(".")
        for part in above:
            node = node.setdefault(part, {})
        if over or last not in node:
            node[last] = value

    def _refuse(self, code: str, what: str, expected: str, fix: str, *, where: str) -> None:
        self.problems.append(Problem(code, where, what, expected, fix))


def stage_of(engine: DeepSpeed) -> int:
    """The stage that will be: what the recipe and its file come to. Raises as `read_config` does."""
    return _stage(engine, read_config(engine))


def _stage(engine: DeepSpeed, user: Mapping[str, Any] | None) -> Any:
    """The recipe's stage, else the file's, else ours."""
    if engine.zero_stage != AUTO:
        return engine.zero_stage
    told = _value_at(user or {}, "zero_optimization.stage")
    return DEFAULT_STAGE if told in (None, AUTO) else told


def row_of(key: str) -> Row | None:
    """The row that speaks of a key: its own, or that of the nearest section above."""
    if key in BY_KEY:
        return BY_KEY[key]
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        row = BY_KEY.get(".".join([*parts[:length], "*"]))
        if row:
            return row
    return None


def did_you_mean(key: str) -> str | None:
    """The known key that a wrong one most likely meant: the same name elsewhere, or the nearest one."""
    known = [row.key.removesuffix(".*") for row in ROWS]
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    if same:
        return same[0]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if near:
        return near[0]
    names = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(last, list(names), n=1, cutoff=0.7)
    return names[near[0]] if near else None


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        row = BY_KEY.get(f"{key}.*")
        if isinstance(value, dict) and value and (row is None or row.act != "obeyed"):
            yield from _leaves(value, f"{key}.")
        elif value != {} or not any(row.key.startswith(f"{key}.") and row.key != f"{key}.*" for row in ROWS):
            yield key, value


def _value_at(node: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _is_switched_off(row: Row, whole: Any) -> bool:
    """{"enabled": false} asks for nothing, whatever stands beside it."""
    return OFF in row.harmless and isinstance(whole, Mapping) and whole.get("enabled") is False


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, str) and isinstance(theirs, str):
        alike = {"adam": "adamw", "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
        ours, theirs = ours.lower(), theirs.lower()
        return ours == alike.get(theirs, theirs)
    return ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool)


def _as_override(row: Row, value: Any) -> str:
    """The next move: the recipe's key with the file's value, where it can take it."""
    in_file = f'"{row.key.rpartition(".")[2]}": "auto" in the file'
    if row.key == "optimizer.params.betas" and isinstance(value, list) and len(value) == 2:
        return f"--set train.optimizer.beta1={value[0]} --set train.optimizer.beta2={value[1]}"
    if row.key == "optimizer.type":
        name = str(value).lower()
        return f"--set train.optimizer.type={name}" if name in ("adamw", "sgd") else in_file
    if row.key == "gradient_clipping" and not value:
        return f"--set {row.key_of_recipe}=null"
    if row.key_of_recipe == "model.precision":
        format = {True: row.key.partition(".")[0], False: "fp32"}.get(value, value)
        return f"--set model.precision={format}"
    return f"--set {row.key_of_recipe}={json.dumps(value)}" if isinstance(value, (int, float)) else in_file
