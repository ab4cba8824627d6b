"""Metrics of one answer against what was expected: (expected, answer, item) -> a score in [0, 1], higher is better.

Perplexity is a metric of the model, not of an answer: it is measured apart (scoring/perplexity.py), and lower is better.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import string
import sys
import types
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, QuestionError, RecipeError
from tunesmith.scoring.items import Item

PERPLEXITY = "perplexity"
LOWER_IS_BETTER = frozenset(
    {PERPLEXITY}
)  # of all metrics; a gain is positive where tuned is better, whatever the metric

# Scripts that write no blanks between words: kana and Han. There each character counts as a word.
NO_BLANKS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
PIECE = re.compile(f"[{NO_BLANKS}]|[^{NO_BLANKS}]+")

Score = Callable[[str, str, Item], float]


@dataclass(frozen=True)
class Metric:
    """name: as shown in scores; of a custom metric the file's name and the function, without the folder."""

    name: str
    score: Score


def exact_match(expected: str, answer: str, item: Item) -> float:
    """1 where answer and expected text are equal but for white space at both ends; nothing else is forgiven."""
    return float(expected.strip() == answer.strip())


def token_f1(expected: str, answer: str, item: Item) -> float:
    """Harmonic mean of precision and recall over words, as in SQuAD: lower case, no punctuation, no articles.

    Where one side has no word left, 1 if both have none, else 0. Source: the SQuAD 2.0 evaluation script; of scripts
    that write no blanks each character is a word, as in MLQA's.
    """
    expected_words, answer_words = _words(expected), _words(answer)
    if not expected_words or not answer_words:
        return float(expected_words == answer_words)
    shared = sum((Counter(expected_words) & Counter(answer_words)).values())
    return 2 * shared / (len(expected_words) + len(answer_words))


def _words(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return _pieces(re.sub(r"\b(a|an|the)\b", " ", kept))


def rouge_l(expected: str, answer: str, item: Item) -> float:
    """F-measure of the longest common subsequence of words (the rouge-score package, no stemming).

    The package throws all but a-z and 0-9 away, so that equal answers in another script score 0; here words are of any
    script. On ASCII text the values are the package's own.
    """
    scorer = _rouge_scorer()
    if not any(map(_any_script, (expected, answer))):
        return float(expected.split() == answer.split())
    return float(scorer.score(expected, answer)["rougeL"].fmeasure)


def _any_script(text: str) -> list[str]:
    """Runs of letters, digits and combining marks."""
    kept = (c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in text.lower())
    return _pieces("".join(kept))


def _pieces(text: str) -> list[str]:
    return [piece for word in text.split() for piece in PIECE.findall(word)]


class _AnyScript:
    """The package's interface of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return _any_script(text)


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise RecipeError(
            "EVL-002",
            "the metric rouge_l needs the package rouge-score, which is not installed",
            where="evaluate.metrics",
            expected="rouge-score >= 0.1.2",
            fix='python -m pip install "tunesmith[evaluate]", or leave rouge_l out of evaluate.metrics',
        ) from error
    return RougeScorer(["rougeL"], tokenizer=_AnyScript())


def json_validity(expected: str, answer: str, item: Item) -> float:
    """1 where the answer is strict JSON of the shape that was expected: an object with the same keys at the top, a list.

    Values and what lies deeper are not compared (exact_match does that); where no JSON was expected, any JSON counts.
    """
    found, right = _parse(answer), _parse(expected)
    if found is _NOT_JSON:
        return 0.0
    if isinstance(right, dict):
        return float(isinstance(found, dict) and found.keys() == right.keys())
    return float(isinstance(found, list) or not isinstance(right, list))


_NOT_JSON = object()


def _parse(text: str) -> Any:
    """The value, or _NOT_JSON; NaN and Infinity, which Python's parser lets through, are not JSON."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return _NOT_JSON


METRICS: Mapping[str, Score] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "json_validity": json_validity,
}


