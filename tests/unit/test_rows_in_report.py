"""What the report and `explain` tell of rows: everything that prepare saw, in words, with places; and no text that may not be shown."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tunesmith
from tunesmith.cli import group
from tunesmith.report.data import examined, fate, measured, sample, together
from tunesmith.report.facts import gather
from tunesmith.report.page import build
from tunesmith.report.redaction import masked, redact
from tunesmith.runs.rules import in_order, in_words
from tunesmith.runs.run import Run

DOCS = Path(__file__).parents[2] / "docs"
HOSTILE = "<script>alert('1')</script>"
SECRET = "Zebrafisch"  # stands in every text below
PREPARED = """
name: seen
data:
  sources: [{path: rows.jsonl, name: desk}, {path: more.jsonl, repeat: 2}]
  on_bad_row: quarantine
  max_bad_share: 0.2
  max_tokens: 300
  filters: {length: {min_characters: 30}, refusals: {}, residue: {}, pii: {email: redact}, accept_drop_share: 1.0}
  quality: {type: heuristics, above: 0.1}
  split: {validation: 0.1, test: 0.1}
"""


def chat(number: int, answer: str = "") -> dict[str, str]:
    asked = f"What do we know about {SECRET} number {number} of the {number * 7} that came by ship?"
    return {"prompt": asked, "completion": answer or f"The {SECRET} with number {number} swims in tank {number * 3}."}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with something for every part of the page: line 3 is blank, line 4 is a twin of line 1, line 5 is no JSON."""
    folder = tmp_path_factory.mktemp("seen")
    first = json.dumps(chat(0))
    lines = [first, json.dumps(chat(1)), "", first, f'{{"prompt": "{SECRET}'] + [
        json.dumps(chat(n)) for n in range(2, 40)
    ]
    lines += [
        json.dumps(chat(90, f"I'm sorry, but I cannot talk about the {SECRET}.")),
        json.dumps(chat(91, f"As an AI, {SECRET}.")),
    ]
    lines += [json.dumps(chat(92, f"{SECRET} lives. " * 300)), json.dumps({"prompt": "Hi", "completion": "Yo"})]
    lines += [json.dumps(chat(93, f"Ask anna@acme.io about the {SECRET}, she knows."))]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "more.jsonl").write_text("".join(json.dumps(chat(n)) + "\n" for n in range(100, 106)))
    (folder / "recipe.yaml").write_text(PREPARED)
    return tunesmith.prepare(folder / "recipe.yaml", workspace=folder / "work").run


def page_of(run: Run) -> str:
    return build(run).read_text(encoding="utf-8")


def test_the_funnel_is_in_the_order_of_what_happened_and_in_words(prepared: Run) -> None:
    page = page_of(prepared)
    labels = re.findall(r"<div class=\"bar\"><span>([^<]+)</span>", page)
    assert labels[:9] == [
        "read", "could not be read", "too short (characters)", "leftovers of a template or an assistant", "refuses to answer",
        "exact duplicate", "too long (tokens)", "used", "desk",
    ]  # fmt: skip
    for told in (
        "e-mail address replaced in 1 row", "What each threshold of", "Over data.max_tokens 300: 1 row, dropped",
        "No row that is trained on gives a held-out row away", "examples by length in tokens, as they are trained", "rows by score, kept from 0.1",
        "Mixture",
    ):  # fmt: skip
        assert told in page, told


def test_every_rule_comes_with_rows_to_look_at_and_the_command(prepared: Run) -> None:
    page = page_of(prepared)
    for place in ("rows.jsonl:5", "rows.jsonl:44", "rows.jsonl:46", "rows.jsonl:48"):
        assert f"<code>{place}</code>" in page, place
    assert f"tunesmith explain rows.jsonl:5 --run {prepared.id}" in page


def test_what_an_epoch_holds_of_each_source_adds_up(prepared: Run) -> None:
    facts = gather(prepared)
    desk, more = facts["statistics"]["sources"]
    assert (desk["name"], more["name"]) == ("desk", "more")
    assert desk["read"] + more["read"] == facts["statistics"]["read"]
    assert desk["trained"] + more["trained"] == facts["statistics"]["splits"]["train"]["rows"]
    assert more["epoch"] == 2 * more["trained"]
    assert desk["tokens"] + more["tokens"] == facts["statistics"]["splits"]["train"]["tokens"]
    assert desk["examples"] + more["examples"] == facts["statistics"]["splits"]["train"]["examples"]


