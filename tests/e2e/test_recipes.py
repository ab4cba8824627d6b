"""Each ready recipe trains as it stands, but for two steps of small batches, one process and a small model."""

from __future__ import annotations

import json
import warnings
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


@pytest.fixture(scope="module")
def trained(place: Path, tiny_model_dir: Path) -> dict[str, Run]:
    """The run of each recipe that can run here, by its name."""
    found = {}
    settings = [
        f"model.base={tiny_model_dir}", f"data.sources={place / 'rows.jsonl'}", "train.max_steps=2", "train.batch_size=8",
        "train.processes=1", "train.threads=1", "track=[]",
    ]  # fmt: skip
    for name in RECIPES:
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            continue
        with warnings.catch_warnings():
            if NEEDS.get(name) == "deepspeed":  # its import warns of what it does not find
                warnings.simplefilter("ignore")
            found[name] = api.train(FOLDER / f"{name}.yaml", overrides=settings, workspace=place / "work").run
    return found


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