def shown_names(asked: Sequence[str]) -> dict[str, str]:
    """How each entry of evaluate.metrics is called in scores: an own metric by its file's name and function.

    Of files with the same name as many folders are shown as tell them apart.
    """
    names = dict.fromkeys(asked, "")
    for name in names:
        parts = Path(name).parts
        ends = ["/".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        others = [Path(other).parts for other in names if other != name]
        names[name] = next(
            (end for end in ends if not any("/".join(other).endswith("/" + end) for other in others)), name
        )
    return names


def load_metrics(asked: Sequence[str], allowed_code: Mapping[str, str]) -> list[Metric]:
    """The metrics of answers among evaluate.metrics, in order; perplexity, which judges no answer, is left out.

    Raises what `load_metric` raises.
    """
    names = shown_names(asked)
    return [load_metric(name, allowed_code, shown) for name, shown in names.items() if name != PERPLEXITY]


def load_metric(name: str, allowed_code: Mapping[str, str], shown: str | None = None) -> Metric:
    """The metric of that name, or the function of "path/to/file.py:function".

    allowed_code: "file.py:function" -> sha256 of the file, as the user allowed it by --allow-code.
    Raises RecipeError EVL-002 (package missing), EVL-003 (no such metric) or EVL-005 (unusable file), QuestionError
    EVL-004 (code not allowed).
    """
    if name in METRICS:
        if name == "rouge_l":
            _rouge_scorer()  # a missing package is told before a model is loaded
        return Metric(name, METRICS[name])
    path, _, function = name.rpartition(":")
    if not path.endswith(".py"):
        close = difflib.get_close_matches(name, [*METRICS, PERPLEXITY], n=1)
        raise RecipeError(
            "EVL-003",
            f"there is no metric {name!r}",
            where="evaluate.metrics",
            expected=f"{', '.join([*METRICS, PERPLEXITY])}, or path/to/file.py:function",
            fix=f"did you mean {close[0]}?" if close else "write a Python function (expected, answer, item) -> 0..1",
        )
    return Metric(shown or shown_names([name])[name], _custom(name, Path(path), function, allowed_code))


def _custom(name: str, path: Path, function: str, allowed_code: Mapping[str, str]) -> Score:
    """The user's function. The bytes that run are the bytes that were hashed."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise _unusable(name, f"{path} cannot be read: {error.strerror}", "a readable Python file") from error
    digest = hashlib.sha256(source).hexdigest()
    if allowed_code.get(name) != digest:
        changed = name in allowed_code
        raise QuestionError(
            "EVL-004",
            f"evaluate.metrics names Python code that {'changed since it was allowed' if changed else 'would run'}: {name} "
            f"(sha256 {digest[:12]}...)",
            where="evaluate.metrics",
            expected="your consent, because a metric can do all that you can do",
            fix="read the file, then run the same command with --allow-code",
        )
    module = types.ModuleType(f"tunesmith_metric_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and the like look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        what = f"{path} fails when it is loaded: {error!r}"
        raise _unusable(
            name, what, "a file that loads and stands alone: the standard library and installed packages"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        defined = [key for key, value in vars(module).items() if isinstance(value, types.FunctionType)]
        what = f"{path} has no function {function!r}"
        raise _unusable(
            name, what, f"one of: {', '.join(defined)}" if defined else "a function (expected, answer, item)"
        )
    return found


def _unusable(name: str, what: str, expected: str) -> RecipeError:
    return RecipeError(
        "EVL-005", what, where="evaluate.metrics", expected=expected, fix=f"mend the file or the entry {name!r}"
    )


def score(metric: Metric, expected: str, answer: str, item: Item) -> float:
    """The metric's value for one answer. Raises DataError EVL-006 naming item, metric and what went wrong."""
    try:
        value = metric.score(expected, answer, item)
    except (Exception, SystemExit) as error:
        raise _failed(metric, item, f"raised {type(error).__name__}: {error}") from error
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise _failed(metric, item, f"returned {value!r}") from error
    if not math.isfinite(number) or not 0 <= number <= 1:
        raise _failed(metric, item, f"returned {value!r}")
    return number


def _failed(metric: Metric, item: Item, what: str) -> DataError:
    return DataError(
        "EVL-006",
        f"the metric {metric.name} {what} for row {item.row} ({item.part})",
        expected="a number from 0 to 1 for every answer, also for an empty or wrong one",
        fix="mend the function, then run the same command again: the answers are kept",
    )
