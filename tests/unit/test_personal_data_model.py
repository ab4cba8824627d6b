"""Personal data marked by a token classification model: through transformers, on a tiny model whose weights are set by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from row_parts import keys_of, part_of, row
from tiny_tagger import make_tagger

from tunesmith.errors import ModelError
from tunesmith.recipe import parse_recipe
from tunesmith.stages.prepare.cleaning.judge import Judged, judge
from tunesmith.stages.prepare.cleaning.named_entities import load_tagger


@pytest.fixture(scope="module")
def tagger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tagger(tmp_path_factory.mktemp("tagger"))


def judged(folder: Path, *texts: str, **settings: str) -> Judged:
    overrides = [f"data.filters.pii.model={folder}", "data.filters.length=null"]
    overrides += [f"data.filters.pii.{key}={value}" for key, value in settings.items()]
    spec = parse_recipe("name: x\ndata: {sources: a.jsonl}\n", overrides)
    return judge(part_of([row("Who?", text) for text in texts]), spec, keys_of)


def answers(found: Judged) -> list[str]:
    return [turns[-1]["content"] for turns in found.part["turns"].to_pylist()]


def test_what_the_model_marks_is_redacted_by_its_label(tagger_folder: Path) -> None:
    found = judged(tagger_folder, "It was anna lee of oslo.", "Nobody.", "anna anna lee", "")
    assert answers(found) == ["It was [NAME] of [CITY].", "Nobody.", "[NAME] [NAME]", ""]
    assert found.flags.to_pylist()[0] == {
        "row": 0,
        "rule": "personal",
        "detail": "CITY, NAME",
        "count": 2,
        "action": "redact",
    }
    assert found.measured["personal"].to_pylist() == [2, 0, 2, 0]


def test_labels_probability_and_action(tagger_folder: Path) -> None:
    assert answers(judged(tagger_folder, "anna in oslo", model_labels="[CITY]")) == ["anna in [CITY]"]
    assert answers(judged(tagger_folder, "anna in oslo", model_probability="1.0")) == ["anna in oslo"]
    flagged = judged(tagger_folder, "anna in oslo", model_action="flag")
    assert (answers(flagged), flagged.verdicts.num_rows) == (["anna in oslo"], 0)
    dropped = judged(tagger_folder, "anna in oslo", "nobody", model_action="drop")
    assert dropped.verdicts.select(["row", "rule", "detail"]).to_pylist() == [
        {"row": 0, "rule": "personal", "detail": "CITY, NAME"}
    ]


def test_long_texts_are_looked_at_in_windows(tagger_folder: Path) -> None:
    text = "x " * 61 + "anna lee " + "y " * 40 + "oslo"
    assert answers(judged(tagger_folder, text)) == [text.replace("anna lee", "[NAME]").replace("oslo", "[CITY]")]


def test_patterns_come_before_the_model(tagger_folder: Path) -> None:
    found = judged(tagger_folder, "anna at anna.lee@oslo.io", email="redact")
    assert answers(found) == ["[NAME] at [EMAIL]"]


def test_a_folder_without_such_a_model_is_refused(tagger_folder: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    load_tagger.cache_clear()
    with pytest.raises(ModelError, match=f"(?s)MDL-130 data.filters.pii.model: {tmp_path}/none could not be loaded"):
        judged(tmp_path / "none", "anna")
    with pytest.raises(ModelError, match=r"(?s)MDL-131 .*lacks weights: score"):
        judged(tiny_model_dir, "anna")
