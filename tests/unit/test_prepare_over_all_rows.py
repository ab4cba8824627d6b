"""Duplicates, leaks and mixtures by the real stage: what the ledger says and what the Dataset holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from columns import text

import tunesmith
from tunesmith.runs.dataset import Dataset


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows))


@pytest.fixture
def prepare(tiny_model_dir: Path, tmp_path: Path) -> Any:
    """Prepares with these settings of `data`; returns the Dataset and its ledger by place."""

    def run(**data: Any) -> tuple[Dataset, dict[str, dict[str, Any]]]:
        settings = {"model": {"base": str(tiny_model_dir), "template": "plain"}, "data": data}
        (tmp_path / "recipe.yaml").write_text(json.dumps(settings))  # JSON is YAML
        outcome = tunesmith.prepare(tmp_path / "recipe.yaml", workspace=tmp_path / "work", quiet=True)
        dataset = Dataset(outcome.run.outputs("prepare")["dataset"].path)
        return dataset, {f"{entry['file']}:{entry['position']}": entry for entry in dataset.ledger()}

    return run


def test_every_row_that_goes_names_its_twin_and_copies_are_in_the_dataset(tmp_path: Path, prepare: Any) -> None:
    write(tmp_path / "a.jsonl", [(text(seed, 30), f"{text(seed + 500, 20)}") for seed in range(20)])
    near = [(text(3, 30, {29: "zebra"}), text(503, 20)), (text(4, 30), text(504, 20))]
    write(tmp_path / "b.jsonl", [*near, *((text(seed, 30), "no") for seed in range(100, 106))])
    write(tmp_path / "test.jsonl", [(text(7, 30, {0: "zebra"}), "held out"), (text(60, 30), "held out")])
    write(tmp_path / "bench.jsonl", [(f"{text(9, 30)}!", "public")])
    sources = [
        {"path": "a.jsonl", "split": "train", "repeat": 2.5},
        {"path": "b.jsonl", "split": "train", "limit": 4},
        {"path": "test.jsonl", "split": "test"},
    ]
    dataset, ledger = prepare(
        sources=sources,
        filters={"length": None},
        deduplicate={"type": "near"},
        leaks={"near": 0.8, "against": ["bench.jsonl"]},
    )
    told = {place: (line["rule"], line["kept_twin"]) for place, line in ledger.items() if line["status"] == "dropped"}
    assert told["b.jsonl:1"] == ("near_duplicate", 3)
    assert told["b.jsonl:2"] == ("duplicate", 4)
    assert told["a.jsonl:8"] == ("leak", 28)
    assert told["a.jsonl:10"] == ("leak", None)
    assert "bench.jsonl:1" in json.dumps(ledger["a.jsonl:10"])
    assert [rule for rule, _ in told.values()].count("mixture") == 2
    assert len(told) == 6

    copies = Counter(dataset.row(example) for example in range(dataset.num_examples))
    assert copies == {line["row"]: line["copies"] for line in ledger.values() if line["status"] == "used"}
    assert Counter(copies[row] for row in range(20)) == {2: 9, 3: 9, 0: 2}
    assert [copies[28], copies[29]] == [1, 1]


def test_shares_hold_of_the_rows_that_token_limits_leave_and_count_rows_not_pieces(
    tmp_path: Path, prepare: Any
) -> None:
    write(tmp_path / "a.jsonl", [(text(seed, 10), text(seed + 500, 10 if seed < 20 else 200)) for seed in range(40)])
    write(tmp_path / "b.jsonl", [(text(seed, 10), text(seed + 500, 10)) for seed in range(100, 140)])
    sources = [{"path": "a.jsonl", "split": "train"}, {"path": "b.jsonl", "split": "train", "limit": 30}]
    asked = {"sources": sources, "filters": {"length": None}, "mixture": {"temperature": "infinite"}, "max_tokens": 250}
    dataset, ledger = prepare(**asked)
    assert Counter(line["rule"] for line in ledger.values()) == {None: 45, "too_long": 20, "mixture": 15}
    copies = Counter({place[0]: 0 for place in ledger})
    for place, line in ledger.items():
        copies[place[0]] += line["copies"]
    assert copies == {"a": 25, "b": 25}, "halves, of what is left"
    asked["max_tokens"], sources[0]["path"] = 250, "texts.txt"
    (tmp_path / "texts.txt").write_text("".join(text(seed, 200) + "\n" for seed in range(30)))
    dataset, ledger = prepare(**asked, too_long="split")
    texts, chats = dataset.statistics["sources"]
    assert (texts["epoch"], chats["epoch"]) == (30, 30)
    assert texts["examples"] > 60
    assert texts["examples"] + chats["examples"] == dataset.num_examples


def test_another_file_to_watch_makes_another_dataset(tmp_path: Path, prepare: Any) -> None:
    write(tmp_path / "a.jsonl", [(text(seed, 30), "yes") for seed in range(20)])
    write(tmp_path / "bench.jsonl", [(text(3, 30), "public")])
    asked = {"sources": [{"path": "a.jsonl", "split": "train"}], "leaks": {"against": ["bench.jsonl"]}}
    _, before = prepare(**asked)
    write(tmp_path / "bench.jsonl", [(text(5, 30), "public")])
    _, after = prepare(**asked)
    assert [place for place in before if before[place]["status"] == "dropped"] == ["a.jsonl:4"]
    assert [place for place in after if after[place]["status"] == "dropped"] == ["a.jsonl:6"]
