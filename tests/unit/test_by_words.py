"""Each distinct word encoded once gives the ids of whole texts, or is not done."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Reference

from tunesmith.text import fast
from tunesmith.text.by_words import ByWords, Cuts, cut, cuts_of
from tunesmith.text.hard_texts import HARD, SCRIPTS

TEXT = "the quick brown fox's jumps over, a lazy dog. Then 42 it sleeps: (end)"
WORDS = TEXT.split(" ")
ATOMS = [*WORDS, *HARD[:60], " ", "  ", " a", " Be", "\n", "\t", "\u2581", " \u2581x", "\u00a0", "\u3000", "\u0301", "e\u0301", "'s", " 's",
         "<s>", "</s>", "[INST]", " [INST] x", "世界", "\u200b"]  # fmt: skip


def byte_level(**settings: object) -> Reference:
    made = Reference(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **settings)
    return trained(made)


def split_by(pattern: str) -> Reference:
    made = Reference(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return trained(made)


def trained(made: Reference) -> Reference:
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>", "[INST]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*SCRIPTS, *[TEXT] * 20], trainer)
    return made


def sentencepiece_like(*, crossed: bool = False, prepended: bool = False) -> Reference:
    """crossed: tokens that go on over a blank."""
    made = Reference(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replaced = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if prepended else replaced
    data = [f"<0x{number:02X}>" for number in range(256)]
    special = ["<unk>", "<s>", "</s>", "[INST]", *data]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    made.train_from_iterator([TEXT] * 20 if crossed else [*WORDS, *(f"▁{word}" for word in WORDS)] * 20, trainer)
    if not prepended:
        made.normalizer = None
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


KNOWN = {
    "gpt2": byte_level,
    "llama3": lambda: split_by(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    "metaspace": lambda: sentencepiece_like(),
    "prepend": lambda: sentencepiece_like(prepended=True),
}  # fmt: skip


def mixed(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [draw.choice(["", " "]).join(draw.choices(ATOMS, k=draw.randint(1, 12)))[:300] for _ in range(count)]


@pytest.mark.parametrize("name", KNOWN)
def test_ids_are_those_of_whole_texts(name: str) -> None:
    reference = KNOWN[name]()
    cuts = cuts_of(reference)
    assert cuts is not None
    assert cuts.left[ord("e")]
    assert not cuts.left[ord(">")]  # ends <s>: what stands behind it is another text to the tokenizer
    assert cuts.without_blank == (name == "prepend")
    plain = fast.Plain(reference)
    always = ByWords(reference, cuts, plain, worth=float("inf"))
    for seed in (1, 2):  # the second time most words are known
        proof = fast.prove(plain, always, ["", *mixed(800, seed), "", *HARD, ""])
        assert proof.fast, proof.why
    assert isinstance(fast.by_tokenizers(plain, HARD), ByWords)


@pytest.mark.parametrize(
    "name", ["falcon", "gpt2", "gpt_neox_mpt", "minimind", "mistral_v1", "mistral_v3", "stories260K"]
)
def test_real_tokenizers(test_data: Path, name: str) -> None:
    folder = test_data / "models" / name if name == "stories260K" else test_data / "data" / "tokenizers" / name
    reference = Reference.from_file(str(folder / "tokenizer.json"))
    plain = fast.Plain(reference)
    encoder = fast.by_tokenizers(plain, HARD)
    assert isinstance(encoder, ByWords)
    encoder.worth = float("inf")
    proof = fast.prove(plain, encoder, mixed(1000, 3))
    assert proof.fast, proof.why


def with_token(token: AddedToken) -> Reference:
    made = byte_level()
    made.add_tokens([token])
    return made


def unigram() -> Reference:
    made = Reference(
        models.Unigram([("<unk>", -9.0), ("▁", -3.0), ("a", -2.0), ("a▁", -1.0)], unk_id=0, byte_fallback=False)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


def ignoring_merges() -> Reference:
    made = byte_level(use_regex=False)
    made.model.ignore_merges = True
    return made


def truncated() -> Reference:
    made = byte_level()
    made.enable_truncation(4)
    return made


def with_normalizer(normalizer: object) -> Reference:
    made = byte_level()
    made.normalizer = normalizer
    return made


@pytest.mark.parametrize(
    "made",
    [
        lambda: split_by(r"\w+ \w+|\s|\S"),
        lambda: split_by(r"\w+ ?|\s|\S"),
        unigram,
        ignoring_merges,
        lambda: with_token(AddedToken("of the")),
        lambda: with_token(AddedToken("x ")),
        lambda: with_token(AddedToken("cat", single_word=True)),
        lambda: with_normalizer(normalizers.Strip()),
        lambda: with_normalizer(normalizers.Replace("a b", "c")),
        truncated,
    ],
)
def test_where_a_cut_may_change_ids_whole_texts_are_encoded(made: Callable[[], Reference]) -> None:
    plain = fast.Plain(made())
    assert fast.by_tokenizers(plain, HARD) is plain


@pytest.mark.parametrize("made", [lambda: byte_level(use_regex=False), lambda: sentencepiece_like(crossed=True)])
def test_where_a_token_goes_on_over_a_blank_nothing_is_cut(made: Callable[[], Reference]) -> None:
    reference = made()
    cuts = cuts_of(reference)
    assert cuts is not None
    crossed = {
        token[place] for token in reference.get_vocab() for place in range(len(token) - 1) if token[place + 1] in "▁Ġ"
    }
    assert len(crossed & set("nesykv,")) > 2
    assert not any(cuts.left[ord(character)] for character in crossed if character.isascii())
    plain = fast.Plain(reference)
    proof = fast.prove(plain, ByWords(reference, cuts, plain, worth=float("inf")), mixed(800, 4))
    assert proof.fast, proof.why


def test_a_token_that_begins_with_a_letter_is_not_cut_off() -> None:
    reference = with_token(AddedToken("dog", lstrip=True))
    cuts = cuts_of(reference)
    assert cuts is not None
    assert not cuts.right[ord("d")]
    plain = fast.Plain(reference)
    assert fast.prove(plain, ByWords(reference, cuts, plain, float("inf")), ["a dog, a do", "the dog dog"]).fast


def test_each_distinct_word_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = byte_level()
    encoder = fast.by_tokenizers(fast.Plain(reference), HARD)
    seen: list[str] = []

    class Counted:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> object:
            seen.extend(texts)
            return reference.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(encoder, "reference", Counted())
    monkeypatch.setattr(encoder, "_known", {})
    texts = ["one two one", "two one two", *["one one two two"] * 5]
    first, again = encoder.encode(fast.join(texts)), encoder.encode(fast.join(texts))
    assert sorted(seen) == [" one", " two", "one", "two"]
    assert np.array_equal(first[0], again[0])


def test_texts_whose_words_do_not_repeat_are_encoded_whole() -> None:
    reference = byte_level()

    class Whole(fast.Plain):
        calls = 0

        def encode(self, texts: fast.Texts) -> fast.Ids:
            self.calls += 1
            return super().encode(texts)

    plain, cuts = Whole(reference), cuts_of(reference)
    assert cuts is not None
    encoder = ByWords(reference, cuts, plain)
    encoder.encode(fast.join(["each word here differs", "世界" * 30]))
    assert plain.calls == 1
    encoder.encode(fast.join(["again and again"] * 10))
    assert plain.calls == 1


def test_texts_are_cut_inside_only() -> None:
    table = np.zeros(256, bool)
    table[ord("a") : ord("z") + 1] = True
    texts = ["", "ab cd", " ef g", "", "h ", "i", " j"]
    data, offsets = fast.join(["before", *texts])
    slice_of = (data, offsets[1:])
    words, firsts = cut(slice_of, Cuts(table, table, False))
    assert words.to_pylist() == [b"ab", b" cd", b" ef", b" g", b"h ", b"i", b" j"]
    assert firsts.tolist() == [0, 0, 2, 4, 4, 5, 6, 7]
    words, firsts = cut(slice_of, Cuts(table, table, True))
    assert words.to_pylist() == [b"ab", b"cd", b" ef", b"g", b"h ", b"i", b" j"]
    assert firsts.tolist() == [0, 0, 2, 4, 4, 5, 6, 7]
