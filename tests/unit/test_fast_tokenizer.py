"""The fast tokenizer encodes only where it is proven to give the ids of `tokenizers`."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Reference
from tokenizers import models, normalizers, pre_tokenizers, trainers

from tunesmith.text import fast
from tunesmith.text.by_words import ByWords
from tunesmith.text.hard_texts import HARD, SCRIPTS

SHARED = ("gpt2", "gpt_neox_mpt", "minimind", "mistral_v1", "mistral_v3")


@pytest.fixture(scope="module")
def reference() -> Reference:
    """A byte-level BPE with a control token."""
    made = Reference(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(SCRIPTS, trainer)
    return made


def by_hand(reference: Reference, texts: list[str]) -> list[list[int]]:
    return [reference.encode(text, add_special_tokens=False).ids for text in texts]


def as_lists(found: fast.Ids) -> list[list[int]]:
    ids, offsets = found
    assert ids.dtype == np.int32
    return [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]


def test_tokenizers_itself_in_flat_arrays(reference: Reference) -> None:
    texts = ["", "one two", "", "größer 世界", "<|im_end|>", *HARD[:30]]
    assert as_lists(fast.Plain(reference).encode(fast.join(texts))) == by_hand(reference, texts)
    assert as_lists(fast.Plain(reference).encode(fast.join([]))) == []


def test_hard_texts_are_20_scripts_and_valid_text() -> None:
    assert len(SCRIPTS) >= 20
    assert all(text.encode().decode() == text for text in HARD)


def test_without_gigatoken_tokenizers_is_used_and_it_is_said(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "_is_installed", lambda: False)
    encoder, proof = fast.best_encoder(reference)
    assert isinstance(encoder, ByWords)
    assert not proof.fast
    assert "not installed" in proof.why


class OneIdOff(fast.Plain):
    """Right, but for one text."""

    def encode(self, texts: fast.Texts) -> fast.Ids:
        ids, offsets = super().encode(texts)
        raw = texts[0].tobytes()
        for place, (start, end) in enumerate(zip(texts[1], texts[1][1:], strict=False)):
            if raw[start:end] == b"needle":
                ids = ids.copy()
                ids[offsets[place]] += 1
        return ids, offsets


def test_one_other_id_in_the_users_own_rows_refuses_it(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_is_installed", lambda: True)
    monkeypatch.setattr(fast, "Fast", OneIdOff)
    encoder, proof = fast.best_encoder(reference, ["hay"])
    assert proof.fast
    assert isinstance(encoder, OneIdOff)
    assert proof.rows > len(HARD)
    encoder, proof = fast.best_encoder(reference, ["hay", "needle"])
    assert not proof.fast
    assert isinstance(encoder, ByWords)
    assert "'needle'" in proof.why


def test_gigatoken_gives_the_ids_of_tokenizers(reference: Reference) -> None:
    pytest.importorskip("gigatoken")
    encoder, proof = fast.best_encoder(reference)
    assert proof.fast, proof.why
    texts = ["", *HARD, "<|im_end|> a"]
    assert as_lists(encoder.encode(fast.join(texts))) == by_hand(reference, texts)


def test_a_tokenizer_that_gigatoken_does_not_know_falls_back(reference: Reference) -> None:
    pytest.importorskip("gigatoken")
    words = Reference(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.normalizer = normalizers.Lowercase()
    encoder, proof = fast.best_encoder(words)
    assert not proof.fast
    assert proof.why
    assert as_lists(encoder.encode(fast.join(["A a b"]))) == [[0, 0, 1]]


@pytest.mark.parametrize("name", [*SHARED, "falcon"])
def test_real_tokenizers_are_proven_or_refused(test_data: Path, name: str) -> None:
    pytest.importorskip("gigatoken")
    real = Reference.from_file(str(test_data / "data" / "tokenizers" / name / "tokenizer.json"))
    encoder, proof = fast.best_encoder(real)
    assert proof.fast == (name in SHARED), proof.why
    if name == "falcon":
        assert "\n" not in proof.why
    texts = ["Hello there, it's 2024.", "世界", *HARD[:40]]
    assert as_lists(encoder.encode(fast.join(texts))) == by_hand(real, texts)
