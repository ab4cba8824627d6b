"""Slices of the harnesses of durable training, and the proof that each of them can see: what is broken on purpose is found."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from reliability import corruption, crash_states, disk  # noqa: E402
from reliability.frame import Budget  # noqa: E402

from tunesmith.errors import InterruptedRun, TunesmithError  # noqa: E402
from tunesmith.runner import planning  # noqa: E402
from tunesmith.runs.events import Event  # noqa: E402
from tunesmith.stages.train.checkpoint import TrainState  # noqa: E402
from tunesmith.tracking.console import Console  # noqa: E402


def assert_held(result: dict, at_least: int) -> None:
    assert result["failures"] == []
    assert result["held"] == result["tried"] >= at_least


def test_power_cut_anywhere_in_a_save_leaves_the_old_state_or_the_new_one() -> None:
    result = crash_states.check(Budget(), crash_states.NARROW)  # all of them: one state in three thousand was once lost
    assert_held(result, 2500)
    assert result["notes"]["operations"]["a checkpoint over an older one"] > 20


@pytest.mark.parametrize(("site", "how"), crash_states.mutations(), ids=str)
def test_a_flush_or_rename_that_is_broken_is_seen(site: crash_states.Site, how: crash_states.How) -> None:
    assert crash_states.first_problem(site, how)


def test_all_flushes_and_renames_of_the_product_are_among_the_broken_ones() -> None:
    source = Path(crash_states.durable.__file__).read_text().splitlines()
    lines = {n for n, line in enumerate(source, 1) if "disk.flush(" in line or "disk.rename(" in line}
    assert {site.line for site, _ in crash_states.mutations() if site.line} == lines
    threads = {site.function for site, _ in crash_states.mutations() if not site.line}
    assert threads == {"a thread, of a file", "a thread, of a folder"}


def test_damage_of_any_file_of_a_checkpoint_is_named_and_the_last_good_one_taken() -> None:
    result = corruption.check(Budget(every=61))
    assert_held(result, 70)
    assert set(result["notes"]["kinds"]) == set(corruption.KINDS)
    cases = list(corruption.all_cases())
    assert len(cases) > 4000
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize("name", corruption.mutations())
def test_a_store_that_is_blind_to_damage_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of, attribute, instead = corruption.mutations()[name]
    monkeypatch.setattr(of, attribute, instead)
    monkeypatch.setattr(corruption, "HANG_S", 0.2)
    assert corruption.check(Budget(every=151))["failures"]


def test_a_full_disk_is_a_pause() -> None:
    assert_held(disk.check(Budget(every=14)), 15)


@pytest.mark.parametrize("name", disk.REFUSALS)
def test_what_cannot_go_well_is_refused_or_said(name: str, tmp_path: Path) -> None:
    assert disk.REFUSALS[name](tmp_path) is None


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_real_small_file_system_that_fills_up(tmp_path: Path, comes_back: bool) -> None:
    try:
        assert disk.small_file_system(tmp_path, comes_back=comes_back) is None
    except disk.NotHere as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", disk.mutations())
def test_a_product_that_does_not_wait_or_refuse_is_seen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = disk.mutations()[name]
    monkeypatch.setattr(broken.of, broken.attribute, broken.instead)
    try:
        seen = broken.seen_by(tmp_path)
    except TunesmithError as error:  # what should have been waited for
        seen = str(error)
    assert seen


def test_a_stop_asked_for_while_the_disk_is_full_leaves_at_once_and_says_what_is_kept(tmp_path: Path) -> None:
    run, checkpoints, _ = crash_states.training(tmp_path)
    crash_states.save(tmp_path, 1, crash_states.NARROW)
    run.is_patient = True
    full = disk.FullDisk(1, errno.ENOSPC)
    state, tensors = TrainState(step=2), crash_states.tensors(2, crash_states.NARROW)
    with (
        disk.waiting(lambda: run.stop(signal.SIGINT)) as clock,
        crash_states.use(full),
        pytest.raises(InterruptedRun, match="RUN-001 stopped by SIGINT while nothing could be written") as caught,
    ):
        checkpoints.save(state, *tensors)
    assert caught.value.exit_status == 130
    assert clock.time < 1
    assert crash_states.resumed(tmp_path, 1, 1, crash_states.NARROW, True) is None


def test_what_an_earlier_attempt_wrote_is_room_that_a_resume_has(tmp_path: Path) -> None:
    crash_states.save(tmp_path, 1, crash_states.NARROW)
    run, _, _ = crash_states.training(tmp_path)
    run.record("train", "stage/started", "abc")
    there = planning.bytes_there(crash_states.RECIPE, tmp_path)
    assert there > 500
    plan = {"figures": {"disk": {"value": 1000.0 + there, "low": 900.0 + there}, "checkpoint": {"low": 10.0}}}
    with disk.with_free(1000):
        planning.check_disk(plan, tmp_path, there)
        with pytest.raises(TunesmithError, match="RUN-023"):
            planning.check_disk(plan, tmp_path)


def test_a_network_file_system_is_said_on_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    Console()(Event(0.0, 1, "run", None, "run/network_file_system", "nfs4", ""))
    assert "warning: the workspace lies on a network file system (nfs4)" in capsys.readouterr().err
