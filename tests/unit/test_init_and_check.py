"""`init` writes recipes that run as they are, `check` finds everything that is wrong: on small real files, through the API."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tunesmith import api
from tunesmith.cli import group
from tunesmith.errors import DataError, FileError, Findings, QuestionError
from tunesmith.recipe import load_recipe
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.prepare import survey as survey_module
from tunesmith.stages.prepare.columns import propose_fields
from tunesmith.stages.prepare.look import _split_of

QUESTIONS = [f"Where is order number {number}, which I placed a while ago?" for number in range(60)]
ANSWERS = [f"Order {number} is on its way to you." for number in range(60)]


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_table(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def pairs(start: int = 0, stop: int = 60) -> list[tuple[str, str]]:
    return list(zip(QUESTIONS, ANSWERS, strict=True))[start:stop]


def alpaca(folder: Path) -> Path:
    rows = [{"instruction": "Answer the customer.", "input": q, "output": a} for q, a in pairs()]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    return folder / "alpaca.json"


def sharegpt(folder: Path) -> Path:
    rows = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in pairs()]
    return write_lines(folder / "sharegpt.jsonl", rows)


def messages(folder: Path) -> Path:
    rows = [
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in pairs()
    ]  # fmt: skip
    return write_lines(folder / "it's messages.jsonl", rows)


def prompt_completion(folder: Path) -> Path:
    return write_lines(folder / "pairs.jsonl", [{"prompt": q, "completion": a} for q, a in pairs()])


def text(folder: Path) -> Path:
    (folder / "texts.txt").write_text("".join(f"{q} {a}\n" for q, a in pairs()))
    return folder / "texts.txt"


def foreign_csv(folder: Path) -> Path:
    return write_table(
        folder / "tickets.csv",
        ["id", "Customer Message", "agentReply"],
        [(n, q, a) for n, (q, a) in enumerate(pairs())],
    )


def labels_csv(folder: Path) -> Path:
    """Rows of a classifier: known as texts by their name, and the label would be lost."""
    return write_table(
        folder / "labels.csv", ["text", "category"], [(q, f"kind {n % 3}") for n, (q, _) in enumerate(pairs())]
    )


def other_case(folder: Path) -> Path:
    return write_lines(folder / "case.jsonl", [{"Instruction": "Answer.", "Input": q, "Output": a} for q, a in pairs()])


def scored(folder: Path) -> Path:
    rows = [
        {"prompt": q, "completion": a, "quality_score": 0.2 if n % 5 == 0 else 0.9} for n, (q, a) in enumerate(pairs())
    ]
    return write_lines(folder / "scored.jsonl", rows)


def preference_pairs(folder: Path) -> Path:
    return write_lines(folder / "dpo.jsonl", [{"prompt": q, "chosen": a, "rejected": "No idea."} for q, a in pairs()])


def ranked_answers(folder: Path) -> Path:
    rows = [{"prompt": q, "responses": ["No idea.", a], "scores": [1, 4]} for q, a in pairs()]
    return write_lines(folder / "ranked.jsonl", rows)


def liked_answers(folder: Path) -> Path:
    rows = [{"prompt": q, "completion": a, "label": n % 3 > 0} for n, (q, a) in enumerate(pairs())]
    return write_lines(folder / "kto.jsonl", rows)


def capital_pairs(folder: Path) -> Path:
    return write_lines(folder / "Dpo.jsonl", [{"Prompt": q, "Chosen": a, "Rejected": "No."} for q, a in pairs()])


def several_files(folder: Path) -> Path:
    for name, start, stop in (("train-1", 0, 25), ("train-2", 25, 50), ("dev", 50, 55), ("test", 55, 60)):
        write_lines(folder / "set" / f"{name}.jsonl", [{"prompt": q, "completion": a} for q, a in pairs(start, stop)])
    (folder / "set" / "README.txt").write_text("This is about the data.\n")
    (folder / "set" / "labels.json").write_text('["a", "b"]')
    return folder / "set"


def other_language(folder: Path) -> Path:
    """Three tokens a character and more: a guess by characters would drop every row."""
    rows = [
        {"prompt": f"订单{n}现在在哪里，什么时候可以送到我的家里？" * 3, "completion": f"订单{n}正在路上。"}
        for n in range(60)
    ]
    return write_lines(folder / "chinese.jsonl", rows)


SETS = (
    alpaca,
    sharegpt,
    messages,
    prompt_completion,
    text,
    foreign_csv,
    labels_csv,
    other_case,
    scored,
    preference_pairs,
    ranked_answers,
    liked_answers,
    capital_pairs,
    several_files,
    other_language,
)
FIELDS = {
    "foreign_csv": {"prompt": "Customer Message", "completion": "agentReply"},
    "labels_csv": {"prompt": "text", "completion": "category"},
    "capital_pairs": {"prompt": "Prompt", "chosen": "Chosen", "rejected": "Rejected"},
    "other_case": {"instruction": "Instruction", "input": "Input", "output": "Output"},
}


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_what_init_writes_is_fine_and_prepares_as_it_is(tmp_path: Path, make) -> None:
    recipe = api.init(make(tmp_path), out=tmp_path / "recipe.yaml")
    spec = load_recipe(recipe)
    assert spec.data.sources[0].fields == FIELDS.get(make.__name__, {})
    found = api.check(recipe, workspace=tmp_path / "work")
    assert (found.problems, found.exit_status) == ([], 0)
    outcome = api.prepare(recipe, workspace=tmp_path / "work", quiet=True)
    statistics = Dataset(outcome.run.outputs("prepare")["dataset"].path).statistics
    lost = {item["rule"] for item in statistics["funnel"]}
    asked = {scored: {"quality"}, liked_answers: {"where.1"}}
    assert lost == asked.get(make, set()), "init's own settings drop nothing that was not asked for"
    splits = {name: counts["rows"] for name, counts in statistics["splits"].items()}
    assert all(splits.values())
    if make is several_files:
        assert splits == {"train": 50, "validation": 5, "test": 5}


def test_the_recipe_says_what_was_seen(tmp_path: Path) -> None:
    told = api.init(several_files(tmp_path), out=tmp_path / "recipe.yaml").read_text()
    assert "split: train" in told
    assert "left out: README.txt (by its name it holds no rows)" in told
    assert "left out: labels.json (the row is text)" in told
    assert told.startswith("# yaml-language-server: $schema=")
    assert Path(told.split("\n")[0].partition("=")[2]).is_file()
    told = api.init(scored(tmp_path), out=tmp_path / "scored.yaml").read_text()
    assert (
        "quality: {column: quality_score, above: 0.7}   # 12 of 60 rows are not above it; scores run from 0.2 to 0.9"
        in told
    )
    told = api.init(text(tmp_path), out=tmp_path / "text.yaml").read_text()
    assert "metrics: [perplexity]" in told
    assert "require: none" in told


def test_of_judged_answers_the_recipe_says_what_is_learned(tmp_path: Path) -> None:
    done = CliRunner().invoke(group, ["init", str(preference_pairs(tmp_path)), "-o", str(tmp_path / "recipe.yaml")])
    assert "dpo.jsonl: preference pairs: the chosen answers are learned (format: chosen)" in done.output
    line = next(line for line in (tmp_path / "recipe.yaml").read_text().splitlines() if "dpo.jsonl, split" in line)
    assert "format: chosen}   # preference pairs: SFT learns the chosen answers" in line


def test_without_a_test_file_that_part_is_drawn_from_the_training_rows(tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    files = [write_lines(tmp_path / name, rows) for name in ("train.jsonl", "validation.jsonl")]
    spec = load_recipe(api.init(*files, out=tmp_path / "recipe.yaml"))
    assert [source.split for source in spec.data.sources] == ["auto", "validation"]
    assert (spec.data.split.validation, spec.data.split.test) == (0, 0.3)
    alone = load_recipe(api.init(files[0], out=tmp_path / "alone.yaml"))
    assert alone.data.sources[0].split == "auto", "with nothing held out beside it, a name decides nothing"


def test_bad_rows_are_a_question_that_the_recipe_asks(tmp_path: Path) -> None:
    path = prompt_completion(tmp_path)
    with path.open("a") as file:
        file.write('{"prompt": "half a r\n{"prompt": 3, "completion": "x"}\n')
    recipe = api.init(path, out=tmp_path / "recipe.yaml")
    told = recipe.read_text()
    assert "# 2 of 62 rows cannot be used (DAT-018 x 1, TXT-008 x 1), first pairs.jsonl:61: not JSON" in told
    assert "on_bad_row: stop\n  # max_bad_share: 0.035" in told
    with pytest.raises(DataError, match=r"(?s)DAT-032 .*data\.on_bad_row: quarantine"):
        api.prepare(recipe, workspace=tmp_path / "work", quiet=True)
    recipe.write_text(
        told.replace("on_bad_row: stop", "on_bad_row: quarantine").replace("# max_bad_share", "max_bad_share")
    )
    api.prepare(recipe, workspace=tmp_path / "work", quiet=True)


def test_init_answers_what_it_cannot_use(tmp_path: Path) -> None:
    odd = write_lines(tmp_path / "odd.jsonl", [{"a": 1, "b": [2]}] * 3)
    with pytest.raises(QuestionError, match=r"(?s)CLI-002 .*no known format has the columns a, b"):
        api.init(odd, out=tmp_path / "recipe.yaml")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(
        QuestionError, match=r"(?s)CLI-002 .*there is no row in .*empty.jsonl: it is empty.*name a file with rows"
    ):
        api.init(tmp_path / "empty.jsonl", out=tmp_path / "recipe.yaml")
    good = prompt_completion(tmp_path)
    api.init(good, out=tmp_path / "recipe.yaml")
    with pytest.raises(FileError, match=r"CLI-001 .*exists already"):
        api.init(good, out=tmp_path / "recipe.yaml")
    with pytest.raises(FileError, match=r"CLI-009 .*cannot be written"):
        api.init(good, out=tmp_path / "nowhere" / "recipe.yaml")


def test_a_base_without_a_template_or_a_tokenizer_is_answered_in_the_recipe(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in tiny_model_dir.iterdir():
        if path.name != "chat_template.jinja":
            (plain / path.name).write_bytes(path.read_bytes())
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    recipe = api.init(prompt_completion(tmp_path), out=tmp_path / "recipe.yaml", base=str(plain))
    assert load_recipe(recipe).model.template == "instruction"
    assert load_recipe(recipe).model.base == str(plain)
    api.prepare(recipe, workspace=tmp_path / "work", quiet=True)
    guessed = api.init(prompt_completion(tmp_path), out=tmp_path / "guessed.yaml", base="acme/never-fetched")
    assert "guessed from characters" in guessed.read_text()


@pytest.mark.parametrize(
    ("columns", "fields"),
    [
        (("prompt", "completion"), {}),
        (("input", "output"), {"prompt": "input", "completion": "output"}),
        (("context", "question", "answers_text"), None),
        (("context", "question", "answer"), {}),
        (("passage", "user query", "reply"), {"instruction": "user query", "input": "passage", "output": "reply"}),
        (("Title", "SQL"), {"prompt": "Title", "completion": "SQL"}),
        (("links", "rechts"), {"prompt": "links", "completion": "rechts"}),
        (("id", "poem"), {"text": "poem"}),
        (("text",), {}),
        (("eins", "zwei", "drei"), None),
    ],
)
def test_columns_are_judged_by_their_names(columns: tuple[str, ...], fields: dict[str, str] | None) -> None:
    assert propose_fields([{name: f"some {name}" for name in columns}] * 3) == fields


@pytest.mark.parametrize(
    ("name", "split"),
    [("train.jsonl", "train"), ("train-00000-of-00001.parquet", "train"), ("my_dev.csv", "validation"), ("test_public.csv", "test"),
     ("validation/part-0.jsonl", "validation"), ("train_test.csv", "auto"), ("contest.jsonl", "auto"), ("rows.jsonl", "auto")],
)  # fmt: skip
def test_splits_are_read_from_names(name: str, split: str) -> None:
    assert _split_of(Path("set") / name) == split


# ---------------------------------------------------------------------------------------------------------------- check


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A recipe in which nearly everything is wrong that can be, beside rows that are good."""
    path = prompt_completion(tmp_path)
    with path.open("a") as file:
        file.write('{"prompt": \n' * 5 + '{"prompt": 3, "completion": "x"}\n')
    (tmp_path / "recipe.yaml").write_text(
        "data: {sources: [pairs.jsonl, gone.jsonl]}\nadapter: {targets: [q_proj, attention]}\n"
        "model: {precision: fp16}\nevaluate: {metrics: [exact_mach, 'own.py:score']}\n"
    )
    return tmp_path / "recipe.yaml"


