"""Fixtures shared by all tests: a random tiny model made on the spot, the data folder, one thread."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

# Bits depend on the number of threads; tests compare bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TINY_TEMPLATE = (
    "{%- for message in messages -%}<|{{ message.role }}|>{{ message.content }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data and models named by TUNESMITH_TEST_DATA; tests that need it skip without it."""
    folder = os.environ.get("TUNESMITH_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TUNESMITH_TEST_DATA is not set: no shared data")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (d 64, 2 layers, vocabulary about 400) with its own byte-level BPE tokenizer and chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog and answers the question"] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=special[1:4]
    )
    wrapped.chat_template = TINY_TEMPLATE
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def chat_rows(tmp_path: Path) -> Path:
    """A JSONL file of 60 short chats, long enough for the default length filter."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(60):
            question = f"Please repeat the number {number} and then say the word done, thank you."
            row = {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"{number} done"}]
            }
            file.write(json.dumps(row) + "\n")
    return path
