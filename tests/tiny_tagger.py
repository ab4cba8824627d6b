"""A tiny token classification model whose weights are set by hand: it marks three words."""

from __future__ import annotations

from pathlib import Path

LABELS = ["O", "B-NAME", "I-NAME", "B-CITY"]
WORDS = {"anna": 1, "lee": 2, "oslo": 3}


def make_tagger(folder: Path) -> Path:
    """A BERT of one layer that changes nothing: a word's embedding is its label's direction, whatever stands around it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=16, type_vocab_size=1, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight.fill_(1.0)
        embedding = model.bert.embeddings.word_embeddings.weight
        embedding[:, 0] = 4.0
        for word, label in WORDS.items():
            embedding[vocabulary.index(word), 0] = 0.0
            embedding[vocabulary.index(word), label] = 4.0
        model.classifier.weight[:, : len(LABELS)] = 3 * torch.eye(len(LABELS))
    model.save_pretrained(folder)
    return folder
    return folder
