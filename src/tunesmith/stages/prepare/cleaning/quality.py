"""A score of 0 to 1 for rows that bring none, by what can be seen of the answer. The rule of thumb is this file, whole.

score = clean x (0.3 length + 0.3 variety + 0.2 letters + 0.2 ending)

clean    0 where the answer has leftovers of templates or begins with a refusal, else 1
length   grows with the logarithm of the characters, 1 from 200 on
variety  1 minus the share of 5-grams that occurred before in the same answer
letters  share of letters among the characters, 1 from 60 % on
ending   1 where the answer ends as a sentence, a list, a number or code does, 0 where it breaks off
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from tunesmith.stages.prepare.cleaning.characters import LETTERS, STARTS, count_by
from tunesmith.stages.prepare.cleaning.texts import Texts

NGRAM = 5
ENOUGH_CHARACTERS = 200
ENOUGH_LETTERS = 0.6
WEIGHTS = {"length": 0.3, "variety": 0.3, "letters": 0.2, "ending": 0.2}
# Sentence marks of several scripts, closing quotes and brackets, code, digits. A comma, a colon or a letter breaks off.
ENDING = r"[.!?…。！？।؟\"'”’»」』)\]}>`*_|%°$€£¥0-9;]\s*\z"


def heuristic_scores(learned: Texts, repeated_ngrams: np.ndarray, unclean_R: np.ndarray) -> np.ndarray:
    """float64 [R], NaN for rows without an answer. Of several answers the mean, by characters.

    repeated_ngrams: [M] of the learned texts, for NGRAM words. unclean_R: rows with leftovers or refusals.
    """
    characters_M = count_by(STARTS, learned).astype(np.float64)
    letters_M = count_by(LETTERS, learned) / np.maximum(characters_M, 1)
    ends_M = pc.match_substring_regex(learned.contents, ENDING).to_numpy(zero_copy_only=False)
    # A word alone, such as a label, is whole without a full stop.
    ends_M = ends_M | (pc.match_substring_regex(learned.contents, r"\A\s*\S+\s*\z").to_numpy(zero_copy_only=False))
    parts = {
        "length": np.minimum(1, np.log1p(characters_M) / np.log1p(ENOUGH_CHARACTERS)),
        "variety": 1 - repeated_ngrams,
        "letters": np.minimum(1, letters_M / ENOUGH_LETTERS),
        "ending": ends_M.astype(np.float64),
    }
    score_M = sum(WEIGHTS[name] * part for name, part in parts.items())
    sizes_R = learned.sum_rows(characters_M)
    with np.errstate(invalid="ignore"):
        score_R = learned.sum_rows(score_M * characters_M) / sizes_R  # 0 / 0: no answer
    return np.where(unclean_R & (sizes_R > 0), 0.0, score_R)
