"""A user's DeepSpeed file: each row of the table does what it says, and DeepSpeed reads what it is handed."""

from __future__ import annotations

import copy
import json
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import FileError, RecipeError
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.tree import Train
from tunesmith.stages.train.engines.deepspeed_config import (
    BUCKET,
    DEFAULTS,
    ROWS,
    Facts,
    Row,
    engine_config,
    read_config,
)

OBEYED = [row for row in ROWS if row.act == "obeyed"]
OFFLOADED = {
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
}


def train(*overrides: str) -> Train:
    return parse_recipe("data: {sources: rows.jsonl}", ["train.engine.type=deepspeed", *overrides]).train


def facts(*overrides: str, precision: str = "fp32", on_cpu: bool = False) -> Facts:
    return Facts(train(*overrides), precision, world_size=2, hidden_size=64, on_cpu=on_cpu)


def nested(key: str, value: Any, **beside: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of "a.b" or "a.b.*"."""
    content: dict[str, Any] = copy.deepcopy(beside)
    node = content
    *above, last = key.removesuffix(".*").split(".")
    for part in above:
        node = node.setdefault(part, {})
    node[last] = value
    return content


def at(config: Any, key: str) -> Any:
    for part in key.removesuffix(".*").split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def told(user: dict[str, Any] | None, known: Facts) -> RecipeError:
    with pytest.raises(RecipeError, match="TRN-03") as caught:
        engine_config(user, known)
    return caught.value


# ------------------------------------------------------------------------------------------------------ row by row


@pytest.mark.parametrize("row", OBEYED, ids=lambda row: row.key)
def test_an_obeyed_key_reaches_the_configuration_as_it_is(row: Row) -> None:
    config, notes = engine_config(nested(row.key, row.other, **OFFLOADED), facts())
    assert at(config, row.key) == row.other
    assert notes == []


@pytest.mark.parametrize("row", [row for row in OBEYED if not row.key.endswith("*")], ids=lambda row: row.key)
def test_auto_of_an_obeyed_key_is_filled_or_refused(row: Row) -> None:
    if row.value is None:
        assert f"TRN-036 {row.key}" in str(told(nested(row.key, "auto"), facts()))
        return
    config, _ = engine_config(nested(row.key, "auto"), facts(precision="bf16"))
    filled = at(config, row.key)
    assert filled not in (None, "auto") or row.key.endswith("keep_in_fp32_modules"), (
        "the word itself is DeepSpeed's own"
    )


@pytest.mark.parametrize("row", [row for row in ROWS if row.act == "recipe"], ids=lambda row: row.key)
def test_a_key_that_the_recipe_decides_is_filled_and_never_contradicts_it(row: Row) -> None:
    sgd = ["train.optimizer={type: sgd, momentum: 0.25}"] if row.key.endswith("momentum") else []
    explicit = {
        "zero_optimization.stage": "zero_stage=2",
        "zero_optimization.offload_optimizer.device": "offload_optimizer=none",
    }
    explicit["zero_optimization.offload_param.device"] = "offload_parameters=none"
    known = facts(*sgd, *([f"train.engine.{explicit[row.key]}"] if row.key in explicit else []))
    assert row.value is not None
    ours = row.value(known)
    config, notes = engine_config(nested(row.key, "auto"), known)
    assert notes == []
    same, _ = engine_config(nested(row.key, ours), known)
    assert same == config
    if row.passes and ours != "none":
        assert at(config, row.key) == ours
    assert not row.passes or row.key != "train_batch_size"
    error = told(nested(row.key, row.other), known)
    assert f"TRN-032 {row.key}: {json.dumps(row.other)} in the file" in str(error)
    assert row.key_of_recipe in str(error)


@pytest.mark.parametrize("row", [row for row in ROWS if row.act == "overridden"], ids=lambda row: row.key)
def test_an_overridden_key_is_told_with_its_reason(row: Row) -> None:
    known = facts(precision="fp16" if row.key.startswith("fp16") else "fp32")
    config, notes = engine_config(nested(row.key, row.other), known)
    (note,) = notes
    assert row.key.removesuffix(".*") in note
    assert row.why in note
    ours = row.value(known) if row.value else None
    assert at(config, row.key) == ours != row.other
    for value in ("auto", *row.harmless):
        assert engine_config(nested(row.key, value), known)[1] == []


@pytest.mark.parametrize("row", [row for row in ROWS if row.act == "refused"], ids=lambda row: row.key)
def test_a_refused_key_is_refused_by_name_unless_it_asks_for_nothing(row: Row) -> None:
    section = row.key.removesuffix(".*")
    error = told(nested(row.key, row.other), facts())
    assert f"TRN-033 {section}" in str(error)
    assert row.why in str(error)
    for value in row.harmless:
        config, notes = engine_config(nested(row.key, value), facts())
        assert at(config, section) is None
        assert notes == []


def test_settings_of_fp16_are_no_matter_without_fp16() -> None:
    assert (
        engine_config({"fp16": {"enabled": "auto", "loss_scale": 0, "hysteresis": 2}}, facts(precision="bf16"))[1] == []
    )


# ----------------------------------------------------------------------------------------------------- whole files

FROM_TRANSFORMERS = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9, "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000, "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
}  # fmt: skip


def test_the_file_of_transformers_own_docs_is_taken_as_it_is() -> None:
    config, notes = engine_config(FROM_TRANSFORMERS, facts("train.max_grad_norm=0.5", precision="bf16"))
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == (3, "cpu", "cpu")
    assert (zero["reduce_bucket_size"], zero["stage3_param_persistence_threshold"]) == (64 * 64, 640)
    assert (config["gradient_clipping"], config["bf16"]["enabled"], config["fp16"]["enabled"]) == (0.5, True, False)
    assert [note for note in notes if "scheduler.type" in note] == notes


def test_without_a_file_stage_2_has_our_own_buckets() -> None:
    config, notes = engine_config(None, facts())
    zero = config["zero_optimization"]
    assert zero == {
        "stage": 2, "contiguous_gradients": True, "overlap_comm": True, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET,
    }  # fmt: skip
    assert BUCKET == 2e8
    assert notes == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_a_file_leaves_out_is_deepspeeds_own_default_but_for_what_is_learned(stage: int) -> None:
    config, _ = engine_config(
        {}, facts(f"train.engine.zero_stage={stage}", "train.max_grad_norm=null", precision="bf16")
    )
    assert config["zero_optimization"] == {"stage": stage}
    assert config["gradient_clipping"] == 0.0, "silence would clip at 1.0"
    assert config["data_types"]["grad_accum_dtype"] == "fp32"
    assert DEFAULTS[stage]


def test_all_problems_come_at_once_each_with_its_next_move() -> None:
    user = {
        "zero_optimisation": {"stage": 2}, "gradient_clipping": 0, "optimizer": {"type": "Lion", "params": {"betas": [0.8, 0.9]}},
        "bf16": {"enabled": True}, "amp": {"enabled": True},
    }  # fmt: skip
    error = told(user, facts())
    assert [problem.code for problem in error.problems] == [
        "TRN-031",
        "TRN-032",
        "TRN-032",
        "TRN-032",
        "TRN-032",
        "TRN-033",
    ]
    for move in (
        "zero_optimization.stage  (did you mean this?)", "--set train.max_grad_norm=null", '"type": "auto" in the file',
        "--set train.optimizer.beta1=0.8 --set train.optimizer.beta2=0.9", "--set model.precision=bf16", "remove amp.enabled",
    ):  # fmt: skip
        assert f"try: {move}" in str(error)


def test_offloading_is_refused_by_name_on_a_cpu() -> None:
    by_file = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    for user, overrides in ((by_file, []), (None, ["train.engine.offload_optimizer=cpu"])):
        error = told(user, facts(*overrides, on_cpu=True))
        assert "TRN-034" in str(error)
        assert "CUDA" in str(error)
        engine_config(user, facts(*overrides, on_cpu=False))


def test_the_recipe_and_the_file_may_not_name_two_stages_or_devices() -> None:
    user = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    error = told(user, facts("train.engine.zero_stage=2", "train.engine.offload_optimizer=none"))
    assert [problem.code for problem in error.problems] == ["TRN-032", "TRN-032"]
    assert "TRN-035" in str(told({"zero_optimization": {"stage": 0}}, facts()))
    assert "TRN-037" in str(told({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, facts()))
    assert "TRN-033" in str(told({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, facts()))


@pytest.mark.parametrize(
    ("text", "code"), [("{", "TRN-027"), ("[1]", "TRN-027"), ('{"bf16": {}, "bf16": {}}', "TRN-027"), (None, "TRN-026")]
)
def test_a_file_that_is_no_json_object_is_answered(tmp_path: Path, text: str | None, code: str) -> None:
    file = tmp_path / "ds.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises((RecipeError, FileError), match=code):
        read_config(train(f"train.engine.config={file}").engine)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- DeepSpeed


@pytest.fixture(scope="module")
def deepspeed() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("deepspeed")


def parsed(config: dict[str, Any]) -> dict[str, Any]:
    """What DeepSpeed's own reader makes of a configuration, as plain data."""
    from deepspeed.runtime.config import DeepSpeedConfig

    return {
        name: plain(value)
        for name, value in vars(DeepSpeedConfig(copy.deepcopy(config))).items()
        if name != "_param_dict"
    }


def plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if hasattr(value, "__dict__"):
        return plain(vars(value))
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("row", OBEYED, ids=lambda row: row.key)
def test_deepspeed_reads_what_is_obeyed(deepspeed: Any, row: Row) -> None:
    """So that no row hands a key to a reader that does not exist, and offloading reaches the engine."""
    beside: dict[str, Any] = dict(OFFLOADED)
    if row.key.startswith("comms_logger."):
        beside["comms_logger"] = {}
    without, _ = engine_config(beside, facts())
    with_it, _ = engine_config(nested(row.key, row.other, **beside), facts())
    if row.key == "vocabulary_size":
        pytest.skip("read for a warning only")
    assert parsed(with_it) != parsed(without)


def test_offloading_reaches_deepspeed(deepspeed: Any) -> None:
    config, _ = engine_config(
        None, facts("train.engine={type: deepspeed, zero_stage: 3, offload_optimizer: cpu, offload_parameters: cpu}")
    )
    zero = parsed(config)["zero_config"]
    assert (zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == ("cpu", "cpu")


def test_every_key_that_deepspeed_knows_has_a_row(deepspeed: Any) -> None:
    """Fails when another version of DeepSpeed brings keys that the table does not speak of."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    from tunesmith.stages.train.engines.deepspeed_config import row_of

    known = {
        "zero_optimization": DeepSpeedZeroConfig, "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig, "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config, "comms_logger": CommsLoggerConfig, "tensorboard": TensorBoardConfig, "csv_monitor": CSVConfig,
    }  # fmt: skip
    names = {
        f"{section}.{field.alias or name}"
        for section, model in known.items()
        for name, field in model.model_fields.items()
    }
    sections = {"zero_optimization.offload_param", "zero_optimization.offload_optimizer"}
    assert sorted(name for name in names - sections if row_of(name) is None) == []


def test_the_patch_that_compiles_nothing_still_finds_what_it_patches(deepspeed: Any) -> None:
    """Fails when DeepSpeed has changed: then look whether the patch can go."""
    import inspect
    from importlib import import_module

    from tunesmith.stages.train.engines.patches import compile_nothing

    backend = import_module("deepspeed.comm.torch")
    assert "build_shm_op()" in inspect.getsource(backend.TorchBackend.__init__)
    kept = backend.build_shm_op
    try:
        compile_nothing()
        assert backend.build_shm_op() is None
    finally:
        backend.build_shm_op = kept
