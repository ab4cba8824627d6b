"""What a step may meet and must not be changed by: slices of the harnesses, and the proof that each of them can see."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from gloo import GlooPair

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from reliability import memory, nonfinite, processes, truth
from reliability.faults import verdicts_read_late
from reliability.frame import Budget

pytest.importorskip("deepspeed")


def assert_held(result: dict[str, Any], at_least: int) -> None:
    assert result["failures"] == []
    assert result["held"] == result["tried"] >= at_least


# ---------------------------------------------------------------------------------------------------- not finite


def faults() -> list[nonfinite.Case]:
    """Each place and kind once, each way of reading and each method several times, and what lies in weights and rows."""
    chosen = [
        nonfinite.Case("gradient", "nan", 3, True, "full", True),
        nonfinite.Case("last activation", "inf", 5, False, "lora", True),
        nonfinite.Case("told loss", "-inf", 1, False, "full", False),
        nonfinite.Case("loss", "too large to square", 7, True, "lora", False),
        nonfinite.Case("embedding row", "inf", 0, True, "full", False),
        nonfinite.Case("trained weight", "nan", 0, True, "full", True),
    ]
    everything = list(nonfinite.all_cases())
    assert len(everything) > 600
    assert set(chosen) <= set(everything)
    return chosen


def test_what_is_not_finite_changes_no_weight_is_named_and_is_met_once() -> None:
    assert_held(nonfinite.check(Budget(), faults), len(faults()))


SEEN_BY = {
    "the update is made all the same": 0,
    "the skip list forgets": 0,
    "no second try": 1,
    "rows are blamed at random": 4,
}


@pytest.mark.parametrize("name", nonfinite.mutations())
def test_a_training_that_lets_it_through_or_forgets_it_is_seen(name: str) -> None:
    with nonfinite.mutations()[name]:
        assert nonfinite.check(Budget(), lambda: [faults()[SEEN_BY[name]]])["held"] == 0


# -------------------------------------------------------------------------------------------------------- memory


ONE = ("full, SGD", "read at once")
SHORTAGES = [
    memory.Case("backward", "of a CPU", 1, 2, *ONE),
    memory.Case("forward", "of a GPU", None, 5, "LoRA, AdamW", "read late"),
    memory.Case("half an update", "of Python", None, 5, *ONE),
    memory.Case("probe", "of a CPU", 2, 0, *ONE),
    memory.Case("generation", "of a CPU", 1, 0, *ONE),
    memory.Case("forward", "of a GPU", 0, 1, *ONE),
    memory.Case("validation", "of a GPU", 0, 0, *ONE),
    memory.Case("backward", "of a CPU", None, 2, "full, SGD", "on the second of two processes"),
]


def test_memory_that_runs_out_halves_the_micro_batch_and_changes_no_step(gloo_pair: GlooPair) -> None:
    assert set(SHORTAGES) <= set(memory.all_cases())
    assert_held(memory.check(Budget(), lambda: SHORTAGES, gloo_pair), len(SHORTAGES))


@pytest.mark.parametrize(("name", "case"), [*zip(memory.mutations(), (0, 0, 2), strict=True)])
def test_what_a_failed_try_leaves_behind_is_seen(name: str, case: int) -> None:
    with memory.mutations()[name]:
        assert memory.check(Budget(), lambda: [SHORTAGES[case]])["held"] == 0


# --------------------------------------------------------------------------------------------------------- truth


def changes() -> list[Any]:
    """The first of each group and a continued run; all of them are tried by `make reliability`."""
    by_group: dict[str, Any] = {}
    groups: dict[str, int] = {}
    for case in truth.all_changes():
        by_group.setdefault(case.group, case)
        groups[case.group] = groups.get(case.group, 0) + 1
    assert len(groups) == 5
    assert min(groups.values()) >= 6
    return [*by_group.values(), truth.CONTINUED[0], truth.CONTINUED[6], "rows touched"]


def test_what_has_changed_is_listed_and_nothing_of_before_is_taken_for_it() -> None:
    assert_held(truth.check(Budget(), changes), 8)


@pytest.mark.parametrize(("name", "case"), [*zip(truth.mutations(), (0, 2), strict=True)])
def test_a_resume_that_lists_no_difference_is_seen(name: str, case: int) -> None:
    with truth.mutations()[name]:
        assert truth.check(Budget(), lambda: [changes()[case]])["held"] == 0


# ----------------------------------------------------------------------------------------------------- processes


def test_a_training_that_goes_on_with_other_processes_sees_the_same_examples(gloo_pair: GlooPair) -> None:
    cases = [processes.Case("DDP", (2, 1), "full", "fp64"), processes.Case("ZeRO-2", (1, 2, 1), "LoRA", "fp32")]
    assert set(cases) <= set(processes.all_cases())
    assert_held(processes.check(Budget(), lambda: cases, gloo_pair), 2)


@pytest.mark.parametrize("name", processes.mutations())
def test_another_share_or_a_lost_state_is_seen(name: str, gloo_pair: GlooPair) -> None:
    with processes.mutations()[name]:
        case = processes.Case("DDP", (2, 1), "full", "fp64")
        assert processes.check(Budget(), lambda: [case], gloo_pair)["held"] == 0


# ------------------------------------------------------------------------------------------------ no waiting for a device


def test_a_step_reads_nothing_from_the_device_until_it_is_asked(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does while its host is not made to wait, shown on a CPU: no number of a step is read in `begin`."""
    import gradients
    import torch
    from small_training import fill_dataset

    fill_dataset(tmp_path)
    settings = {"model_dir": str(tiny_model_dir), "dataset_dir": str(tmp_path), "overrides": gradients.ADAMW}
    with verdicts_read_late():
        loop = gradients.make_loop(**settings)
    assert loop.engine.reads_late
    loop.step(1)  # the first step also compares heads on a few tokens

    def read(*told: object) -> object:
        raise AssertionError("a number of the step was read")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, read)
        begun = loop.begin(2)
    assert loop.result(begun).applied
