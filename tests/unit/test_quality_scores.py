"""Quality scores: thresholds by value and share, the table of what each keeps, and scores by the base model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from row_parts import part_of, row

from tunesmith import hub
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.stages.prepare.cleaning import model_scores
from tunesmith.stages.prepare.cleaning.model_scores import score_rows
from tunesmith.stages.prepare.cleaning.scores import best_of, judge_scores, score_facts, what_thresholds_keep
from tunesmith.text.tokenizers import load_tokenizer


def scored(
    scores: list[float], quality: str, may_go: list[bool] | None = None
) -> dict[int, tuple[float, float | None]]:
    """Row -> (value, threshold) of the rows that go; rows are numbered from 10 on."""
    spec = parse_recipe("name: x\ndata: {sources: a.jsonl}\n", [f"data.quality={quality}"])
    rows = np.arange(10, 10 + len(scores))
    left = np.ones(len(scores), bool) if may_go is None else np.array(may_go)
    found = judge_scores(rows, np.array(scores), left, spec.data.quality).to_pylist()
    assert all(verdict["rule"] == spec.data.quality.type for verdict in found)
    return {verdict["row"]: (verdict["value"], verdict["threshold"]) for verdict in found}


def test_thresholds_by_value_leave_rows_without_a_score() -> None:
    scores = [0.2, 0.5, 0.9, math.nan]
    assert scored(scores, "heuristics") == {}
    assert scored(scores, "none") == {}
    assert scored(scores, "{type: heuristics, above: 0.5}") == {10: (0.2, 0.5), 11: (0.5, 0.5)}
    assert scored(scores, "{type: difficulty, below: 0.9}") == {12: (0.9, 0.9)}


def test_a_share_keeps_the_best_and_ties_go_by_row() -> None:
    scores = [0.5, 0.9, 0.5, 0.1, math.nan, 0.5]
    assert set(scored(scores, "{type: heuristics, keep: 0.4}")) == {12, 13, 15}
    assert set(scored(scores, "{type: perplexity, keep: 0.4}")) == {11, 12, 15}
    assert scored(scores, "{type: heuristics, keep: 1}") == {}
    assert set(scored(scores, "{type: heuristics, keep: 0.5}", [True, False, True, True, True, True])) == {13, 15}


def test_the_table_of_thresholds_says_what_each_would_keep() -> None:
    told = what_thresholds_keep(np.array([*range(1, 11), math.nan], float), "high")
    assert (told["scored"], told["missing"]) == (10, 1)
    assert told["thresholds"][0] == {"share": 0.9, "threshold": 2.0, "rows": 9}
    assert told["thresholds"][-1] == {"share": 0.1, "threshold": 10.0, "rows": 1}
    low = what_thresholds_keep(np.array([1.0, 1.0, 2.0, 9.0]), "low")["thresholds"]
    assert low[4] == {"share": 0.5, "threshold": 1.0, "rows": 2}
    assert json.dumps(what_thresholds_keep(np.zeros(0), "high"))
    spec = parse_recipe("name: x\ndata: {sources: a.jsonl, quality: perplexity}\n")
    facts = score_facts(np.array([1.0, 2.5, 1e9, math.nan]), spec.data.quality)
    assert (facts["type"], facts["best"], facts["missing"]) == ("perplexity", "low", 1)
    counts = facts["histogram"]
    assert (sum(counts["counts"]), counts["counts"][-1], counts["missing"]) == (3, 1, 1)


# ------------------------------------------------------------------------------------------------- by the base model

ROWS = [
    row("the quick brown fox", "jumps over the lazy dog"),
    row(("system", "answer"), ("user", "the question"), ("assistant", "the answer"), ("user", "and"), ("assistant", "over the dog")),
    row(("text", "the quick brown fox jumps")),
    row("only asked"),
    row("over the lazy", extra={"answers": [{"role": "chosen", "messages": [{"role": "assistant", "content": "dog and fox"}]}]}),
    row(problem={"code": "DAT-010"}),
]  # fmt: skip


@pytest.fixture
def score(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., dict[int, float | None]]:
    def run(
        kind: str, rows: list = ROWS, on_progress: Callable[[int], None] = lambda rows: None, **settings: str
    ) -> dict[int, float | None]:
        spec = parse_recipe(
            f"name: x\nmodel: {{base: {tiny_model_dir}, precision: fp32}}\ndata: {{sources: a.jsonl, quality: {kind}}}\n",
            [f"{key.replace('__', '.')}={value}" for key, value in settings.items()],
        )
        files = hub.resolve(spec.model.base)
        tokenizer = load_tokenizer(files, spec.model.template)
        parts = [part_of(rows[:2]), part_of(rows[2:], first=2)]
        found = score_rows(spec, parts, tokenizer, files, tmp_path / "scores", on_progress)
        return dict(zip(found["row"].to_pylist(), found["score"].to_pylist(), strict=True))

    return run


def reference(folder: Path, ids: list[int], first: int, end: int) -> list[float]:
    """Losses of the tokens first..end-1, by the model's own forward pass."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(logits[place - 1, ids[place]]) for place in range(first, end)]


