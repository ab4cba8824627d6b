"""Every engine trains the model that one process trains: gradients, trajectories, clipping, verdicts, resumes, shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradients
import pytest
import torch
from gloo import GlooPair
from safetensors.torch import load_file
from small_training import LORA, fill_dataset, small_training
from torch import Tensor

pytest.importorskip("deepspeed")

ENGINES = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    "zero1": "{type: deepspeed, zero_stage: 1}",
    "zero2": "{type: deepspeed, zero_stage: 2}",
    "zero3": "{type: deepspeed, zero_stage: 3}",
}
METHODS = {"full": ("full", 0.0, 10), "lora": ("lora", 0.0, 10), "lora with dropout": ("lora", 0.1, 3)}  # and steps
Once = Callable[[object, Callable[[], Any]], Any]


@pytest.fixture(scope="module")
def place(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("dataset")
    fill_dataset(folder)
    return {"model_dir": str(tiny_model_dir), "dataset_dir": str(folder)}


@pytest.fixture(scope="module")
def alone(place: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Some steps of one process, by method."""
    return {
        name: gradients.trajectory(**place, adapter=adapter, dropout=dropout, steps=steps)
        for name, (adapter, dropout, steps) in METHODS.items()
    }


@pytest.fixture(scope="module")
def once() -> Once:
    """What several tests compare with is made once: once(key, make)."""
    made: dict[object, Any] = {}

    def get(key: object, make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = make()
        return made[key]

    return get


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys() != set()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() != set()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_and_sgd_steps_are_those_of_one_process(
    gloo_pair: GlooPair, place: dict[str, str], alone: dict[str, Any], engine: str, method: str
) -> None:
    adapter, dropout, steps = METHODS[method]
    settings = {**place, "adapter": adapter, "dropout": dropout, "micro_batch": 1, "engine": ENGINES[engine]}
    settings["steps"] = steps
    first, second = gloo_pair.call("gradients:trajectory", **settings)
    one = alone[method]
    assert_close(first["gradients"], one["gradients"])
    assert_close(first["weights"], one["weights"])
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert all(a != b for a, b in zip(first["labels"], second["labels"], strict=True)), "label counts are unequal"
    assert any(value.abs().max() > 1e-3 for value in one["gradients"].values()), "there is something to compare"


@pytest.mark.parametrize("engine", ENGINES)
def test_clipping_is_on_at_the_recipes_norm_and_off_without_one(
    gloo_pair: GlooPair, place: dict[str, str], once: Once, engine: str
) -> None:
    clipped = {**place, "steps": 3, "overrides": ["train.max_grad_norm=0.25"]}
    one = once("clipped", lambda: gradients.trajectory(**clipped))
    two, _ = gloo_pair.call("gradients:trajectory", **clipped, engine=ENGINES[engine])
    assert_close(two["weights"], one["weights"])
    assert min(one["norms"]) > 1.0, "DeepSpeed clips at 1 when nothing is said: the trajectories above would show it"
    length = torch.stack([value.norm() for value in two["gradients"].values()]).norm()
    assert length == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("how", ["gradient", "loss"])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_finite_on_one_process_changes_nothing_anywhere(
    gloo_pair: GlooPair, place: dict[str, str], once: Once, engine: str, how: str
) -> None:
    settings = {**place, "adapter": "lora", "engine": ENGINES[engine]}
    first, second = gloo_pair.call("gradients:spoiled_step", how=how, **settings)
    assert not first["finite"]
    assert not second["finite"], "the verdict is one for all"
    assert_equal(first["after"], first["before"])
    clean, _ = once(("clean", engine), lambda: gloo_pair.call("gradients:without_second_step", **settings))
    assert_equal(first["again_clean"], clean)


WAYS = [
    ("zero1", "alone"), ("zero2", "alone"), ("zero3", "alone"), ("fsdp", "alone"),
    ("alone", "zero1"), ("alone", "zero2"), ("alone", "zero3"), ("alone", "fsdp"),
    ("fsdp", "zero3"), ("zero3", "fsdp"), ("zero2", "ddp"), ("ddp", "zero1"), ("zero1", "zero2"), ("zero3", "zero3"),
]  # fmt: skip


@pytest.fixture(scope="module")
def straight(place: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return gradients.some_steps(1, 6, **place)


@pytest.mark.parametrize(("writer", "reader"), WAYS, ids=lambda name: name)
def test_a_checkpoint_of_any_engine_goes_on_in_any_other(
    gloo_pair: GlooPair, place: dict[str, str], straight: tuple[dict, dict], once: Once, writer: str, reader: str
) -> None:
    def steps(engine: str, **asked: Any) -> Any:
        if engine == "alone":
            return gradients.some_steps(**asked, **place)
        return gloo_pair.call("gradients:some_steps", **asked, **place, engine=ENGINES[engine])[0]

    saved = once(("saved", writer), lambda: steps(writer, first=1, last=3))
    weights, state = steps(reader, first=4, last=6, saved=saved)
    assert all(value.dtype == torch.float32 for value in (*saved[0].values(), *saved[1].values()))
    assert_close(weights, straight[0], tolerance=2e-5)
    assert_close(state, straight[1], tolerance=2e-5)


UNCLIPPED = ("train.max_grad_norm=null",)  # the norm that clipping divides by is rounded to float32


@pytest.mark.parametrize("quantisation", ["none", "nf4", "int8"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_in_float64_nothing_is_left_of_the_differences(
    gloo_pair: GlooPair, place: dict[str, str], once: Once, engine: str, quantisation: str
) -> None:
    """What float32 leaves between an engine and one process is rounding: a state or a weight that passes through another
    number format would not shrink with it (docs/decisions/engine-tolerances.md)."""
    if quantisation != "none":
        pytest.importorskip("bitsandbytes")
    settings = {**place, "adapter": "full" if quantisation == "none" else "lora", "quantisation": quantisation}
    settings |= {"micro_batch": 1, "precision": "fp64"}
    adamw = {**settings, "adamw": UNCLIPPED}
    one = once(("trajectory", quantisation), lambda: gradients.trajectory(3, **settings))
    straight, _ = once(("straight", quantisation), lambda: gradients.some_steps(1, 4, **adamw))
    two, _ = gloo_pair.call("gradients:trajectory", steps=3, **settings, engine=ENGINES[engine])
    saved, _ = gloo_pair.call("gradients:some_steps", first=1, last=2, **adamw, engine=ENGINES[engine])
    resumed, _ = gradients.some_steps(3, 4, saved=saved, **adamw)
    for found, expected in (
        (two["gradients"], one["gradients"]),
        (two["weights"], one["weights"]),
        (resumed, straight),
    ):
        assert found.keys() == expected.keys() != set()
        for name, value in expected.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(found[name], value, atol=1e-12, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_each_process_holds_its_shard_only(
    gloo_pair: GlooPair, place: dict[str, str], tmp_path: Path, adapter: str
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    engines = {**ENGINES, "zero3": f"{{type: deepspeed, config: {file}}}"}
    sharded = {
        "ddp": (),
        "fsdp": ("trained", "frozen", "state"),
        "zero1": ("state",),
        "zero2": ("state",),
        "zero3": ("trained", "frozen", "state"),
    }
    for engine, parts in sharded.items():
        held = gloo_pair.call("gradients:held_numbers", **place, adapter=adapter, engine=engines[engine])
        whole = {
            "trained": held[0]["all_trained"],
            "frozen": held[0]["all_frozen"],
            "state": 2 * held[0]["all_trained"],
        }
        assert (whole["frozen"] > 0) == (adapter == "lora")
        for part, numbers in whole.items():
            for one in held:
                if part in parts:  # half of it, and what makes shards equally long
                    assert one[part] <= numbers / 2 + 300, f"{engine}: {part} is not sharded"
                else:
                    assert one[part] == numbers, f"{engine}: {part} is whole on every process"


@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_are_the_same_on_all_processes_after_some_steps(
    gloo_pair: GlooPair, place: dict[str, str], once: Once, engine: str
) -> None:
    settings = {**place, "adapter": "lora", "steps": 4}
    one = once("logits", lambda: gradients.logits_after(**settings))
    first, second = gloo_pair.call("gradients:logits_after", **settings, engine=ENGINES[engine])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one, atol=1e-5, rtol=1e-5)
    before = once("logits before", lambda: gradients.logits_after(**{**settings, "steps": 0}))
    assert (one - before).abs().max() > 1e-2, "the adapter has moved"


@pytest.mark.parametrize("engine", ["fsdp", "zero1", "zero2", "zero3"])
def test_a_process_without_examples_takes_part(
    gloo_pair: GlooPair, place: dict[str, str], once: Once, engine: str
) -> None:
    settings = {**place, "steps": 2, "overrides": ["train.batch_size=1"]}
    one = once("one example", lambda: gradients.trajectory(**settings))
    first, second = gloo_pair.call("gradients:trajectory", **settings, engine=ENGINES[engine])
    assert second["labels"] == [0.0, 0.0]
    assert_close(first["weights"], one["weights"])


@pytest.mark.parametrize("engine", ["fsdp", "zero1", "zero2", "zero3"])
def test_in_bf16_gradients_are_near_and_weights_are_kept_in_fp32(
    gloo_pair: GlooPair, place: dict[str, str], once: Once, engine: str
) -> None:
    settings = {**place, "adapter": "lora", "steps": 2, "precision": "bf16", "micro_batch": 1}
    one = once("bf16", lambda: gradients.trajectory(**settings))
    two, _ = gloo_pair.call("gradients:trajectory", **settings, engine=ENGINES[engine])
    for name, expected in one["gradients"].items():
        assert (two["gradients"][name] - expected).norm() < 0.03 * expected.norm(), name
    weights = two["weights"].values()
    assert all(value.dtype == torch.float32 for value in weights)
    assert all(not torch.equal(value.bfloat16().float(), value) for value in weights)


@pytest.mark.parametrize("stage", [2, 3])
def test_keys_of_a_file_that_are_obeyed_change_no_gradient(
    gloo_pair: GlooPair, place: dict[str, str], alone: dict[str, Any], tmp_path: Path, stage: int
) -> None:
    """All obeyed keys at once, each away from its default; what they write goes to a folder of its own."""
    from tunesmith.stages.train.engines.deepspeed_config import ROWS

    # pin_memory is for offloading; the others make each module's pass wait for the garbage collector or fill the log.
    left_out = ("pin_memory", "memory_breakdown", "comms_logger.verbose", "dump_state", "log_level")
    content: dict[str, Any] = {"zero_optimization": {"stage": stage}}
    for row in ROWS:
        if row.act != "obeyed" or row.key.endswith(left_out) or ("stage3" in row.key and stage != 3):
            continue
        node, value = content, row.other
        *above, last = row.key.removesuffix(".*").split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = str(tmp_path / value) if last in ("output_path", "output_file") else value
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    settings = {**place, "adapter": "lora", "micro_batch": 1, "engine": f"{{type: deepspeed, config: {file}}}"}
    first, _ = gloo_pair.call("gradients:trajectory", **settings)
    assert_close(first["gradients"], alone["lora"]["gradients"])
    assert_close(first["weights"], alone["lora"]["weights"])
    assert (tmp_path / "profile.txt").exists(), "the profiler was obeyed"
    assert list(tmp_path.rglob("*.csv")), "the monitor was obeyed"


# ---------------------------------------------------------------------------------------------------------- the stage

STAGE = ["train.max_steps=6", "train.evaluate_every=3", "train.save_every=2", "train.micro_batch=auto"]
METHOD = {"full": [], "lora": [LORA]}


@pytest.fixture(scope="module")
def by_one(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, dict[str, Tensor]]]:
    found = {}
    for name, method in METHOD.items():
        training = small_training(tmp_path_factory.mktemp("one"), tiny_model_dir, [*STAGE, *method])
        (path,) = training.train().path.glob("*model.safetensors")
        found[name] = (training, load_file(path))
    return found


@pytest.mark.parametrize(
    ("engine", "method"), [("fsdp", "full"), ("fsdp", "lora"), ("zero2", "full"), ("zero3", "full"), ("zero3", "lora")]
)
def test_the_stage_stopped_on_one_process_goes_on_and_ends_as_one_process_does(
    gloo_pair: GlooPair, tiny_model_dir: Path, tmp_path: Path, by_one: dict[str, Any], engine: str, method: str
) -> None:
    settings = [*STAGE, *METHOD[method], f"train.engine={ENGINES[engine]}"]
    training = small_training(tmp_path, tiny_model_dir, settings)
    call = {"workspace": str(tmp_path), "stage_key": "abc"}
    assert gloo_pair.call("gradients:train_stage", **call, stop_rank=1, stop_step=2) == ["stopped", "stopped"]
    folder, nothing = gloo_pair.call("gradients:train_stage", **call)
    assert nothing is None
    one, weights = by_one[method]
    (path,) = Path(folder).glob("*model.safetensors")
    found = load_file(path)
    assert_close(found, weights, tolerance=5e-5)
    assert all(value.abs().max() > 0 for value in found.values()), "nothing is empty"
    for name in ("train/loss", "validation/loss"):
        assert training.values(name).keys() == one.values(name).keys() != set()
        for step, value in one.values(name).items():
            assert training.values(name)[step] == pytest.approx(value, rel=1e-4)
    assert 3 in training.values("train/resumed").values(), "stopped after step 2, it finished step 3 and saved"
    for other in ("config.json", "adapter_config.json"):
        ours, theirs = (
            Path(folder) / other,
            one.run.store.find("Model" if method == "full" else "Adapter", "abc").path / other,
        )
        assert ours.exists() == theirs.exists()
        assert not ours.exists() or json.loads(ours.read_bytes()) == json.loads(theirs.read_bytes())
