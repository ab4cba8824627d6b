"""Each ready recipe trains as it stands, but for two steps of small batches, one process and a small model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tunesmith import api
from tunesmith.runs.run import Run

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NEEDS = {"qlora": "bitsandbytes", "deepspeed-zero2": "deepspeed", "deepspeed-zero3": "deepspeed"}
# The same training by another engine: what one process alone makes of it.
SAME_AS = {"fsdp": "full", "deepspeed-zero2": "full", "deepspeed-zero3": "lora"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(60):
            asked = f"Please repeat the number {number} and then say the word done, thank you."
            file.write(json.dumps({"prompt": asked, "completion": f"{number} done"}) + "\n")
    return folder


# DeepSpeed writes to the streams that it found at its import, and keeps settings of its own for the rest of a process.
ELSEWHERE = """
import json, sys
from tunesmith import api
told = json.loads(sys.argv[1])
for recipe in told["recipes"]:
    run = api.train(recipe, overrides=told["settings"], workspace=told["workspace"], quiet=True).run
    print(f"\\nRUN {run.path}")
"""


@pytest.fixture(scope="module")
def trained(place: Path, tiny_model_dir: Path, environment: dict[str, str]) -> dict[str, Run]:
    """The run of each recipe that can run here, by its name."""
    settings = [
        f"model.base={tiny_model_dir}", f"data.sources={place / 'rows.jsonl'}", "train.max_steps=2", "train.batch_size=8",
        "train.processes=1", "train.threads=1", "track=[]",
    ]  # fmt: skip
    names = [name for name in RECIPES if name not in NEEDS or find_spec(NEEDS[name])]
    paths = {name: FOLDER / f"{name}.yaml" for name in names}
    apart = [name for name in names if NEEDS.get(name) == "deepspeed"]
    found = {
        name: api.train(paths[name], overrides=settings, workspace=place / "work").run
        for name in names
        if name not in apart
    }
    told = {"recipes": [str(paths[name]) for name in apart], "settings": settings, "workspace": str(place / "work")}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, json.dumps(told)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folders = re.findall(r"^RUN (.*)$", done.stdout, re.MULTILINE)
    return {**found, **{name: Run.open(folder) for name, folder in zip(apart, folders, strict=True)}}


def losses(run: Run) -> dict[int | None, float]:
    return {event.step: event.value for event in run.events() if event.name == "train/loss"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_says_in_its_first_lines_when_to_take_it(trained: dict[str, Run], name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    head = text.partition("\n\n")[0]
    assert all(line.startswith("# ") for line in head.splitlines())
    assert len(head) > 80
    if name not in trained:
        pytest.skip(f"{NEEDS[name]} is not installed")
    run = trained[name]
    assert set(losses(run)) == {1, 2}
    assert (run.outputs("train") or {})["model"].kind == ("Model" if "type: full" in text else "Adapter")


@pytest.mark.parametrize(("name", "other"), SAME_AS.items())
def test_one_process_under_an_engine_trains_what_one_process_trains(
    trained: dict[str, Run], name: str, other: str
) -> None:
    if name not in trained:
        pytest.skip(f"{NEEDS[name]} is not installed")
    assert losses(trained[name]) == pytest.approx(losses(trained[other]), rel=1e-5)
    notes = (trained[name].outputs("train") or {})["model"].notes
    assert notes["engine"] == name.partition("-")[0]
