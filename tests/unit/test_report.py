"""The report: every part of a finished run, of a held, a stopped and an empty one; nothing loaded, everything escaped."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from held_out import Evaluated, adapter, evaluated, speaker

from tunesmith.recipe import parse_recipe
from tunesmith.report import build, charts, sections
from tunesmith.report import facts as gathering
from tunesmith.runs.run import Run

HOSTILE = "<script>alert(1)</script>"


class Balance(HTMLParser):
    """Remembers tags that were opened and never closed, and all that a page would load."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [name for name, _ in attributes if name in ("src", "href", "onclick", "onload")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def page_of(run: Run) -> str:
    page = build(run).read_text(encoding="utf-8")
    seen = Balance()
    seen.feed(page)
    assert not seen.wrong, seen.wrong
    assert not seen.open, seen.open
    assert not seen.loads, "the page loads nothing and runs nothing"
    assert "<script" not in page
    assert ">None<" not in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page).lower().replace("finance", "")
    json.loads((run.path / "report.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    return page


@pytest.fixture(scope="module")
def small(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("models")
    base = speaker(folder / "speaker", tiny_model_dir)
    made = evaluated(folder / "work", base, adapter(folder / "one", base), num_texts=3)
    made.evaluate()
    made.export()
    record = made.run.record
    for step in range(1, 900):
        record("train", "train/loss", float("nan") if step == 5 else 3.0 / step, step=step)
        record("train", "train/learning_rate", 1e-3, step=step)
    record("train", "validation/loss", 1.5, step=450)
    record("train", "train/nonfinite", [3, 4], step=5)
    record("store", "artifact/damaged", f"model.safetensors {HOSTILE}")
    record("run", "environment/changed", {"torch": ["2.11", "2.13"]})
    record("run", "run/finished", "export")
    return made


def test_every_part_of_a_finished_run_is_there(small: Evaluated) -> None:
    page = page_of(small.run)
    for part in (
        "Ship", "Scores", "Before and after", "Data: what became of every row", "Training", "Proof that it is the same model",
        "Worth knowing", "Where it comes from", "How to repeat it", "Next, with rows of your own",
    ):  # fmt: skip
        assert part in page, part
    assert "0.000 → 1.000" in page
    assert "lower is better" in page
    assert "8 of 8 greedy answers equal" in page
    assert "torch: 2.11 → 2.13" in page
    assert "its rows (step 5): 3, 4" in page


def read_answers(small: Evaluated) -> list[dict]:
    path = small.inputs["evaluation"].path / "answers.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_kinds_of_change_are_apart_and_add_up(small: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads((build(small.run).parent / "report.json").read_text())
    found = facts["examples"]
    assert sum(found["counts"].values()) == found["n"] == 8
    assert found["counts"]["fixed"] == 8
    assert list(found["shown"]) == ["fixed"]
    kinds = ["fixed", "fixed", "broken", "still wrong", "still wrong", "still right", "fixed", "broken"]
    entries = read_answers(small)
    for entry, kind in zip(entries, kinds, strict=True):
        entry["changes"]["exact_match"] = kind
    evaluation = facts["evaluation"]
    counts = {kind: kinds.count(kind) for kind in ("fixed", "broken", "still right", "still wrong")}
    evaluation["overall"]["metrics"]["exact_match"]["items"] = counts
    monkeypatch.setattr(gathering, "_lines", lambda artifact, file: iter(entries))
    drawn = sections.examples({**facts, "examples": gathering._examples(small.inputs["evaluation"], evaluation)})
    titles = re.findall(r"<h3>(\w[\w ]+?) <small>", drawn)
    assert titles == ["Broken", "Still wrong", "Fixed", "Still right"], "what went wrong comes first"
    assert drawn.count("<details class='item broken'") == 2
    assert drawn.count("<details class='item wrong'") == 2


def test_a_long_run_makes_no_long_page(small: Evaluated) -> None:
    curves = json.loads((build(small.run).parent / "report.json").read_text())["curves"]
    assert len(curves["train/loss"]) <= 400
    assert curves["validation/loss"] == [[450, 1.5]]
    assert len((small.run.path / "report.html").read_bytes()) < 200_000


def test_a_held_run_says_why_and_offers_no_chat(small: Evaluated) -> None:
    held = small.again("gate.min_gain=0.99")
    held.evaluate("e10")
    held.run.record("export", "stage/held", {"error": "EXP-001", "what": "the gate says hold", "problems": []})
    page = page_of(held.run)
    assert "<b>Hold</b>" in page
    assert "is not above 0.99" in page
    assert "tunesmith chat small" not in page
    assert "tunesmith init" in page


def test_what_models_and_rows_say_is_shown_and_never_obeyed(small: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = read_answers(small)
    entries[0] |= {"tuned": HOSTILE + "\ud800" + "x" * 5000, "base": "", "expected": f"'\"{HOSTILE}", "part": HOSTILE}
    entries[0]["messages"] = [{"role": HOSTILE, "content": HOSTILE * 200}]
    monkeypatch.setattr(gathering, "_lines", lambda artifact, file: iter(entries))
    page = page_of(small.run)
    assert "&lt;script&gt;" in page
    assert "\\ud800" in page, "a lone surrogate is shown as what it is"
    assert "characters more</span>" in page


@pytest.mark.parametrize("texts", ["masked", "hidden"])
def test_prompts_and_answers_are_shown_as_the_recipe_lets_them(
    small: Evaluated, monkeypatch: pytest.MonkeyPatch, texts: str
) -> None:
    entries = read_answers(small)
    for entry in entries:
        entry |= {"tuned": "Zebrafisch 1", "base": "Zebrafisch 2", "expected": "Zebrafisch 3"}
        entry["messages"] = [{"role": "user", "content": "Zebrafisch 4"}]
    monkeypatch.setattr(gathering, "_lines", lambda artifact, file: iter(entries))
    assert "Zebrafisch" in page_of(small.run)
    shown = small.run.recipe.report.model_copy(update={"texts": texts})
    monkeypatch.setitem(small.run.__dict__, "recipe", small.run.recipe.model_copy(update={"report": shown}))
    page = page_of(small.run)
    assert "Zebrafisch" not in page + (small.run.path / "report.json").read_text()
    assert ("xxxxxxxxxx 0" in page) == (texts == "masked")
    assert ("<code>row 0</code>" in page) == (texts == "hidden")
    assert "8 items" in page, "counts stay"


def test_a_run_that_failed_says_where_why_and_what_to_do(tmp_path: Path) -> None:
    run = Run.open_or_create(tmp_path, parse_recipe("data: {sources: rows.jsonl}"))
    problem = {
        "code": "DAT-031",
        "where": "data.sources",
        "what": f"no row in {HOSTILE}",
        "expected": "rows",
        "fix": "check the files",
    }
    many = [{**problem, "where": f"rows.jsonl:{number}"} for number in range(12)]
    run.record("prepare", "stage/failed", {"error": "DAT-031", "what": "no rows", "exit_status": 65, "problems": many})
    page = page_of(run)
    assert "Stopped in prepare" in page
    assert "check the files" in page
    assert "and 2 more" in page
    assert "&lt;script&gt;" in page
    assert json.loads((run.path / "report.json").read_text())["status"]["trouble"]["stage"] == "prepare"


def test_a_bug_of_ours_in_a_stage_is_shown_as_well(tmp_path: Path) -> None:
    run = Run.open_or_create(tmp_path, parse_recipe("data: {sources: rows.jsonl}"))
    run.record("train", "stage/failed", {"error": "KeyError", "what": "'x'", "exit_status": 70, "problems": []})
    assert "Stopped in train" in page_of(run)


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = Run.open_or_create(tmp_path, parse_recipe("data: {sources: rows.jsonl}"))
    page = page_of(run)
    assert "Not evaluated yet" in page
    assert "finished: nothing" in page


def test_nothing_held_out_makes_a_report(small: Evaluated, tmp_path: Path) -> None:
    empty = small.again("gate.require=none", "name=empty")
    with empty.run.store.create("Dataset", "d-none", producer={}) as draft:
        from held_out import fill, load_tokenizer_of

        fill(draft.path, load_tokenizer_of(Path(empty.recipe.model.base)), [], [])
    assert draft.artifact is not None
    empty.inputs["dataset"] = draft.artifact
    empty.evaluate("e11")
    assert "No row was held out" in page_of(empty.run)


def test_closing_lines_say_every_metric_and_which_way_is_better(small: Evaluated) -> None:
    from tunesmith.cli.options import score_line

    found = json.loads((small.inputs["evaluation"].path / "evaluation.json").read_bytes())["parts"]["test"]["metrics"]
    assert score_line(found["exact_match"]).startswith("base 0.000 -> tuned 1.000  (gain +1.000, +0.")
    assert score_line(found["perplexity"]).endswith("n = 8; lower is better)")
    none = {"value": None, "low": None, "high": None, "n": 0}
    assert score_line({"base": none, "tuned": none, "gain": none, "higher_is_better": True}) == (
        "base - -> tuned -  (gain -, - to -, n = 0)"
    )


def test_the_card_says_scores_and_which_way_is_better(small: Evaluated) -> None:
    card = (small.run.outputs("export")["export"].path / "README.md").read_text()  # type: ignore[index]
    assert "| test | exact_match | 8 | 0.000 | 1.000 | +1.000 (+0." in card
    assert "| texts | perplexity (lower is better) | 3 |" in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Gate: **ship**" in card


# -------------------------------------------------------------------------------------------------------------- charts


def test_charts_draw_what_they_are_given() -> None:
    drawn = charts.lines({"loss": [(1, 3.0), (2, float("nan")), (3, 0.5)]}, "step", "loss", log=True)
    assert drawn.count("<circle") == 2
    assert "nan" not in drawn
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.lines({}, "x", "y") == ""
    assert "<polyline" in charts.lines({"flat": [(1, 0.0), (2, 0.0)]}, "step", "rate")
    assert "<polyline" in charts.lines({"one": [(1, 2.0)]}, "step", "rate", log=True)


def test_a_histogram_leaves_empty_ends_out_and_shows_what_is_out_of_bounds() -> None:
    made = charts.histogram([0, 3, 0, 5, 1, 0], [0, 1, 2, 10, 20, 50, 1000], "rows", kept=(2, 20))
    assert made.count('class="lost"') == 2
    assert made.count('class="used"') == 2
    assert "50 to 1000" not in made
    assert "<rect" in charts.histogram([0, 0], [0, 1, 2], "nothing")


@pytest.mark.parametrize(("low", "high"), [(1.2, 1.8), (0.003, 5.0), (1e-8, 1e4), (0.9, 1.1), (2.0, 2.0001)])
def test_a_logarithmic_axis_has_marks_wherever_it_lies(low: float, high: float) -> None:
    marks = charts.log_ticks(low, high)
    assert 1 < len(marks) <= 8
    assert all(low * 0.99 <= mark <= high * 1.01 for mark in marks)


def test_what_differs_is_marked_in_the_middle() -> None:
    drawn = sections._marked('{"a": 1, "b": 2}', '{"a": 1, "b": 3}')
    assert drawn == '{&quot;a&quot;: 1, &quot;b&quot;: <span class="differs">2</span>}'
    assert "(ends here)" in sections._marked("abc", "abcd")
    assert "(something is missing here)" in sections._marked("ad", "abcd")
    assert "differs" not in sections._marked(" same\n", "same")
