"""The shipped tiny model, the script that made it, and the quickstart's data."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "src" / "tunesmith" / "hub" / "builtin" / "tunesmith-tiny"
FORBIDDEN = re.compile(r"\b(intent|product|urgency|order_number)\b[\"']?\s*[:=]")


@pytest.fixture(scope="module")
def scripts() -> object:
    """The modules of tools/tiny_model and of the quickstart, importable while these tests run."""
    folders = [str(ROOT / "tools" / "tiny_model"), str(ROOT / "examples" / "quickstart")]
    before = set(sys.modules)
    sys.path[:0] = folders
    try:
        import corpus
        import make_data
        import pretrain
        import tokenizer

        yield {"corpus": corpus, "pretrain": pretrain, "tokenizer": tokenizer, "make_data": make_data}
    finally:
        del sys.path[:2]
        names = ("corpus", "extraction", "lexicon", "tokenizer", "pretrain", "make_data")
        for name in set(sys.modules) - before:
            if name in names or name.startswith("wordings"):
                del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> object:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def answer(model: object, tokenizer: object, text: str) -> tuple[str, list[int]]:
    chat = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=40)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True), out.tolist()


def text_of(document: object) -> str:
    return document.text if document.chat is None else "\n".join(turn["content"] for turn in document.chat)


# ---- the shipped model -----------------------------------------------------------------------------------------------


def test_shipped_model_is_small(model: object) -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8 * 2**20
    assert 2_400_000 <= sum(p.numel() for p in model.parameters()) <= 3_100_000
    assert (MODEL / "README.md").stat().st_size > 500


def test_special_tokens_are_told_apart(model: object, tokenizer: object) -> None:
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize(
    "text",
    [
        "ORD-48213, the Aurora Lamp!",
        "  two  spaces\n\n\tand tab ",
        "äöü ß 日本語 😀 \u2028",
        "".join(map(chr, range(1, 400))),
    ],
)
def test_any_text_comes_back_from_the_tokenizer(tokenizer: object, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_digit_is_a_token_and_a_name_has_the_same_tokens_everywhere(tokenizer: object) -> None:
    def tokens(text: str) -> list[str]:
        return tokenizer.tokenize(text)

    assert tokens("48213") == list("48213")
    name = tokens("Zorvan")
    for before in ("my ", '{"', "\n", "("):
        assert tokens(before + "Zorvan")[-len(name) :] == name


def test_template_renders_turns_that_tokenise_the_same_in_segments_and_whole(tokenizer: object) -> None:
    chat = [
        {"role": r, "content": c} for r, c in (("system", "Be brief.\n"), ("user", " Hi\n"), ("assistant", "\n{} "))
    ]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole == "<|system|>Be brief.\n<|end|><|user|> Hi\n<|end|><|assistant|>\n{} <|end|>"
    assert tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True).endswith(
        "<|end|><|assistant|>"
    )
    segments = re.findall(r"<\|\w+\|>|[^<]+", whole)
    assert "".join(segments) == whole
    joined = [i for part in segments for i in tokenizer(part, add_special_tokens=False)["input_ids"]]
    assert joined == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_generation_marks_cover_the_answer_and_its_end(tokenizer: object) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
    out = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    learned = [i for i, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(learned) == "yes<|end|>"


def test_model_copies_what_it_never_saw_and_stops(model: object, tokenizer: object) -> None:
    said, ids = answer(model, tokenizer, "Copy the number: 5820417")
    assert said == "5820417"
    assert ids[-1] == tokenizer.eos_token_id


def test_model_extracts_with_the_keys_that_it_is_given(model: object, tokenizer: object) -> None:
    said, _ = answer(model, tokenizer, "name and code as JSON\nHello, I have the Velkor Bridge here, BX-7351.")
    assert json.loads(said) == {"name": "Velkor Bridge", "code": "BX-7351"}


# ---- the script that made it -----------------------------------------------------------------------------------------


def test_corpus_is_the_same_for_the_same_seed(scripts: dict) -> None:
    document = scripts["corpus"].document
    first = [document(3, index) for index in range(200)]
    assert first == [document(3, index) for index in range(200)]
    assert first != [document(4, index) for index in range(200)]


def test_corpus_is_not_on_the_quickstart_task(scripts: dict, tmp_path: Path) -> None:
    texts = [text_of(scripts["corpus"].document(1, index)) for index in range(20_000)]
    assert not [
        text for text in texts if FORBIDDEN.search(text) or "refund" in text.lower() or "support desk" in text.lower()
    ]
    scripts["make_data"].write_data(tmp_path)
    rows = [
        json.loads(line)
        for name in ("test", "test_unseen", "test_free")
        for line in (tmp_path / f"{name}.jsonl").read_bytes().splitlines()
    ]
    assert not {row["messages"][0]["content"] for row in rows} & set(texts)


def test_corpus_mixes_text_and_chats_of_every_kind(scripts: dict) -> None:
    corpus = scripts["corpus"]
    documents = [corpus.document(1, index) for index in range(5_000)]
    kinds = Counter(document.kind for document in documents)
    assert set(kinds) == {maker.__name__ for maker in (*corpus.CHATS, *corpus.TEXTS)}
    assert 0.1 < sum(document.chat is None for document in documents) / len(documents) < 0.5


def test_a_short_pretraining_lowers_the_loss_and_saves_a_model_that_loads(scripts: dict, tmp_path: Path) -> None:
    pretrain, threads = scripts["pretrain"], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        budget = pretrain.Budget(steps=6, batch=2, length=224, warmup=2)
        last = pretrain.pretrain(tmp_path, 5, budget, report_every=2, validation=8, tokenizer_documents=1500)
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (tmp_path / "pretrain_log.jsonl").read_bytes().splitlines()]
    assert lines[0]["parameters"] == 2_607_168
    assert lines[0]["seed"] == 5
    assert last["step"] == 6
    assert lines[-1]["loss"] < lines[1]["loss"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template == scripts["tokenizer"].CHAT_TEMPLATE


def test_rows_are_packed_without_cutting_a_document(scripts: dict) -> None:
    import random

    documents = [([i] * (5 + i % 60), [1.0] * (5 + i % 60), "x") for i in range(100)]
    rows = scripts["pretrain"].pack(documents, 128, random.Random(0))
    assert sorted(one[0][0] for row in rows for one in row) == list(range(100))
    assert all(sum(len(one[0]) for one in row) <= 128 for row in rows)


def test_log_of_the_real_run_is_committed() -> None:
    lines = [
        json.loads(line) for line in (ROOT / "tools" / "tiny_model" / "pretrain_log.jsonl").read_bytes().splitlines()
    ]
    assert {"command", "seed", "date", "machine", "parameters"} <= set(lines[0])
    assert lines[-1]["loss"] < lines[1]["loss"]
    assert lines[-1]["exact"]["two_parts"] > 0.8
