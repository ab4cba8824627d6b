"""The language of texts, by py3langid (naive Bayes over byte n-grams, 139 languages; the model is in the package)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tunesmith.errors import DataError, RecipeError

LOOKED_AT = 1000  # characters: more do not make it surer, and the time grows with them


@dataclass(frozen=True)
class Languages:
    """Each [R]. best: the likeliest language, None where undecided. kept: probability of the languages to keep, NaN there."""

    best: list[str | None]
    kept: np.ndarray


def languages_of(texts: Sequence[str], letters: np.ndarray, keep: Sequence[str], min_letters: int) -> Languages:
    """letters: of each text; those with fewer than `min_letters` are undecided. Raises as `check_languages`."""
    check_languages(keep)
    identifier, wanted = _identifier(), frozenset(keep)
    best: list[str | None] = [None] * len(texts)
    kept = np.full(len(texts), np.nan)
    for place in np.flatnonzero(letters >= min_letters).tolist():
        ranked = identifier.rank(texts[place][:LOOKED_AT])
        best[place] = ranked[0][0]
        kept[place] = sum(probability for language, probability in ranked if language in wanted)
    return Languages(best, kept)


def check_languages(keep: Sequence[str]) -> None:
    """Raises DataError DAT-062 where py3langid is not installed, RecipeError DAT-063 for a code it does not know."""
    known = sorted(_identifier().labels)
    unknown = [language for language in keep if language not in known]
    if unknown:
        raise RecipeError(
            "DAT-063",
            f"{unknown[0]!r} is no language that can be told",
            where="data.filters.language.keep",
            expected=f"ISO 639-1 codes, of {', '.join(known)}",
            fix="data.filters.language: {keep: [en]}",
        )


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise DataError(
            "DAT-062",
            f"data.filters.language needs py3langid, which cannot be imported ({error})",
            where="data.filters.language",
            expected="py3langid 0.4 or later",
            fix="pip install 'tunesmith[language]'; or data.filters.language: null",
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
