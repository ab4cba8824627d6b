"""Leftovers of other templates and assistants, and refusals: known phrases, found by one regular expression each.

The expressions are RE2's (pyarrow runs them over whole columns) and Python's alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.stages.prepare.cleaning.texts import Texts

# What assistants of others say of themselves. In the languages whose data sets are translated most.
SELF_DESCRIPTION = (
    r"\bas an? (?:ai|artificial intelligence)(?: (?:language model|assistant|model|chatbot|system)\b| i\b|,)",
    r"\bas a (?:large )?language model\b",
    r"\bi(?:'m| am) (?:just |only |merely )?an? (?:ai|artificial intelligence)(?: language)? ?(?:model|assistant|chatbot)\b",
    r"\bi(?:'m| am| was| have been)[^.\n]{0,40} (?:trained|developed|created|made) by (?:openai|anthropic|google|meta ai)\b",
    r"\bmy (?:knowledge|training) (?:cut-?off|data (?:only )?goes)\b",
    r"作为(?:一个|一款|一名)?(?:人工智能|ai|大型?语言模型)",
    r"\bcomo (?:una? )?(?:modelo de lenguaje|inteligencia artificial)",
    r"\ben tant qu(?:e |')(?:ia|intelligence artificielle|mod[eè]le de langage)",
    r"\bals (?:ki|künstliche intelligenz|sprachmodell)\b",
)
CONTROL_TOKENS = (
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|end_of_text|eom_id|python_tag"
    r"|user|assistant|system|end|endofprompt|start_of_role|end_of_role|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN)\|>",
    r"<(?:start_of_turn|end_of_turn)>",
    r"\[/?INST\]",
    r"<</?SYS>>",
    r"<｜(?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)｜>",
)
HEADINGS = (
    r"(?:^|\n) *### ?(?:Instruction|Response|Input|Human|Assistant|User)s? ?:",
    r"\n *(?:USER|ASSISTANT|HUMAN|Human|Assistant) ?: ",
    r"\n *(?:USER|ASSISTANT|HUMAN|Human|Assistant) ?:\s*$",
)
EMPTY_THINK = (r"<think>\s*</think>",)

RESIDUE = {
    "self_description": SELF_DESCRIPTION,
    "empty_think": EMPTY_THINK,
    "heading": HEADINGS,
    "control_token": CONTROL_TOKENS,
}
FOLDED = {"self_description"}  # letter case aside

REFUSALS = (
    r"(?:i(?:'m| am)(?: really| very| so)? )?sorry,? (?:but )?(?:as an ai[^.]{0,40}?,? ?)?i(?:'m| am)? ?(?:can(?:'t|not|not)|can not|won't|will not|unable|not able|not going to|don't|do not)\b",
    r"(?:unfortunately|regrettably),? (?:as an ai[^.]{0,40}?,? ?)?i(?:'m| am)? ?(?:can(?:'t|not)|can not|unable|not able|don't have|do not have)\b",
    r"(?:as an ai[^.]{0,40}?,? ?)?i (?:can(?:'t|not)|can not|won't|will not) (?:assist|help|provide|comply|fulfil|fulfill|generate|create|answer|engage|support|do that|discuss|give you|continue|share)\b",
    r"i(?:'m| am) (?:unable|not able) to (?:assist|help|provide|comply|fulfil|fulfill|generate|create|answer|engage|access|browse|do)\b",
    r"i must (?:decline|refuse)\b",
    r"i (?:apologi[sz]e|apologies),? but i (?:can(?:'t|not)|can not|am unable|am not able|won't)\b",
    r"my apologies,? but i (?:can(?:'t|not)|can not|am unable)\b",
    r"(?:很|非常)?(?:抱歉|对不起|遗憾)[,，。!！ ]*(?:但|但是|不过)?[,， ]*(?:作为[^,，。]{0,20}[,，])?我?(?:不能|无法|没有办法|没办法|不可以)",
    r"我(?:不能|无法)(?:协助|帮助|提供|满足|回答|生成)",
    r"lo siento,? (?:pero )?no puedo\b",
    r"(?:je suis )?d[ée]sol[ée]e?,? (?:mais )?je ne (?:peux|puis) pas\b",
    r"(?:es )?tut mir leid,? (?:aber )?(?:ich kann|das kann ich|dabei kann ich)\b",
    r"desculpe,? (?:mas )?(?:eu )?n[ãa]o posso\b",
    r"(?:mi )?(?:dispiace|spiacente),? (?:ma )?non posso\b",
    r"申し訳(?:ありません|ございません)が",
)
BEFORE_REFUSAL = r"\A[\s\"'“”‘’*_>#-]*"


def find_residue(texts: Texts, own: Sequence[str] = ()) -> dict[int, str]:
    """Place of a text -> "kind: what was found". Control tokens count in every turn, all else in what is learned.

    own: further phrases, letter case aside.
    """
    found: dict[int, str] = {}
    kinds = {**RESIDUE, **({"phrase": tuple(map(re.escape, own))} if own else {})}
    for kind, patterns in kinds.items():
        folded = kind in FOLDED or kind == "phrase"
        among = None if kind == "control_token" else texts.learned_M
        for place, what in _search(texts.contents, "|".join(patterns), folded, among).items():
            found.setdefault(place, f"{kind}: {what}")
    return found


def find_refusals(texts: Texts, own: Sequence[str] = ()) -> dict[int, str]:
    """Place of a text -> the words it begins with, of what is learned. own: further beginnings, letter case aside."""
    # Typographic apostrophes are as common as plain ones.
    patterns = [pattern.replace("'", "['’]") for pattern in (*REFUSALS, *map(re.escape, own))]
    pattern = f"{BEFORE_REFUSAL}(?:{'|'.join(patterns)})"
    return _search(texts.contents, pattern, True, texts.learned_M)


def _search(contents: pa.Array, pattern: str, folded: bool, among_M: np.ndarray | None) -> dict[int, str]:
    hit_M = pc.match_substring_regex(contents, pattern, ignore_case=folded).to_numpy(zero_copy_only=False)
    if among_M is not None:
        hit_M = hit_M & among_M
    compiled = _compiled(pattern, folded)
    out = {}
    for place in np.flatnonzero(hit_M).tolist():
        match = compiled.search(contents[place].as_py())
        out[place] = " ".join(match.group().split())[:80] if match else ""
    return out


@cache
def _compiled(pattern: str, folded: bool) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE if folded else 0)