@pytest.mark.parametrize("texts", ["masked", "hidden"])
def test_texts_that_may_not_be_shown_stand_nowhere_and_nothing_runs_again(prepared: Run, texts: str) -> None:
    assert SECRET in page_of(prepared), "else this test sees nothing"
    recipe = prepared.workspace.parent / "recipe.yaml"
    outcome = tunesmith.prepare(recipe, overrides=[f"report.texts={texts}"], workspace=prepared.workspace)
    again = outcome.run
    assert again.id != prepared.id
    assert again.outputs("prepare") == prepared.outputs("prepare")
    assert not [event for event in again.events() if event.name == "prepare/rows_read"]
    page, stored = page_of(again), (again.path / "report.json").read_text()
    for text in (page, stored):
        assert SECRET not in text
        assert "As an AI" not in text
        assert "rows.jsonl:1" in text, "places stay"
    assert ("xxxxxxxxxx" in page) == (texts == "masked")
    assert f"report.texts: {texts}" in page


def test_errors_that_may_quote_rows_keep_their_code_and_place(tmp_path: Path) -> None:
    from tunesmith.recipe import parse_recipe

    run = Run.open_or_create(tmp_path, parse_recipe("data: {sources: rows.jsonl}\nreport: {texts: hidden}"))
    row = {"code": "DAT-013", "where": "rows.jsonl:7", "what": f"reads {SECRET}", "expected": SECRET, "fix": SECRET}
    error = {"error": "DAT-032", "what": "1 of 9 rows cannot be used", "exit_status": 65, "problems": [row]}
    run.record("prepare", "stage/failed", error)
    page = page_of(run)
    assert "1 of 9 rows cannot be used" in page
    assert "DAT-013 rows.jsonl:7" in page
    assert SECRET not in page + (run.path / "report.json").read_text()
    run.record("train", "stage/failed", {"error": "KeyError", "what": SECRET, "exit_status": 70, "problems": []})
    assert SECRET not in page_of(run) + (run.path / "report.json").read_text()


def test_answers_and_proofs_are_texts_as_well() -> None:
    item = {"row": 1, "part": "test", "place": "rows.jsonl:2", "messages": [{"role": "user", "content": SECRET}],
            "expected": SECRET, "base": SECRET, "tuned": SECRET}  # fmt: skip
    differences = [
        {"row": 1, "trained": SECRET, "exported": SECRET, "evaluation": SECRET, "endpoint": SECRET, "token": 3}
    ]
    facts: dict[str, Any] = {
        "samples": [{"row": 0, "place": "rows.jsonl:1", "pieces": [{"text": SECRET, "learned": True}]}],
        "examples": {"metric": None, "n": 1, "counts": {"asked": 1}, "shown": {"asked": [item]}},
        "statistics": {"told": {"cleaning": {"filters": {"residue": {"first": [[3, SECRET], [4, 0.5]]}}}}},
        "parity": {"export": {"differences": differences}, "serve": None},
        "status": {"trouble": None},
    }
    assert redact(facts, "shown") is facts
    for texts in ("masked", "hidden"):
        assert SECRET not in json.dumps(redact(facts, texts))  # type: ignore[arg-type]
    assert redact(facts, "masked")["statistics"]["told"]["cleaning"]["filters"]["residue"]["first"][1] == [4, 0.5]


def test_a_masked_text_keeps_its_shape() -> None:
    assert masked("Order 12: où?\n\t<|end|> 你好 ٣ ½ \U0001f600") == "xxxxx 00: xx?\n\t<|xxx|> xx 0 0 x"


# ------------------------------------------------------------------------------------------------------ parts alone


def facts_with(statistics: dict[str, Any] | None) -> dict[str, Any]:
    from tunesmith.recipe import parse_recipe

    recipe = parse_recipe(f"data: {{sources: [a.jsonl, {{path: b.jsonl, name: '{'x' if statistics else 'y'}'}}]}}")
    return {"run": f"r {HOSTILE}", "recipe": recipe.model_dump(mode="json"), "statistics": statistics, "samples": None}


SPLIT = {"rows": 2, "tokens": 9, "learned_tokens": 4, "p50": 4, "p90": 5, "p99": 5, "max": 5}
OLD = {
    "read": 3, "used": 2, "quarantined": 0, "dropped": 1, "funnel": [{"rule": "duplicate", "dropped": 1}],
    "splits": {"train": SPLIT}, "formats": {"alpaca": 3}, "lengths": {"counts": [1, 1], "edges": [4.0, 4.5, 5.0]},
}  # fmt: skip