def codes(found: Findings) -> set[str]:
    return {problem.code for problem in found.problems}


def test_check_reports_everything_at_once(spoiled: Path) -> None:
    found = api.check(spoiled)
    assert codes(found) == {"EVL-003", "RUN-022", "MDL-101", "MDL-105", "DAT-001", "DAT-018", "TXT-008", "DAT-032"}
    shown = [problem.where for problem in found.problems if problem.code == "DAT-018"]
    assert shown == ["pairs.jsonl:61:12"], "what is said of several rows is said once"
    assert "(5 rows with this code, such as pairs.jsonl:62:12, pairs.jsonl:63:12)" in next(
        problem.what for problem in found.problems if problem.code == "DAT-018"
    )
    assert found.exit_status == 64, "that of the first"
    assert not (spoiled.parent / "tunesmith-work").exists(), "nothing is written"


def test_check_names_a_recipe_that_cannot_be_read_and_a_model_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {sources: rows.jsonl}\nlr: 3\n")
    assert codes(api.check(tmp_path / "recipe.yaml")) == {"RCP-008"}
    found = api.check(tmp_path / "gone.yaml")
    assert (codes(found), found.exit_status) == ({"RCP-001"}, 74)
    prompt_completion(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data: {sources: pairs.jsonl}\nmodel: {base: ./gone}\n")
    found = api.check(tmp_path / "recipe.yaml")
    assert (codes(found), found.exit_status) == ({"MDL-001"}, 66)
    assert "60 rows read (prompt_completion 60 by prompt, completion)" in found.facts, (
        "the rows are looked at all the same"
    )


def test_a_file_in_another_encoding_is_converted_as_a_whole(tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": f"{a} Voilà, à bientôt." if n % 2 else a} for n, (q, a) in enumerate(pairs())]
    latin = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("latin-1")
    (tmp_path / "old rows.jsonl").write_bytes(latin)
    write_lines(tmp_path / "mixed.jsonl", [{"prompt": q, "completion": a + "\u00e9"} for q, a in pairs()[:1]])
    with (tmp_path / "mixed.jsonl").open("ab") as file:
        file.write(latin.splitlines(keepends=True)[1])
    (tmp_path / "recipe.yaml").write_text("data: {sources: ['old rows.jsonl', mixed.jsonl]}\n")
    whole, row, _ = api.check(tmp_path / "recipe.yaml").problems
    assert (whole.code, whole.where.split(":")[0]) == ("DAT-013", "old rows.jsonl")
    assert "no row of the file that holds more than ASCII is UTF-8 (30 rows)" in whole.what
    new = tmp_path / "old rows.utf8.jsonl"
    command = whole.fix.partition("file: ")[2].partition(";")[0]
    assert command == f"iconv -f latin1 -t utf-8 '{tmp_path}/old rows.jsonl' > '{new}'"
    assert row.where.startswith("mixed.jsonl:2")
    assert "write this row again" in row.fix


def test_characters_that_nobody_sees_are_counted_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": q, "completion": f"{a} à, ÿ, 訂單　한, می\u200cشود"} for q, a in pairs()]
    for place, more in (
        (3, "cafe\u0301"),
        (7, "a\u0323\u0307 \u1112\u1161"),
        (9, "\u202etxt"),
        (11, "zero\u200bwidth\u00a0wide"),
    ):
        rows[place]["completion"] += more
    write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text("data: {sources: rows.jsonl}\n")
    expected = [
        "1 row with bidirectional controls, kept as they are, such as rows.jsonl:10",
        "1 row with zero-width characters, kept as they are, such as rows.jsonl:12",
        "1 row with odd spaces, kept as they are, such as rows.jsonl:12",
        "2 rows with text that is not composed (NFC), kept as they are, such as rows.jsonl:4, rows.jsonl:8",
    ]
    warnings = api.check(tmp_path / "recipe.yaml").warnings
    assert [warning for warning in warnings if "kept as they are" in warning] == expected
    made = api.prepare(tmp_path / "recipe.yaml", workspace=tmp_path / "work")
    printed = capsys.readouterr().err
    assert all(sentence in printed for sentence in expected)
    told = Dataset(made.run.outputs("prepare")["dataset"].path).statistics["told"]["cleaning"]["odd"]
    assert told["bidirectional controls"] == {"rows": 1, "samples": ["rows.jsonl:10"]}


def test_what_is_skipped_of_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    prompt_completion(folder)
    for name in ("notes.docx", "._pairs.jsonl", ".cache/old.jsonl", "1.png", "2.png", "3.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\1")
    told = "6 files skipped (hidden, or of a kind that is not read): ._pairs.jsonl, old.jsonl, 1.png, 2.png, 3.png and 1 more"
    done = CliRunner().invoke(group, ["init", str(folder), "-o", str(tmp_path / "recipe.yaml")])
    assert f"  {told}\n" in done.output
    recipe = tmp_path / "recipe.yaml"
    assert f"#   {told}\n" in recipe.read_text()
    recipe.write_text("data: {sources: [set, set/pairs.jsonl]}")
    assert told in api.check(recipe, overrides=["data.deduplicate=none"]).facts
    api.prepare(recipe, workspace=tmp_path / "work")
    assert capsys.readouterr().err.count(told) == 1


def test_check_asks_what_the_filters_would_ask(tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a, "quality_score": 0.1} for q, a in pairs()] + [
        {"prompt": f"hi {n}", "completion": "yo"} for n in range(9)
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text("data: {sources: rows.jsonl}\n")
    found = api.check(tmp_path / "recipe.yaml")
    asked = [problem.where for problem in found.problems if problem.code == "DAT-030"]
    assert asked == ["data.filters.length", "data.filters.quality"], "both, not the first alone"
    assert "DAT-033" in codes(found)
    assert found.exit_status == 65


def test_check_counts_duplicates_and_leaks(tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    write_lines(tmp_path / "train.jsonl", rows + rows[:7])
    write_lines(tmp_path / "test.jsonl", rows[20:32])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {sources: [{path: train.jsonl, split: train}, {path: test.jsonl, split: test}]}\n")
    found = api.check(recipe)
    assert "7 duplicates would be dropped" in found.facts
    assert "12 rows would be dropped because what they ask is also held out, such as train.jsonl:21" in found.facts
    assert "48 rows to train on, 0 for validation, 12 for the test" in found.facts
    assert any("no validation rows" in warning for warning in found.warnings)
    assert any("only 12 held-out rows" in warning for warning in found.warnings)
    kept = api.check(recipe, overrides=["data.leaks=keep"])
    assert any("12 training rows ask what is also held out" in warning for warning in kept.warnings)


def test_check_looks_at_tokens_of_a_sample_that_holds_the_longest_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_module, "SAMPLE", 5)
    monkeypatch.setattr(survey_module, "LONGEST", 2)
    rows = [{"prompt": q, "completion": a} for q, a in pairs()]
    write_lines(tmp_path / "rows.jsonl", [*rows, {"prompt": "Tell me a story, please.", "completion": "long " * 500}])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {sources: rows.jsonl, max_tokens: 256}\n")
    found = api.check(recipe)
    assert "1 of the longest rows: longer than data.max_tokens 256, would be dropped" in found.warnings
    assert any(fact.startswith("training takes about") for fact in found.facts), "a plan with these rows' lengths"
    short = api.check(recipe, overrides=["data.max_tokens=8"])
    assert any("5 of a sample of 5 of 61 rows: longer" in warning for warning in short.warnings)
    told = next(fact for fact in short.facts if "to train on" in fact)
    assert told.startswith("about 0 rows to train on")
    assert "is known of 5 of them" in told
    assert api.check(recipe, overrides=["data.max_tokens=4096"]).warnings[-1].startswith("only")
    cut = api.check(recipe, overrides=["data.too_long=truncate"])
    told = "1 of 7 rows looked at are cut at data.max_tokens 256; 44.3% of the learned tokens are lost"
    assert told in cut.warnings


def test_check_finds_rows_that_a_template_refuses_and_rows_with_nothing_to_learn(tmp_path: Path) -> None:
    (tmp_path / "strict.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    )
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs()]
    rows[3]["messages"].insert(0, {"role": "system", "content": "Be kind."})
    for row in rows[10:14]:
        row["messages"][-1]["train"] = False  # type: ignore[assignment]
    write_lines(tmp_path / "rows.jsonl", rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {sources: rows.jsonl}\nmodel: {template: strict.jinja}\n")
    found = api.check(recipe)
    assert "1 of 60 rows: refused by the chat template, would be set apart (1.7%)" in found.warnings
    (refusal,) = found.problems
    assert (refusal.code, refusal.where) == ("TXT-056", "rows.jsonl:4")
    assert "the chat template refuses this chat: no system turns here" in refusal.what
    apart = api.check(recipe, overrides=["data.on_bad_row=quarantine", "data.max_bad_share=0.05"])
    assert not apart.problems
    assert any("first rows.jsonl:4: the chat template refuses" in warning for warning in apart.warnings)
    assert "4 of 60 rows: no token to learn, would be dropped (6.7%)" in found.warnings
    told = next(fact for fact in apart.facts if "to train on" in fact)
    made = api.prepare(
        recipe,
        overrides=["data.on_bad_row=quarantine", "data.max_bad_share=0.05"],
        workspace=tmp_path / "work",
        quiet=True,
    )
    rows = Dataset(made.run.outputs("prepare")["dataset"].path).statistics["splits"]
    train, validation, test = (rows[name]["rows"] for name in ("train", "validation", "test"))
    assert told == f"{train} rows to train on, {validation} for validation, {test} for the test"
    assert train + validation + test == 55, "not those of which it says that they go"


def test_check_says_when_nothing_can_be_evaluated(tmp_path: Path) -> None:
    prompt_completion(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data: {sources: pairs.jsonl, split: {validation: 0, test: 0}}\n")
    assert codes(api.check(tmp_path / "recipe.yaml")) == {"CLI-008"}
    assert not api.check(tmp_path / "recipe.yaml", overrides=["gate.require=none"]).problems
    stopped = api.check(tmp_path / "recipe.yaml", overrides=["export.merged=false", "gate.require=none"])
    assert any("RUN-021" in warning for warning in stopped.warnings)
