"""The runner, with small real stages: what is skipped, what runs again, what is noted, how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.errors import DataError, FileError, InterruptedRun, RecipeError, UsageError
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.runner import Outcome, environment, execute, planning
from tunesmith.runs.run import Run

# Three stages that count how often they work and do what a file tells them.
STAGE = """
import os, signal
from pathlib import Path
from tunesmith.errors import DataError, FileError
from tunesmith.runs import durable

def externals(spec, run):
    return {{"rows": durable.hash_file(Path(spec.data.sources[0].path))}}

def run(spec, inputs, run):
    with (run.workspace / "work.txt").open("a") as file:
        file.write("{name}\\n")
    order = run.workspace / "{name}.order"
    word = order.read_text() if order.exists() else ""
    if word == "bad data":
        raise DataError("DAT-999", "the rows are off")
    if word == "bug":
        raise KeyError("a bug")
    with run.store.create("{kind}", run.stage_key, producer={{"stage": "{name}"}}) as draft:
        (draft.path / "text").write_text("".join((i.path / "text").read_text() for i in inputs.values()) + "{name};")
        if word == "full disk":
            raise FileError("RUN-998", "the disk is full")
        if word.startswith("signal"):
            os.kill(os.getpid(), getattr(signal, word.split()[1]))
            if run.stopping and "leave" in word:
                run.leave("in the middle of {name}")
    run.record("{name}", "{name}/loss", 0.5, step=1)
    return {{"{output}": draft.artifact}}
"""
INFO = """
from tunesmith.runs.stage import StageInfo
INFO = StageInfo("{name}", needs={needs}, makes=("{output}",), version=1, keys={keys}, externals={externals},
                 switches={switches})
"""
STAGES = {
    "gather": ("Rows", "rows", (), ("data",), "gather.run:externals", {}),
    "shape": ("Model", "shaped", ("rows",), ("seed", "adapter"), None, {"shaped": "export.merged"}),
    "judge": ("Evaluation", "verdict", ("rows", "shaped"), ("evaluate",), None, {}),
}


class Bench:
    """A workspace, a file of rows and the stages, to run recipes at."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.rows = folder / "work", folder / "rows.jsonl"
        self.workspace.mkdir()
        self.rows.write_text("rows")

    def recipe(self, text: str = "") -> Recipe:
        return parse_recipe(f"name: desk\ndata: {{sources: rows.jsonl}}\n{text}", folder=self.rows.parent)

    def run(self, text: str = "", **options: object) -> Outcome:
        table = {name: f"bench_stages.{name}" for name in STAGES}
        return execute(self.recipe(text), self.workspace, table=table, **{"until": "judge", **options})  # type: ignore[arg-type]

    def order(self, stage: str, word: str) -> None:
        (self.workspace / f"{stage}.order").write_text(word)

    def worked(self) -> list[str]:
        """The stages that worked since the last call."""
        path = self.workspace / "work.txt"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names


@pytest.fixture(scope="session")
def stages_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    for name, (kind, output, needs, keys, externals, switches) in STAGES.items():
        package = folder / "bench_stages" / name
        package.mkdir(parents=True)
        told = repr(f"bench_stages.{externals}") if externals else None
        info = INFO.format(name=name, needs=needs, output=output, keys=keys, externals=told, switches=switches)
        (package / "__init__.py").write_text(info)
        (package / "run.py").write_text(STAGE.format(name=name, kind=kind, output=output))
    return folder


