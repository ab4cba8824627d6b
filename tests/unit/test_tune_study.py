"""The study: what is drawn follows from the seed and the trials before; who works on what; nothing of a password is told."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.errors import FileError, UsageError
from tunesmith.recipe import parse_recipe
from tunesmith.runner.environment import command_line
from tunesmith.tuning.claims import LOST_AFTER_S, Clock, Owner, alone, is_living, workspace_id
from tunesmith.tuning.objective import Objective
from tunesmith.tuning.search import share_of_machine
from tunesmith.tuning.space import resolve
from tunesmith.tuning.study import STARTUP_TRIALS, Study, hide_password

pytest.importorskip("optuna")

RECIPE = """\
data: {sources: rows.jsonl}
tune:
  space:
    train.learning_rate: {low: 1e-5, high: 1e-1, log: true}
    adapter.rank: {choices: [4, 8, 16]}
    train.batch_size: {low: 4, high: 32, log: true}
"""
NUM = STARTUP_TRIALS + 2


def study(path: Path, *overrides: str) -> Study:
    spec = parse_recipe(RECIPE, overrides)
    objective = Objective.of(spec)
    return Study(f"sqlite:///{path}", "one", resolve(spec, None, objective.until), objective, spec)


def go_on(path: Path, until: int, *overrides: str) -> list[tuple]:
    """Trials up to `until`, each worth its rate; every fourth is given up."""
    found = study(path, *overrides)
    while len(found.trials()) < until:
        trial = found.draw(owner="me")
        value = trial.drawn["train.learning_rate"]
        found.report(trial.number, 200, value)
        found.report(trial.number, 200, 99.0)  # a step done again after a resume changes nothing
        pruned = trial.number % 4 == 3
        found.end(trial.number, "pruned" if pruned else "complete", None if pruned else value)
    told = [(trial.state, trial.value, trial.drawn, trial.curve) for trial in found.trials()]
    found.close()
    return told


def test_a_search_that_was_cut_off_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    straight = go_on(tmp_path / "a", NUM)
    go_on(tmp_path / "b", STARTUP_TRIALS + 1)
    assert go_on(tmp_path / "b", NUM) == straight
    assert len({str(drawn) for _, _, drawn, _ in straight}) == NUM
    assert go_on(tmp_path / "c", 2, "tune.seed=18") != straight[:2]


def test_tpe_learns_from_the_trials_before_and_random_does_not(tmp_path: Path) -> None:
    """Small rates are good here; the rates of the last trials show whether anybody listened."""
    mean = {}
    for sampler in ("tpe", "random"):
        told = go_on(tmp_path / sampler, 16, f"tune.sampler={sampler}")
        mean[sampler] = sum(math.log10(drawn["train.learning_rate"]) for _, _, drawn, _ in told[-8:]) / 8
    assert mean["tpe"] < mean["random"] - 0.5


def test_a_trial_whose_worker_is_gone_is_taken_up_with_its_values_and_losses(tmp_path: Path) -> None:
    first = study(tmp_path / "s")
    begun = first.draw(owner="dead", workspace="w")
    first.report(begun.number, 100, 0.5)
    first.close()
    second = study(tmp_path / "s")
    taken = second.take_up(begun.number, owner="me")
    assert (taken.drawn, taken.curve, taken.get("owner"), taken.state) == (begun.drawn, {100: 0.5}, "me", "running")
    second.end(taken.number, "complete", 0.25)
    assert second.best().value == 0.25
    assert len(second.trials()) == 1
    second.close()


def test_losses_of_a_metric_that_should_be_high_come_back_as_they_were(tmp_path: Path) -> None:
    found = study(tmp_path / "s", "tune.metric=exact_match")
    trial = found.draw()
    assert found.report(trial.number, 300, 1.5)[trial.number].curve == {300: 1.5}
    found.end(trial.number, "complete", 0.75)
    other = found.draw()
    found.end(other.number, "complete", 0.5)
    assert found.best().number == trial.number
    found.close()


def test_a_trial_that_was_ended_as_lost_stays_so(tmp_path: Path) -> None:
    found = study(tmp_path / "s")
    trial = found.draw(owner="elsewhere")
    found.end_lost(trial.number, "no sign of life", uncounted="lost")
    found.note(trial.number, steps=3)
    found.report(trial.number, 500, 1.0)
    found.end(trial.number, "complete", 1.0)
    (left,) = found.trials()
    assert (left.state, left.counts, left.get("why")) == ("failed", False, "no sign of life")
    found.close()


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("nosuch://me:secret@host/db", UsageError, "TUN-012"),
        ("sqlite:////no/such/folder/x.db", FileError, "TUN-011"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told_without_its_password(url: str, error: type, told: str) -> None:
    spec = parse_recipe(RECIPE)
    with pytest.raises(error, match=told) as caught:
        Study(url, "one", resolve(spec, None, "train"), Objective.of(spec), spec)
    assert "secret" not in str(caught.value)


def test_passwords_in_urls_are_no_part_of_what_is_kept() -> None:
    assert hide_password("postgresql://me:se@cret@host:5/db") == "postgresql://me:***@host:5/db"
    assert hide_password("sqlite:///a/b.sqlite") == "sqlite:///a/b.sqlite"
    kept = command_line(
        ["tunesmith", "tune", "--storage", "mysql://me:s:e/c@ret@host/db", "--storage=x://u:secret@h/d"]
    )
    assert kept == ["tunesmith", "tune", "--storage", "mysql://me:***@host/db", "--storage=x://u:***@h/d"]


def test_a_workers_lock_dies_with_it(tmp_path: Path) -> None:
    program = f"from tunesmith.tuning.claims import Owner; from pathlib import Path; import time; print(Owner(Path({str(tmp_path)!r})).name, flush=True); time.sleep(60)"
    source = str(Path(__file__).parents[2] / "src")
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": source}
    ) as process:
        name = process.stdout.readline().strip()
        assert is_living(tmp_path, name, 0.0)
        process.kill()
    assert not is_living(tmp_path, name, time.time())
    assert not is_living(tmp_path, "", time.time())


def test_a_worker_of_another_machine_is_known_by_its_silence(tmp_path: Path) -> None:
    (tmp_path / "elsewhere-1-abc.lock").touch()
    assert is_living(tmp_path, "elsewhere-1-abc", time.time())
    assert not is_living(tmp_path, "elsewhere-1-abc", time.time() - LOST_AFTER_S - 1)


def test_a_closed_owner_leaves_nothing(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    owner.close()
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_a_lock_can_be_left(tmp_path: Path) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    with alone(tmp_path / "x.lock"), pytest.raises(KeyboardInterrupt), alone(tmp_path / "x.lock", leave):
        pass
    with alone(tmp_path / "x.lock"):
        pass


def test_time_adds_up_over_the_starts(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    clock._started -= 100
    clock.save()
    assert Clock(tmp_path).seconds() >= 100


def test_the_workspace_keeps_its_name(tmp_path: Path) -> None:
    assert workspace_id(tmp_path) == workspace_id(tmp_path)


def test_workers_share_the_machine() -> None:
    assert share_of_machine(1, 2, 2, gpus=4) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert share_of_machine(0, 2, 1, gpus=0) == {"OMP_NUM_THREADS": str(max(1, cores // 2))}


def test_the_public_word_stays_a_function_once_the_package_is_loaded() -> None:
    import tunesmith
    import tunesmith.tuning  # a package of the word's own name would take its place

    assert callable(tunesmith.tune)
