"""The stage from rows to a Dataset: every row is accounted for, over-long rows as the recipe says, parts as files are cut."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunesmith
from tunesmith import hub
from tunesmith.errors import DataError
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.store import Store
from tunesmith.stages.prepare import items as items_module
from tunesmith.stages.prepare import rows as rows_module
from tunesmith.stages.prepare import spread
from tunesmith.text.example import Example, Message
from tunesmith.text.tokenizers import load_tokenizer

PLAIN = ("data.filters.length=null", "data.deduplicate=none", "data.leaks=keep", "data.split={validation: 0, test: 0}")


def chat(number: int, turns: int = 1, words: int = 5) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {number} {turn}: " + "why so " * words})
        messages.append({"role": "assistant", "content": f"Answer {number} {turn}: " + "it is so " * words})
    return {"messages": messages}


def prepare(folder: Path, rows: list[Any], *overrides: str, work: str = "work", name: str = "rows.jsonl") -> Dataset:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(
        f"data: {{sources: [{name}]}}\nmodel: {{template: instruction}}\ngate: {{require: none}}\n"
    )
    outcome = tunesmith.prepare(folder / "recipe.yaml", overrides=[*PLAIN, *overrides], workspace=folder / work)
    return Dataset(outcome.run.outputs("prepare")["dataset"].path)


def test_every_position_ends_somewhere_and_the_sums_agree(tmp_path: Path) -> None:
    rows: list[Any] = [chat(number) for number in range(40)]
    rows += [
        rows[3],
        rows[4],
        "{broken",
        {"messages": []},
        {"text": "Just a text, long enough to be kept by every rule of length."},
    ]
    rows += [chat(50, words=400), {"prompt": "Hi", "completion": "Yo"}, "", "   "]
    dataset = prepare(
        tmp_path, rows, "data.on_bad_row=quarantine", "data.max_bad_share=0.2", "data.deduplicate=exact",
        "data.filters.length={min_characters: 20}", "data.max_tokens=256",
    )  # fmt: skip
    ledger = list(dataset.ledger())
    assert [entry["row"] for entry in ledger] == list(range(len(ledger)))
    assert [entry["position"] for entry in ledger] == list(range(1, 48)), "blank lines are no rows"
    counts = Counter((entry["status"], entry["rule"]) for entry in ledger)
    assert counts == {
        ("used", None): 41,
        ("dropped", "duplicate"): 2,
        ("dropped", "too_short"): 1,
        ("dropped", "too_long"): 1,
        ("quarantined", "DAT-018"): 1,
        ("quarantined", "TXT-012"): 1,
    }, counts
    told = dataset.statistics
    assert told["read"] == told["used"] + told["dropped"] + told["quarantined"] == 47
    assert sum(entry["copies"] for entry in ledger) == dataset.num_examples
    twin = next(entry for entry in ledger if entry["rule"] == "duplicate")
    assert ledger[twin["kept_twin"]]["status"] == "used"
    assert ledger[twin["kept_twin"]]["key"] == twin["key"]


def test_parts_of_a_file_and_workers_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = [chat(number, turns=1 + number % 3) for number in range(60)]
    rows[17], rows[41] = "{broken", rows[2]
    settings = ("data.on_bad_row=quarantine", "data.max_bad_share=0.2", "data.deduplicate=exact")
    whole = prepare(tmp_path, rows, *settings, work="whole")
    monkeypatch.setattr(rows_module, "PART_BYTES", 3000)
    monkeypatch.setattr(spread, "ALONE", 0.0)  # so little work is not worth a worker otherwise
    cut = prepare(tmp_path, rows, *settings, "compute.workers=2", work="cut")
    assert len(list((tmp_path / "cut" / "artifacts" / "rows").glob("*/parts/*"))) > 5
    for name in ("tokens", "sequences", "spans", "span_offsets", "keys", "splits"):
        assert (whole.folder / f"{name}.npy").read_bytes() == (cut.folder / f"{name}.npy").read_bytes(), name
    assert list(whole.ledger()) == list(cut.ledger())
    assert whole.statistics == cut.statistics
    store = Store(tmp_path / "cut" / "artifacts")
    for kind in ("Rows", "Verdicts", "Tokens", "Dataset"):
        for path in (store.root / kind.lower()).glob("[!.]*/"):
            found = store.find(kind, path.name, verify="hash")
            assert found is not None, f"{path} has the hashes that its manifest lists"
            assert len(found.manifest["files"]) > 1


def test_a_killed_start_goes_on_from_finished_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [chat(number) for number in range(60)]
    monkeypatch.setattr(rows_module, "PART_BYTES", 3000)
    expected = prepare(tmp_path, rows, work="whole")
    made: list[int] = []
    make_part = rows_module.make_part

    def dies(task: rows_module.PartTask) -> dict[str, Any]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(task.number)
        return make_part(task)

    monkeypatch.setattr(rows_module, "make_part", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, rows, "compute.workers=1")
    made.clear()
    counted: list[int] = []

    def counts(task: rows_module.PartTask) -> dict[str, Any]:
        counted.append(task.number)
        return make_part(task)

    monkeypatch.setattr(rows_module, "make_part", counts)
    dataset = prepare(tmp_path, rows, "compute.workers=1")
    assert min(counted) == 3, "the first three parts were there"
    assert (dataset.folder / "tokens.npy").read_bytes() == (expected.folder / "tokens.npy").read_bytes()
    assert not list((tmp_path / "work" / "artifacts" / "rows").glob(".parts-*"))


def test_a_changed_threshold_encodes_no_row_again(tmp_path: Path) -> None:
    rows = [chat(number, words=1 + number % 9) for number in range(30)]
    first = prepare(tmp_path, rows)
    second = prepare(tmp_path, rows, "data.filters.length={min_characters: 120}")
    assert second.num_examples < first.num_examples
    encoded = [
        json.loads(line)["value"]
        for path in sorted((tmp_path / "work" / "runs").glob("*/events.jsonl"))
        for line in path.read_text().splitlines()
        if '"prepare/encoded_rows"' in line
    ]
    assert sorted(encoded) == [0, 30]


def test_a_long_chat_is_split_between_exchanges_and_learns_each_answer_once(tmp_path: Path) -> None:
    rows = [chat(0, turns=9), chat(1), {"text": "word " * 400}]
    whole = prepare(tmp_path, rows, "data.max_tokens=4096")
    split = prepare(tmp_path, rows, "data.max_tokens=128", "data.too_long=split")
    assert max(split.lengths()) <= 128
    assert [split.row(example) for example in range(split.num_examples)] == sorted(
        split.row(example) for example in range(split.num_examples)
    )
    entries = list(split.ledger())
    assert [entry["rule"] for entry in entries] == ["split", None, "split"]
    assert [entry["copies"] for entry in entries] == [
        sum(split.row(example) == row for example in range(split.num_examples)) for row in range(3)
    ]
    assert learned_texts(split, 0) == learned_texts(whole, 0)
    pieces = [split.sequence(example)[0] for example in range(split.num_examples) if split.row(example) == 0]
    heads = {tuple(piece[:6].tolist()) for piece in pieces}
    assert len(heads) == 1, "every piece begins with the system turn"
    texts = [split.sequence(example)[0] for example in range(split.num_examples) if split.row(example) == 2]
    assert np.concatenate(texts).tolist() == whole.sequence(2)[0].tolist()
    told, lengths = split.statistics, split.lengths()
    train = told["splits"]["train"]
    assert (train["rows"], train["examples"]) == (3, split.num_examples), "what is told is what is trained"
    assert (train["tokens"], train["max"]) == (lengths.sum(), lengths.max())
    assert train["learned_tokens"] == split.learned_weights().sum()
    assert (sum(told["lengths"]["counts"]), told["lengths"]["edges"][-1]) == (split.num_examples, lengths.max())
    (source,) = told["sources"]
    assert (source["epoch"], source["examples"], source["tokens"]) == (3, split.num_examples, lengths.sum())


def learned_texts(dataset: Dataset, row: int) -> list[list[int]]:
    """The learned stretches of all sequences of a row, in order."""
    out = []
    for example in range(dataset.num_examples):
        if dataset.row(example) == row:
            ids, spans, _ = dataset.sequence(example)
            out += [ids[start:end].tolist() for start, end in spans]
    return out


def test_an_exchange_that_is_too_long_alone_is_left_out_and_said(tmp_path: Path) -> None:
    row = chat(0, turns=3)
    row["messages"][4]["content"] = "it is so " * 300
    dataset = prepare(tmp_path, [row, chat(1), chat(2, words=300)], "data.max_tokens=128", "data.too_long=split")
    entries = list(dataset.ledger())
    assert [entry["status"] for entry in entries] == ["used", "used", "dropped"]
    assert entries[0]["detail"] == "1 exchange too long alone, left out"
    assert entries[2]["rule"] == "too_long"
    over = dataset.statistics["over_limit"]
    assert over["rows"] == 2
    assert 0.4 < over["learned_share"] < 1


def test_cutting_says_how_many_learned_tokens_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = chat(1)
    long["messages"][2]["content"] = "it is so " * 80
    dataset = prepare(tmp_path, [chat(0), long, chat(2)], *PLAIN, "data.max_tokens=200", "data.too_long=truncate")
    over = dataset.statistics["over_limit"]
    assert over["rows"] == 1
    assert over["learned_lost"] > 0
    printed = capsys.readouterr().err
    assert "1 rows over data.max_tokens 200 are cut" in printed
    assert f"{over['learned_share']:.1%} of the learned tokens lost" in printed
    assert dataset.lengths().tolist()[1] == 200
    (tmp_path / "alone").mkdir()
    alone = prepare(tmp_path / "alone", [chat(2)], *PLAIN)
    assert dataset.sequence(2)[0].tolist() == alone.sequence(0)[0].tolist(), (
        "what is cut off does not run into the next"
    )


def test_rows_that_the_template_refuses_are_bad_rows_as_well(tmp_path: Path) -> None:
    with_tool = {
        "messages": [*chat(1)["messages"], {"role": "tool", "content": "4"}, {"role": "assistant", "content": "Four."}]
    }
    (tmp_path / "no_tools.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rows = [*(chat(number) for number in range(20)), with_tool]
    template = "model.template=no_tools.jinja"
    with pytest.raises(DataError, match=r"(?s)TXT-056 rows\.jsonl:21: .*no tools here.*data\.on_bad_row: quarantine"):
        prepare(tmp_path, rows, template)
    dataset = prepare(tmp_path, rows, template, "data.on_bad_row=quarantine", "data.max_bad_share=0.1")
    assert list(dataset.ledger())[20]["rule"] == "template"
    with pytest.raises(DataError, match=r"more than data\.max_bad_share"):
        prepare(tmp_path, rows, template, "data.on_bad_row=quarantine", "data.max_bad_share=0.01")


def test_how_many_rows_are_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, [chat(0), chat(1), chat(1)], "data.deduplicate=exact")
    assert "2 of 3 rows used (train 2); 1 dropped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("opening", "is_cut"), [("<assistant>", True), ("<assistant>(think)", False)], ids=["as the chat", "otherwise"]
)
def test_held_out_prompts_are_those_that_serving_makes(
    tmp_path: Path, opening: str, is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut from the rows' own ids where that is the same, and only there."""
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{opening}{{% endif %}}"
    )
    encoded: list[Example] = []
    slowly = items_module._Prompts._encoded

    def counted(self: Any, example: Example) -> list[int]:
        encoded.append(example)
        return slowly(self, example)

    rows = [chat(number, turns=1 + number % 2) for number in range(40)]
    with monkeypatch.context() as patch:
        patch.setattr(items_module._Prompts, "_encoded", counted)
        dataset = prepare(tmp_path, rows, "model.template=own.jinja", "data.split={validation: 0.5, test: 0}")
    items = dataset.items()
    assert len(items) > 12
    assert (len(encoded) < len(items)) == is_cut
    tokenizer = load_tokenizer(hub.resolve("builtin:tunesmith-tiny"), str(tmp_path / "own.jinja"))
    for item in items:
        messages = [Message(turn["role"], turn["content"]) for turn in item["messages"]]
        assert item["prompt_ids"] == tokenizer.encode_prompt(messages)
