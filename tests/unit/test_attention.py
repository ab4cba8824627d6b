"""Attention that is timed: once per machine, versions and shapes; kept by the run; shown by plan, doctor and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_training import small_training
from test_planner import H200, LAPTOP, LLAMA_1B, STATISTICS, recipe

from tunesmith import api, planner
from tunesmith.modeling.attention import measure
from tunesmith.planner import attention
from tunesmith.planner.attention import AttentionClass, attention_class, best
from tunesmith.planner.shapes import Shape
from tunesmith.runs.events import Event
from tunesmith.stages.train import speed

CPU = torch.device("cpu")
ROWS = ["train.packing=off", "train.max_steps=4", "train.save_every=2"]


def asked(layout: str = "rows", names: tuple[str, ...] = ("sdpa", "eager"), length: int = 32) -> AttentionClass:
    return AttentionClass("this one", 4, 2, 16, length, layout, names)


@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_what_is_timed_really_runs(layout: str) -> None:
    names = ("sdpa", "eager") if layout == "rows" else ("sdpa",)
    found = measure(asked(layout, names), CPU, "fp32")
    assert set(found) == set(names)
    assert all(0 < ms < 1000 for ms in found.values())


def test_timing_draws_nothing_that_anything_else_depends_on() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measure(asked(), CPU, "fp32")
    assert torch.equal(torch.rand(2), expected)


def test_what_fails_at_these_shapes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("head_dim")

    monkeypatch.setitem(speed.measure.__globals__["_IMPLEMENTATIONS"], "sdpa", broken)
    assert set(measure(asked(), CPU, "fp32")) == {"eager"}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"sdpa": 2.0, "eager": 1.0}, "eager"),
        ({"sdpa": 1.05, "eager": 1.0}, "sdpa"),
        ({"sdpa": 1.0, "eager": 3.0}, "sdpa"),
        ({"sdpa": 1.4, "flash_attention_2": 1.0, "flash_attention_3": 0.95}, "flash_attention_3"),
        ({"sdpa": 1.0, "flash_attention_2": 1.5}, "sdpa"),
    ],
)
def test_the_fastest_is_taken_and_noise_does_not_decide(times: dict[str, float], expected: str) -> None:
    assert best(times) == expected


def test_a_gpu_with_packages_has_more_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda name: object())

    def names(capability: float, precision: str = "bf16", **more: object) -> tuple[str, ...]:
        return attention_class(
            recipe(*more.get("overrides", ())), Shape.of({**LLAMA_1B, **more.get("config", {})}), 300, machine="GPU",
            on_cpu=False, precision=precision, capability=capability,
        ).names  # fmt: skip

    assert names(9.0) == ("flash_attention_3", "flash_attention_2", "sdpa"), "eager takes no documents end to end"
    assert names(8.0) == ("flash_attention_2", "sdpa")
    assert names(9.0, "fp32") == ("sdpa",)
    assert names(8.0, overrides=["train.packing=off"]) == ("flash_attention_2", "sdpa", "eager")
    assert names(9.0, config={"model_type": "gemma2"}) == ("eager",)


def test_a_training_times_once_and_the_next_one_takes_that(tiny_model_dir: Path, tmp_path: Path) -> None:
    first = small_training(tmp_path, tiny_model_dir, ROWS)
    notes = first.train().notes
    (told,) = first.values("train/attention").values()
    assert told["source"] == "timed now"
    assert told["picked"] == notes["attention"] == best(told["milliseconds"])
    assert notes["attention_ms"] == told["milliseconds"]
    assert set(told["milliseconds"]) == {"sdpa", "eager"}

    other = "eager" if told["picked"] == "sdpa" else "sdpa"
    kept = {key: {told["picked"]: 9.0, other: 1.0} for key in attention.read(tmp_path)}
    (tmp_path / attention.FILE).write_text(json.dumps(kept))
    second = small_training(tmp_path, tiny_model_dir, [*ROWS, "seed=18"])
    second.run.stage_key = "second"
    assert second.train().notes["attention"] == other, "what is written there decides, and nothing is timed"
    assert [told["source"] for told in second.values("train/attention").values()] == ["timed before"]

    (tmp_path / attention.FILE).write_text("torn {")
    third = small_training(tmp_path, tiny_model_dir, [*ROWS, "seed=19"])
    third.run.stage_key = "third"
    third.train()
    assert [told["source"] for told in third.values("train/attention").values()] == ["timed now"]
    assert attention.read(tmp_path), "and the file is whole again"


class Killed(BaseException):
    """Passes every handler, as SIGKILL would."""


def killing(event: Event) -> None:
    if (event.name, event.step) == ("train/grad_norm", 3):
        raise Killed


def test_a_resumed_run_keeps_what_it_began_with(tiny_model_dir: Path, tmp_path: Path) -> None:
    straight = small_training(tmp_path / "straight", tiny_model_dir, ROWS)
    made = straight.train()
    killed = small_training(tmp_path / "killed", tiny_model_dir, [*ROWS])
    (tmp_path / "killed" / attention.FILE).write_bytes((tmp_path / "straight" / attention.FILE).read_bytes())
    killed.run.listeners.append(killing)
    with pytest.raises(Killed):
        killed.train()
    picked = made.notes["attention"]
    other = "eager" if picked == "sdpa" else "sdpa"
    turned = {key: {picked: 9.0, other: 1.0} for key in attention.read(tmp_path / "killed")}
    (tmp_path / "killed" / attention.FILE).write_text(json.dumps(turned))
    result = killed.again().train()
    assert result.notes["attention"] == picked
    assert (result.path / "model.safetensors").read_bytes() == (made.path / "model.safetensors").read_bytes()


def test_what_can_only_be_one_is_not_timed(tiny_model_dir: Path, tmp_path: Path) -> None:
    packed = small_training(tmp_path, tiny_model_dir, ["train.max_steps=1"])
    notes = packed.train().notes
    assert (notes["attention"], notes["layout"], notes["attention_ms"]) == ("sdpa", "packed", {})
    assert not packed.values("train/attention")
    assert not (tmp_path / attention.FILE).exists()


# ------------------------------------------------------------------------------------------------- plan, doctor, report


def planned(*overrides: str, workspace: Path | None = None, hardware=LAPTOP) -> dict[str, dict]:
    made = planner.plan(recipe(*overrides), LLAMA_1B, statistics=STATISTICS, hardware=hardware, workspace=workspace)
    for switch in made.switches:
        assert switch.why in made.to_text()
    return {switch["name"]: switch for switch in made.to_json()["switches"]}


def test_the_plan_shows_each_switch_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned()
    assert set(found) == {"attention", "compile", "kernels", "optimizer", "loss", "cache"}
    assert (found["attention"]["state"], found["attention"]["why"]) == ("sdpa", "the only one here that packs")
    assert found["compile"]["state"] == "off"
    assert found["kernels"]["state"] == "torch"
    assert "no GPU" in found["kernels"]["why"]
    assert found["optimizer"]["state"] == "fused"
    assert found["loss"]["state"] == "chunked"
    assert planned("model.attention=eager")["attention"]["why"] == "as the recipe says"
    assert planned("train.optimizer=sgd")["optimizer"]["state"] == "sgd"
    assert planned("evaluate.cache=static")["cache"]["state"] == "static"
    assert planned("train.engine=fsdp")["loss"]["state"] == "whole"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert planned("train.compile=regional")["compile"]["state"] == "refused"
    assert "recomputed" in planned("train.compile=regional", "train.gradient_checkpointing=on")["compile"]["why"]
    monkeypatch.setattr("tunesmith.planner.switches.find_spec", lambda name: object())
    assert planned(hardware=H200)["kernels"]["state"] == "liger"
    assert planned("train.kernels=off", hardware=H200)["kernels"]["state"] == "torch"


def test_the_plan_finds_what_was_timed(tmp_path: Path) -> None:
    asked_for = ("train.packing=off", "data.max_tokens=300")
    before = planned(*asked_for, workspace=tmp_path)["attention"]
    assert (before["state"], before["why"]) == ("auto", "sdpa and eager are timed before step 1")
    kind = attention_class(
        recipe(*asked_for), Shape.of(LLAMA_1B), 300, machine="CPU x 2 threads, fp32", on_cpu=True, precision="fp32"
    )
    attention.remember(tmp_path, kind, {"sdpa": 2.0, "eager": 1.0})
    after = planned(*asked_for, workspace=tmp_path)["attention"]
    assert after["state"] == "eager"
    assert after["why"].endswith("sdpa 2.00 ms, eager 1.00 ms")


def test_chunks_of_logits_take_less_room_in_the_plan() -> None:
    def logits(*overrides: str) -> float:
        made = planner.plan(
            recipe("train.micro_batch=8", "data.max_tokens=2048", "train.gradient_checkpointing=on", *overrides),
            LLAMA_1B, statistics=None, hardware=H200,
        )  # fmt: skip
        return made.figures["peak_memory"].value

    whole = logits("adapter.targets=[q_proj, lm_head]")
    assert logits("adapter.targets=[q_proj]") < whole / 2


def test_doctor_says_what_this_machine_has_for_speed(tmp_path: Path) -> None:
    attention.remember(tmp_path, asked(), {"sdpa": 2.0, "eager": 1.0})
    found = api.doctor(workspace=tmp_path)
    assert found["attention"][:2] == ["eager", "sdpa"]
    ((key, timed),) = found["attention_timed"].items()
    assert timed["picked"] == "eager"
    assert "4/2 heads of 16" in key
    assert found["compile"]["trouble"] or Path(found["compile"]["compiler"]).exists()
    assert found["liger"]["trouble"]
    assert found["fused_optimizer"] is True
    assert found["bf16"].startswith(("native", "emulated"))
    assert found["threads"] >= 1