def drawn(statistics: dict[str, Any] | None) -> str:
    facts = facts_with(statistics)
    return "".join(part(facts) for part in (fate, measured, together, examined, sample))


def test_datasets_that_know_less_have_a_page_all_the_same() -> None:
    assert drawn(None) == ""
    assert drawn({}) == ""
    page = drawn(OLD)
    assert "exact duplicate" in page
    assert "measured" not in page
    empty = {
        **OLD,
        "read": 0,
        "used": 0,
        "funnel": [],
        "formats": {},
        "splits": {},
        "lengths": {"counts": [0], "edges": [0, 1]},
    }
    assert "Data: what became of every row" in drawn({**empty, "told": {"cleaning": {}, "leaks": {}}})
    old = {**OLD, "told": {"cleaning": {}, "conflicts": {"prompts": 1, "rows": 2, "samples": [[7, 8]]}}}
    assert "row 7" in drawn(old)


def test_leaks_by_way_and_direction_and_languages() -> None:
    told = {
        "cleaning": {
            "languages": {"en": 90, "de": 9, **{f"l{n}": 1 for n in range(20)}},
            "histograms": {},
            "rules": {},
        },
        "leaks": {"near: train gives test away": 4, "overlap: train gives data.leaks.against away": 1},
    }
    page = drawn({**OLD, "told": told})
    assert "<td>train</td><td>test</td><td>nearly the same prompt</td><td class='number'>4</td>" in page
    assert "<td>data.leaks.against</td><td>long runs of its words</td>" in page
    assert "10 others" in page


def test_what_rows_say_is_text_wherever_it_stands() -> None:
    share = {"rows": 1, "epoch": 2, "share": 1.0}
    histogram = {"edges": [0, 1, 2], "counts": [1, 1], "missing": 0}
    told = {
        "cleaning": {
            "languages": {HOSTILE: 1}, "histograms": {HOSTILE: histogram, f"2{HOSTILE}": {**histogram, "counts": [0, 1]}},
            "rules": {HOSTILE: {"dropped": 1, "flagged": 0, "redacted": 1, "samples": [HOSTILE]}},
        },
        "quality": {"type": HOSTILE, "best": "high", "scored": 1, "missing": 0, "thresholds": [], "histogram": histogram},
        "conflicts": {"prompts": 1, "rows": 1, "samples": [[HOSTILE]]}, "leaks": {f"{HOSTILE}: {HOSTILE} gives {HOSTILE} away": 1},
        "mixture": [share, share],
    }  # fmt: skip
    funnel = [{"rule": HOSTILE, "dropped": 1, "status": "dropped", "samples": [HOSTILE]}]
    hostile = {**OLD, "formats": {HOSTILE: 1}, "funnel": funnel, "splits": {HOSTILE: SPLIT}, "told": told}
    source = {"name": HOSTILE, "read": 1, "used": 1, "trained": 1, "epoch": 2, "tokens": 3}
    for statistics in (hostile, {**hostile, "sources": [source]}):
        page = drawn(statistics)
        assert "<script" not in page
        assert page.count("&lt;script&gt;") >= 12


def test_rules_have_words_and_an_order() -> None:
    assert in_words("score.helpfulness") == "column helpfulness out of bounds"
    assert in_words("where.2") == "expression 2 is not true"
    assert in_words("DAT-013") == "could not be read (DAT-013)"
    assert in_words("a_new_rule") == "a new rule"
    mixed = ["too_long", "leak", "a_new_rule", "where.2", "DAT-013", "duplicate", "refusal"]
    assert in_order(mixed) == ["DAT-013", "where.2", "refusal", "duplicate", "leak", "too_long", "a_new_rule"]


# ---------------------------------------------------------------------------------------------------------- explain


def explained(run: Run, *row: str) -> str:
    told = CliRunner().invoke(group, ["explain", *row, "--run", run.id, "--workspace", str(run.workspace)])
    assert told.exit_code == 0, told.output
    return told.output


