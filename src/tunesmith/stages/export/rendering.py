"""The exported tokenizer renders chats as training did: the template in its files, through transformers, as users have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import hub
from tunesmith.errors import ModelError
from tunesmith.scoring.items import Item
from tunesmith.text.example import Message
from tunesmith.text.templates import template_input
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer


def compare_rendering(tokenizer: Tokenizer, folder: Path, items: Sequence[Item]) -> dict[str, Any]:
    """{"prompts", "same_ids"}: prompts rendered by the tokenizer in `folder`, and how many of them give training's ids.

    The text must be the same. The ids may not be: training encodes scaffold and contents apart, so that a user's
    `<|end|>` stays text, and a plain tokenizer takes the whole text at once.
    Raises ModelError EXP-007 naming the first prompt whose text differs.
    """
    exported = load_tokenizer(hub.resolve(str(folder), None)).hf
    same_ids = 0
    for item in items:
        messages = [Message(turn["role"], turn["content"]) for turn in item.messages]
        expected = tokenizer.template.render(messages, add_generation_prompt=True)
        try:
            given = template_input(tokenizer.template, messages)
            found = exported.apply_chat_template(given, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # whatever the template raises, users will meet it
            raise _other_text(item, f"it fails with {type(error).__name__}: {error}") from error
        if found != expected:
            raise _other_text(item, f"{found[:200]!r} instead of {expected[:200]!r}")
        same_ids += exported.encode(found, add_special_tokens=False) == tokenizer.encode_prompt(messages)
    return {"prompts": len(items), "same_ids": same_ids}


def _other_text(item: Item, what: str) -> ModelError:
    return ModelError(
        "EXP-007",
        f"the exported tokenizer renders a prompt otherwise than training did: {what}",
        where=f"{item.part}, row {item.row}",
        expected="the same text, so that what is served is asked as it was trained",
        fix="nothing was exported; model.template: a .jinja file of your own that both read alike; please report the base model's name",
    )