@pytest.fixture
def bench(tmp_path: Path, stages_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(stages_folder)
    return Bench(tmp_path)


def statuses(outcome: Outcome) -> list[str]:
    return [stage.status for stage in outcome.stages]


def text_of(outcome: Outcome) -> str:
    outputs = outcome.run.outputs("judge")
    assert outputs is not None
    return (outputs["verdict"].path / "text").read_text()


def test_stages_run_in_order_each_with_its_inputs(bench: Bench) -> None:
    told: list[tuple[str, str]] = []
    outcome = bench.run(on_stage=lambda name, status: told.append((name, status)))
    assert bench.worked() == ["gather", "shape", "judge"]
    assert text_of(outcome) == "gather;gather;shape;judge;"
    assert told == [(name, status) for name in STAGES for status in ("started", "done")]
    names = [event.name for event in outcome.run.events()]
    assert names[0] == "run/started"
    assert names[-1] == "run/finished"
    assert names.count("stage/seconds") == 3


def test_the_same_recipe_again_does_nothing_and_writes_nothing(bench: Bench) -> None:
    first = bench.run()
    bench.worked()
    before = {path: path.stat().st_mtime_ns for path in bench.workspace.rglob("*") if path.is_file()}
    again = bench.run()
    assert statuses(again) == ["reused"] * 3
    assert again.did_nothing
    assert not first.did_nothing
    assert bench.worked() == []
    after = {path: path.stat().st_mtime_ns for path in bench.workspace.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"run.lock"}


def test_a_changed_key_runs_again_only_what_depends_on_it(bench: Bench) -> None:
    bench.run()
    bench.worked()
    changed = bench.run("seed: 3")
    assert bench.worked() == ["shape", "judge"]
    assert statuses(changed) == ["reused", "done", "done"]
    assert changed.run.parent is not None
    assert changed.run.parent["changed"] == {"seed": [17, 3]}
    bench.run("evaluate: {max_new_tokens: 9}")
    assert bench.worked() == ["judge"]
    bench.run("serve: {port: 9}")
    assert bench.worked() == [], "no stage of these reads it"


def test_changed_rows_run_everything_again_and_a_moved_file_nothing(bench: Bench) -> None:
    bench.run()
    bench.worked()
    bench.rows = bench.rows.parent / "moved" / "rows.jsonl"
    bench.rows.parent.mkdir()
    bench.rows.write_text("rows")
    bench.run()
    assert bench.worked() == []
    bench.rows.write_text("other rows")
    bench.run()
    assert bench.worked() == ["gather", "shape", "judge"]


def test_until_stops_early_and_the_next_command_goes_on(bench: Bench) -> None:
    assert statuses(bench.run(until="shape")) == ["done", "done"]
    assert statuses(bench.run()) == ["reused", "reused", "done"]
    assert bench.worked() == ["gather", "shape", "judge"]
    with pytest.raises(UsageError, match="RUN-020 there is no stage 'polish'"):
        bench.run(until="polish")


@pytest.mark.parametrize("damage", ["flipped", "deleted", "folder gone", "stage record gone"])
def test_what_is_damaged_is_made_anew_and_said(bench: Bench, damage: str) -> None:
    outcome = bench.run()
    bench.worked()
    shaped = outcome.run.outputs("shape")["shaped"].path  # type: ignore[index]
    if damage == "flipped":
        (shaped / "text").write_text("gather;shapE;")
    elif damage == "deleted":
        (shaped / "text").unlink()
    elif damage == "folder gone":
        for path in [*shaped.iterdir(), shaped]:
            path.rmdir() if path.is_dir() else path.unlink()
    else:
        for path in (bench.workspace / "artifacts" / "stages").iterdir():
            path.unlink()
    again = bench.run()
    assert text_of(again) == "gather;gather;shape;judge;"
    assert bench.worked() == (["gather", "shape", "judge"] if "record" in damage else ["shape"])
    told = [event.value for event in again.run.events() if event.name == "artifact/damaged"]
    assert bool(told) == (damage in ("flipped", "deleted"))
    assert all("text" in sentence for sentence in told)


@pytest.mark.parametrize(("word", "family"), [("bad data", DataError), ("full disk", FileError), ("bug", KeyError)])
def test_a_stage_that_fails_leaves_nothing_half_true_and_the_same_command_goes_on(
    bench: Bench, word: str, family: type[Exception]
) -> None:
    bench.order("shape", word)
    told: list[tuple[str, str]] = []
    with pytest.raises(family, match=r"off|full|bug"):
        bench.run(on_stage=lambda name, status: told.append((name, status)))
    assert told[-1] == ("shape", "failed")
    run = Run.open("latest", bench.workspace)
    (failed,) = [event for event in run.events() if event.name == "stage/failed"]
    assert failed.stage == "shape"
    assert failed.value["exit_status"] in (65, 74, 70)
    assert run.outputs("shape") is None
    assert not (bench.workspace / "artifacts" / "model").exists() or not list(
        (bench.workspace / "artifacts" / "model").iterdir()
    )
    bench.order("shape", "")
    bench.worked()
    assert statuses(bench.run()) == ["reused", "done", "done"]
    assert bench.worked() == ["shape", "judge"]


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Signals as in a terminal: a shell that starts tests in the background has them ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_run_at_a_safe_point_and_the_same_command_goes_on(
    bench: Bench, name: str, status: int
) -> None:
    before = signal.getsignal(signal.SIGINT)
    bench.order("shape", f"signal {name} leave")
    told: list[tuple[str, str]] = []
    with pytest.raises(InterruptedRun, match=f"RUN-001 stopped by {name} in the middle of shape") as caught:
        bench.run(on_stage=lambda name, status: told.append((name, status)))
    assert told[-1] == ("shape", "stopped"), "a deliberate stop is no failure"
    assert caught.value.exit_status == status
    assert signal.getsignal(signal.SIGINT) is before
    assert [e.stage for e in Run.open("latest", bench.workspace).events() if e.name == "stage/stopped"] == ["shape"]
    bench.order("shape", "")
    bench.worked()
    assert statuses(bench.run()) == ["reused", "done", "done"]


def test_a_stage_that_finishes_after_a_signal_is_kept(bench: Bench) -> None:
    bench.order("shape", "signal SIGTERM")
    with pytest.raises(InterruptedRun, match="after shape"):
        bench.run()
    bench.worked()
    bench.run()
    assert bench.worked() == ["judge"]


def test_a_second_signal_leaves_at_once(bench: Bench, stages_folder: Path) -> None:
    script = (
        "import os, signal, sys, time; from pathlib import Path; from tunesmith.runner import signals\n"
        "from tunesmith.runs.run import Run\n"
        "with signals.handled(Run(Path(sys.argv[1]), Path(sys.argv[1]), 1)):\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('saving', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(bench.workspace)],
        capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "saving\n"
    assert "once more leaves at once" in done.stderr


def test_a_stage_that_needs_what_is_switched_off_is_refused_before_anything_runs(bench: Bench) -> None:
    with pytest.raises(
        RecipeError, match=r"(?s)RUN-021 export\.merged: judge needs what .* leaves out.*--set export\.merged=true"
    ):
        bench.run("export: {merged: false}")
    assert bench.worked() == []
    assert not (bench.workspace / "runs").exists()


def test_allowed_code_is_remembered_by_its_hash_and_forgotten_without_the_flag(bench: Bench) -> None:
    metric = bench.rows.parent / "metric.py"
    metric.write_text("def score(): ...")
    name = f"{metric}:score"
    outcome = bench.run(allow_code=frozenset({name}))
    assert list(outcome.run.allowed_code) == [name]
    assert len(outcome.run.allowed_code[name]) == 64
    assert bench.run().run.allowed_code == {}
    with pytest.raises(RecipeError, match="RUN-022 the recipe names Python code that is not there"):
        bench.run(allow_code=frozenset({"gone.py:score"}))


def test_training_processes_get_the_commit_that_the_run_stays_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read the recipe from the Run, where it stands as it was asked."""
    from types import SimpleNamespace

    from tunesmith.launch import worker

    got: list[Recipe] = []
    monkeypatch.setitem(
        sys.modules,
        "bench_entry",
        SimpleNamespace(run=lambda spec, inputs, run: got.append(spec) or {}),  # type: ignore[arg-type]
    )
    run = Run.open_or_create(bench.workspace, bench.recipe("model: {base: acme/tiny, revision: main}"))
    run.pin_base_model("acme/tiny", "main", "a" * 40)
    request = {"attempt": 1, "stage_key": "", "entry": "bench_entry", "inputs": {}}
    assert worker._train(Run.open(run.path), 0, request) == (0, {"end": "done", "outputs": {}})
    assert got[0].model.revision == "a" * 40
    assert Run.open(run.path).recipe.model.revision == "main"
    assert run.pinned_recipe.origin("model.revision") == "file", "who wrote what is still known"


def test_trackers_open_with_the_first_event_and_never_when_there_is_nothing_to_do(bench: Bench) -> None:
    begun: list[int] = []
    heard: list[str] = []

    def begin(run: Run) -> None:
        begun.append(run.attempt)
        run.listeners.append(lambda event: heard.append(event.name))

    bench.run(on_begin=begin)
    assert begun == [1]
    assert heard[0] == "run/started"
    bench.run(on_begin=begin)
    assert begun == [1]
    bench.order("judge", "bad data")
    with pytest.raises(DataError, match="off"):
        bench.run("evaluate: {max_new_tokens: 9}", on_begin=begin)
    assert heard[-1] == "stage/failed"


def test_listeners_hear_every_event(bench: Bench) -> None:
    heard: list[str] = []
    bench.run(listeners=[lambda event: heard.append(event.name)])
    assert {"run/started", "stage/started", "shape/loss", "stage/seconds", "run/finished"} <= set(heard)


def test_the_environment_tells_versions_and_no_secrets(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tunesmith", "serve", "--token", "s3cret", "--api-key=s3cret", "r.yaml"])
    run = bench.run().run
    text = (run.path / "environment.json").read_text()
    assert "secret" not in text
    assert "s3cret" not in text
    told = json.loads(text)
    assert told["command"] == ["tunesmith", "serve", "--token", "***", "--api-key=***", "r.yaml"]
    assert {"torch", "transformers", "pydantic"} <= set(told["packages"])
    assert told["cpu"]
    assert told["cores"] >= 1
    changed = environment.differences(told, {**told, "packages": {**told["packages"], "torch": "0.0"}, "threads": "9"})
    assert set(changed) == {"torch", "threads"}


def test_a_disk_that_can_not_hold_the_run_is_refused_before_it_starts(tmp_path: Path) -> None:
    planning.check_disk({"figures": {"disk": {"value": 2e6, "low": 1e6, "high": 3e6}}}, tmp_path)
    with pytest.raises(FileError, match=r"RUN-023 the run needs .* TiB on the disk"):
        planning.check_disk({"figures": {"disk": {"value": 2e18, "low": 1e18, "high": 3e18}}}, tmp_path)
