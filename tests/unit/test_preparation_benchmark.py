"""The preparation benchmark's own parts: rows, comparison of documents, memory from outside, the modes' keys."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tunesmith
from tunesmith.recipe import parse_recipe

ROOT = Path(__file__).parents[2]
ROWS = [([5, 6, 7, 8], [-100, -100, 7, 8]), ([5, 9, 7], [-100, 9, -100]), ([5, 6, 7, 8], [-100, -100, 7, 8])]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


@pytest.fixture
def documents(benchmarks: None) -> ModuleType:
    from peers import documents

    return documents


def flat(documents: ModuleType, rows: list[tuple[list[int], list[int]]]) -> tuple[np.ndarray, ...]:
    ids, labels = (np.array([value for row in rows for value in row[part]], np.int32) for part in (0, 1))
    return documents.Documents(ids, labels, np.cumsum([0, *(len(row[0]) for row in rows)]))


def test_chats_are_the_same_each_time_varied_and_about_as_long_as_said() -> None:
    from chats import chats

    made = list(chats(2000))
    assert made[:300] == list(chats(300))
    assert made[:300] != list(chats(300, seed=1))
    for chat in made:
        roles = [turn["role"] for turn in chat if turn["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles
    lines = Counter(json.dumps({"messages": chat}, ensure_ascii=False) for chat in made)
    assert 480 < sum(len(line.encode()) * count for line, count in lines.items()) / len(made) < 580
    assert 10 < len(made) - len(lines) < 100, "about one row in fifty is a copy"
    assert sum(chat[0]["role"] == "system" for chat in made) > 200


def test_packed_documents_in_another_order_are_equal(documents: ModuleType, tmp_path: Path) -> None:
    documents.save(tmp_path, *flat(documents, [ROWS[1], ROWS[0], ROWS[2]]))
    found = documents.compare(flat(documents, ROWS), documents.load(tmp_path))
    assert (found["ids_equal"], found["labels_equal"]) == (True, True)
    assert (found["documents"], found["tokens"], found["learned_tokens"]) == (3, 11, 5)
    assert "first_difference" not in found


@pytest.mark.parametrize(
    ("theirs", "ids_equal", "difference"),
    [
        ([*ROWS[:2], ([5, 6, 7, 8], [-100, 6, 7, 8])], True, 1),
        ([*ROWS[:2], ([5, 6, 7, 4], [-100, -100, 7, 4])], False, 3),
        (ROWS[:2], False, None),
        ([*ROWS, ROWS[0]], False, None),
    ],
)
def test_a_single_difference_is_found_and_shown(
    documents: ModuleType, theirs: list, ids_equal: bool, difference: int | None
) -> None:
    found = documents.compare(flat(documents, ROWS), flat(documents, theirs))
    assert found["ids_equal"] is ids_equal
    assert found["labels_equal"] is False
    assert found.get("first_difference", {}).get("token") == difference


def test_labels_of_a_dataset_are_its_learned_spans(documents: ModuleType, tmp_path: Path) -> None:
    arrays = {
        "tokens": np.array([5, 6, 7, 8, 5, 9, 7, 5], np.int32),
        "sequences": np.array([0, 4, 7, 8]),
        "span_offsets": np.array([0, 2, 3, 3]),
        "spans": np.array([[1, 2], [2, 4], [1, 2]], np.int32),
    }
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    ids, labels, offsets = documents.of_dataset(tmp_path)
    assert ids.tolist() == arrays["tokens"].tolist()
    assert labels.tolist() == [-100, 6, 7, 8, -100, 9, -100, -100]
    assert offsets.tolist() == arrays["sequences"].tolist()


def test_a_side_is_timed_and_its_children_s_memory_counted() -> None:
    from watched import SideFailed, run_side

    child = "import time; held = bytearray(60 << 20); time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('RESULT', '{{\"wall_s\": 1}}')"
    found = run_side([sys.executable, "-c", parent])
    assert found["wall_s"] == 1
    assert found["processes"] == 2
    assert 60 / 1024 < found["peak_anonymous_gib"] <= found["peak_rss_gib"] < 0.2
    with pytest.raises(SideFailed, match="status 3"):
        run_side([sys.executable, "-c", "raise SystemExit(3)"])


def test_modes_are_recipes_and_the_plain_one_drops_nothing() -> None:
    from prepare import MODES
    from prepare_memory import DATA

    read = {
        name: parse_recipe(json.dumps({"data": {"sources": ["rows.jsonl"], **data}})).data
        for name, data in {**MODES, **DATA}.items()
    }
    plain = read["plain"]
    assert (plain.deduplicate.type, plain.leaks.type, plain.split.validation) == ("none", "keep", 0)
    assert plain.filters.length is plain.filters.residue is plain.filters.repetition is None
    assert read["cleaned"].deduplicate.type == read["near"].deduplicate.type == "near"


def test_the_plain_mode_has_the_ids_and_labels_of_transformers_and_the_floor_its_text(
    test_data: Path, tmp_path: Path, documents: ModuleType
) -> None:
    from chats import chats, write_chats
    from prepare import MODES, dataset_of, make_model, rendered
    from transformers import AutoTokenizer

    model = make_model(tmp_path / "model", test_data / "data" / "tokenizers" / "minimind")
    write_chats(tmp_path / "rows.jsonl", 40)
    tokenizer = AutoTokenizer.from_pretrained(model)
    made = list(chats(40))
    assert list(rendered(tmp_path / "rows.jsonl")) == [tokenizer.apply_chat_template(made, tokenize=False)]

    data = {"sources": [str(tmp_path / "rows.jsonl")], **MODES["plain"]}
    recipe = parse_recipe(json.dumps({"model": {"base": str(model)}, "data": data}))
    tunesmith.prepare(recipe, workspace=tmp_path / "work", quiet=True)
    wanted = []
    for chat in made:
        seen = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        labels = [id if mask else -100 for id, mask in zip(seen["input_ids"], seen["assistant_masks"], strict=True)]
        wanted.append((seen["input_ids"], labels))
    found = documents.compare(documents.of_dataset(dataset_of(tmp_path)), flat(documents, wanted))
    assert (found["documents"], found["ids_equal"], found["labels_equal"]) == (40, True, True), found
