"""Text: examples and their formats, chat templates, tokenizers, learned segments. Needs transformers, not torch."""