def test_perplexity_and_difficulty_are_those_of_the_models_own_losses(score, tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    prompt, answer = ids("<|user|>the quick brown fox<|end|><|assistant|>"), ids("jumps over the lazy dog")
    after = reference(tiny_model_dir, prompt + answer, len(prompt), len(prompt) + len(answer))
    alone = reference(tiny_model_dir, [tokenizer.eos_token_id, *answer], 1, 1 + len(answer))
    assert score("perplexity")[0] == pytest.approx(math.exp(np.mean(after)), rel=1e-5)
    assert score("difficulty")[0] == pytest.approx(np.mean(after) / np.mean(alone), rel=1e-5)


def test_every_good_row_has_its_line_and_rows_without_an_answer_no_score(score) -> None:
    perplexity, difficulty = score("perplexity"), score("difficulty")
    assert list(perplexity) == [0, 1, 2, 3, 4]
    assert [row for row, value in perplexity.items() if value is None] == [3]
    assert [row for row, value in difficulty.items() if value is None] == [2, 3], "a text has no prompt"
    only_last = score("perplexity", data__learn="last")
    assert only_last[1] != pytest.approx(perplexity[1])
    assert only_last[0] == pytest.approx(perplexity[0])


def test_a_stopped_scoring_goes_on_and_nothing_is_scored_twice(
    score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    real = model_scores.row_losses

    def count(model, sequences, wanted, **settings):
        measured.append(len(wanted))
        return real(model, sequences, wanted, **settings)

    monkeypatch.setattr(model_scores, "row_losses", count)
    monkeypatch.setattr(model_scores, "CHUNK", 2)
    done: list[int] = []

    def stop(rows: int) -> None:
        done.append(rows)
        if rows >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score("perplexity", on_progress=stop)
    assert (measured, done) == ([2], [2])
    whole = score("perplexity")
    assert sum(measured) == 4, "the rest, and nothing twice"
    monkeypatch.setattr(model_scores._Losses, "_loaded", lambda self: pytest.fail("loaded the model for nothing"))
    assert score("perplexity") == whole
    assert score("{type: perplexity, above: 3}") == whole, "a threshold scores nothing"
    assert score("perplexity", rows=[ROWS[1], ROWS[0], *ROWS[2:]])[0] == whole[1]
    (damaged, *_) = tmp_path.rglob("*.arrow")
    damaged.write_bytes(b"x")
    monkeypatch.undo()
    assert score("perplexity") == pytest.approx(whole)


def test_another_template_or_learned_part_has_losses_of_its_own(score, tmp_path: Path) -> None:
    score("perplexity")
    score("perplexity", model__template="chatml")
    assert len(list((tmp_path / "scores").iterdir())) == 2


def test_low_perplexity_is_the_better() -> None:
    def kind(word: str) -> Recipe:
        return parse_recipe("name: x\ndata: {sources: a.jsonl}\n", [f"data.quality={word}"])

    assert [best_of(kind(word).data.quality) for word in ("heuristics", "perplexity", "difficulty")] == [
        "high",
        "low",
        "high",
    ]
