"""Metrics of one answer against what was expected: (expected, answer, item) -> a score in [0, 1], higher is better.

Perplexity is a metric of the model, not of an answer; it is handled apart (scoring/perplexity.py).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import string
import types
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, QuestionError, RecipeError
from tunesmith.scoring.items import Item

PERPLEXITY = "perplexity"

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

    Where one side has no word left, 1 if both have none, else 0. Source: the SQuAD 2.0 evaluation script.
    """
    expected_words, answer_words = _words(expected), _words(answer)
    if not expected_words or not answer_words:
        return float(expected_words == answer_words)
    shared = sum((Counter(expected_words) & Counter(answer_words)).values())
    return 2 * shared / (len(expected_words) + len(answer_words))


def _words(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def rouge_l(expected: str, answer: str, item: Item) -> float:
    """F-measure of the longest common subsequence of words (the rouge-score package, no stemming)."""
    if not expected.strip() and not answer.strip():
        return 1.0
    return float(_rouge_scorer().score(expected, answer)["rougeL"].fmeasure)


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
    return RougeScorer(["rougeL"], use_stemmer=False)


def json_validity(expected: str, answer: str, item: Item) -> float:
    """1 where the answer is strict JSON and, where the expected text is a JSON object, has the same keys at the top."""
    found, right = _parse(answer), _parse(expected)
    if found is _NOT_JSON:
        return 0.0
    if isinstance(right, dict):
        return float(isinstance(found, dict) and found.keys() == right.keys())
    return 1.0


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


def load_metric(name: str, allowed_code: Mapping[str, str]) -> Metric:
    """The metric of that name, or the function of "path/to/file.py:function".

    allowed_code: "file.py:function" -> sha256 of the file, as the user allowed it by --allow-code.
    Raises RecipeError EVL-003 (no such metric) or EVL-005 (unusable file), QuestionError EVL-004 (code not allowed).
    """
    if name in METRICS:
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
    return Metric(f"{Path(path).name}:{function}", _custom(name, Path(path), function, allowed_code))


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
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise _unusable(name, f"{path} fails when it is loaded: {error!r}", "a file that loads") from error
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
    except RecipeError:
        raise
    except Exception as error:
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