def test_explain_is_read_by_people(prepared: Run) -> None:
    told = explained(prepared, "rows.jsonl:4")
    assert "{" not in told
    assert "dropped: exact duplicate" in told
    assert re.search(r"twin +rows\.jsonl:1 \(used\)", told)
    assert re.search(r"status +used: redacted\n +rule.*|status +used: redacted", explained(prepared, "rows.jsonl:48"))
    assert re.search(r"redacted +email", explained(prepared, "rows.jsonl:48"))
    long = explained(prepared, "rows.jsonl:46")
    assert "dropped: too long (tokens)" in long
    assert re.search(r"threshold +300\n", long)
    assert re.search(r"copies +2 examples of the Dataset|split +(validation|test)", explained(prepared, "more.jsonl:1"))
    assert json.loads(explained(prepared, "rows.jsonl:4", "--json"))["twin"]["position"] == 1
    alone = CliRunner().invoke(group, ["explain", "rows.jsonl:4", "--workspace", str(prepared.workspace)])
    assert re.search(r"run +seen-\w{8}\n", alone.output), "who answered"


def test_explain_of_a_blank_line(prepared: Run) -> None:
    told = CliRunner().invoke(
        group, ["explain", "rows.jsonl:3", "--run", prepared.id, "--workspace", str(prepared.workspace)]
    )
    assert "rows.jsonl:2 and rows.jsonl:4" in str(told.exception or told.output)


def test_rows_that_are_known_by_their_ids_get_their_places(prepared: Run) -> None:
    """Evaluated items, and rows of steps that were withheld."""
    from tunesmith.report.facts import NOTES, _name_places

    item = {"row": 2, "place": "row 2"}
    withheld = {"what": NOTES["train/nonfinite"], "value": [0, 999], "step": 3}
    facts = {"examples": {"shown": {"fixed": [item]}}, "notes": [withheld]}
    _name_places(facts, prepared.outputs("prepare")["dataset"])  # type: ignore[index]
    assert item["place"] == "rows.jsonl:4"
    assert withheld["value"] == ["rows.jsonl:1", 999]


# ----------------------------------------------------------------------------------------------- the page of the ledger


@pytest.fixture
def page_names(prepared: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's first block makes, in the folder where a user stands."""
    monkeypatch.chdir(prepared.workspace.parent)
    with contextlib.suppress(FileExistsError):
        (prepared.workspace.parent / "tunesmith-work").symlink_to(prepared.workspace)
    names: dict[str, Any] = {}
    exec(blocks_of_page("python")[0], names)
    return names


def blocks_of_page(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / "ledger.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_queries_of_the_ledgers_page_answer(page_names: dict[str, Any]) -> None:
    """DuckDB's are asked through Daft's SQL, which understands them as well."""
    import daft

    names = page_names
    for block in blocks_of_page("python")[1:3]:
        exec(block, names)
    assert {entry["rule"] for entry in names["counts"].to_pylist()} >= {"duplicate", "refusal", "too_long"}
    ledger = daft.read_parquet(names["ledger"])
    by_rule, twins = (block.replace("'ledger.parquet'", "ledger") for block in blocks_of_page("sql"))
    assert {"duplicate", "refusal"} <= {entry["rule"] for entry in daft.sql(by_rule, ledger=ledger).to_pylist()}
    beside = daft.sql(twins, ledger=ledger).to_pylist()
    assert ("rows.jsonl", 4, 1) in [(entry["file"], entry["position"], entry["kept_position"]) for entry in beside]


def test_pandas_reads_the_ledger_as_its_page_says(page_names: dict[str, Any]) -> None:
    pytest.importorskip("pandas")
    exec(blocks_of_page("python")[3], page_names)


def test_the_report_says_by_what_rows_were_encoded_and_which_are_flagged() -> None:
    from tunesmith.report.data import fate

    statistics = {
        "read": 3, "used": 3, "funnel": [], "splits": {}, "formats": {}, "lengths": {"counts": [3], "edges": [0, 1]},
        "encoding": {"tokenizer": {"fast": False, "why": "gigatoken does not know it (<b>)"}, "ways": {}},
        "flags": {"control_in_text": 2, "joined_differs": 0},
        "told": {"cleaning": {"odd": {"odd spaces": {"rows": 2, "samples": ["a.jsonl:3"]}}}},
    }  # fmt: skip
    page = fate({"statistics": statistics, "recipe": {"data": {"max_tokens": 8, "too_long": "drop"}}, "run": "r"})
    assert (
        "Encoded by tokenizers, by whose ids every faster encoder is judged: gigatoken does not know it (&lt;b&gt;)."
        in page
    )
    assert "2 rows hold a control token" in page
    assert "2 rows with odd spaces (<code>a.jsonl:3</code>)" in page
    assert "other ids" not in page
