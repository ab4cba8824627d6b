"""Sizes of a decoder from its config.json: parameters of each part, exactly, for Llama-like models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.recipe import Lora, Recipe

LLAMA_LIKE = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3", "phi3", "granite", "olmo2"}


@dataclass(frozen=True)
class Shape:
    """D hidden, F feed-forward, L layers, V vocabulary; q_width and kv_width in features."""

    model_type: str
    num_layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    q_width: int
    kv_width: int
    num_heads: int
    is_tied: bool
    qkv_bias: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Raises ModelError PLN-001 when config.json lacks a size the arithmetic needs."""
        config = {**config, **(config.get("text_config") or {})}
        needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
        missing = [name for name in needed if not isinstance(config.get(name), int)]
        if missing:
            raise ModelError(
                "PLN-001",
                f"config.json names no {', '.join(missing)}: this architecture ({config.get('model_type')}) cannot be planned",
                where="model.base",
                expected="a dense decoder such as Llama, Qwen or Mistral",
                fix="choose another base model",
            )
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        kv_heads = config.get("num_key_value_heads") or heads
        return cls(
            config.get("model_type", ""),
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            config["vocab_size"],
            heads * head_dim,
            kv_heads * head_dim,
            heads,
            bool(config.get("tie_word_embeddings", False)),
            bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
        )

    @property
    def is_known(self) -> bool:
        return self.model_type in LLAMA_LIKE

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks."""
        attention = 2 * self.hidden * self.q_width + 2 * self.hidden * self.kv_width
        return self.num_layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All weights."""
        norms = self.hidden * (2 * self.num_layers + 1)
        if self.model_type == "qwen3":
            norms += 2 * self.num_layers * (self.q_width // self.num_heads)
        biases = self.num_layers * (self.q_width + 2 * self.kv_width) if self.qkv_bias else 0
        embeddings = self.vocabulary * self.hidden * (1 if self.is_tied else 2)
        return self.linear_parameters + norms + biases + embeddings

    def adapter_parameters(self, lora: Lora) -> int:
        """Weights of a LoRA adapter: rank x (inputs + outputs) of each target."""
        sizes = {
            "q_proj": (self.hidden, self.q_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.q_width, self.hidden),
            "gate_proj": (self.hidden, self.feed_forward),
            "up_proj": (self.hidden, self.feed_forward),
            "down_proj": (self.feed_forward, self.hidden),
        }
        chosen = [sizes[target] for target in lora.targets if target in sizes]
        return self.num_layers * lora.rank * sum(inputs + outputs for inputs, outputs in chosen)

    def trainable(self, spec: Recipe) -> int:
        return self.adapter_parameters(spec.adapter) if isinstance(spec.adapter, Lora) else self.parameters
