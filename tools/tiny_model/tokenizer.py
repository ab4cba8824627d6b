"""The byte-level BPE tokenizer of `tunesmith-tiny`, trained on its own corpus.

Three rules make spans easy to copy: a digit is always a token of its own, a word that starts with a capital letter never
carries the space before it (so a name has the same tokens after a space, a quote or a line break), and special tokens
delimit every turn, so a rendered chat has the same tokens whole and in segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import lexicon
from corpus import Document
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = [PAD, SYSTEM, USER, ASSISTANT, END]
MAX_POSITIONS = 1024

WORDS = r"\p{N}| ?\p{Ll}+|\p{Lu}\p{Ll}+|\p{Lu}| ?[^\s\p{L}\p{N}]+|\p{L}+|\s+"

# Invented words outnumber English ones in the corpus; without these copies they would take nearly all merges.
WORD_LIST = " ".join(["", *sorted({*lexicon.COMMON, *lexicon.ADJECTIVES, *lexicon.VERBS, *lexicon.GOOD, *lexicon.BAD})])
WORD_LIST_COPIES = 700

# The generation marks let trainers that read them learn on the answers only; rendering ignores them.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% elif message['role'] in ['system', 'user'] %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% else %}{{ raise_exception('unknown role: ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def pieces(document: Document) -> list[tuple[str, bool]]:
    """A document as (text, is an answer or plain text) segments; joined they are the text that the model reads."""
    if document.chat is None:
        return [(document.text + END, True)]
    out = []
    for turn in document.chat:
        out.append((f"<|{turn['role']}|>", False))
        out.append((turn["content"] + END, turn["role"] == "assistant"))
    return out


def train_tokenizer(documents: Iterable[Document], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocab_size` entries: the special tokens, all 256 bytes, then merges learned from `documents`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=12,
    )
    texts = (turn["content"] for d in documents for turn in (d.chat or [{"content": d.text}]))
    bpe.train_from_iterator(itertools.chain(texts, [WORD_LIST] * WORD_LIST_COPIES), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
