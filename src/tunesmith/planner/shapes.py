"""Sizes of a decoder from its config.json: parameters of each part, exactly, for Llama-like models.

Source: the modeling files of transformers 5.23; tests/unit/test_planner_shapes.py counts the parameters that it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.recipe import Lora, Recipe

STORED = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Family:
    """Where a kind of model differs from Llama.

    norms: of D features in a block. qk_norm: over the features of each head, or of the whole row of heads. is_tied: what
    a config.json means that does not say. fused: q, k, v in one layer, gate and up in another. has_plain_head: logits
    are the output layer's, so that they are computed at learned positions only. packs: documents go through end to end.
    has_fused_attention: else transformers has eager attention only for it.
    """

    norms: int = 2
    qk_norm: str = "none"
    qkv_bias: bool = False
    is_tied: bool = False
    fused: bool = False
    has_plain_head: bool = True
    packs: bool = True
    has_fused_attention: bool = True


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "smollm3": Family(is_tied=True),
    "phi3": Family(fused=True),
    "granite": Family(has_plain_head=False),
    "olmo2": Family(qk_norm="row"),
    "gemma": Family(is_tied=True),
    "gemma2": Family(norms=4, is_tied=True, has_plain_head=False, packs=False, has_fused_attention=False),
    "gemma3_text": Family(norms=4, qk_norm="head", is_tied=True),
}


@dataclass(frozen=True)
class Shape:
    """D hidden, F feed-forward, V vocabulary, L num_layers. stored_width: bytes per weight in the files.

    sliding_window: the shortest span that a layer attends over, None where all look back to the start.
    experts: feed-forward layers side by side in a block, 1 in a dense model.
    """

    model_type: str
    num_layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    is_tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    experts: int
    sliding_window: int | None
    stored_width: int

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
        kind = str(config.get("model_type", ""))
        family = FAMILIES.get(kind, Family())
        heads = config["num_attention_heads"]
        tied = config.get("tie_word_embeddings")
        attention_bias = bool(config.get("attention_bias"))
        uses_window = bool(config.get("use_sliding_window", True))
        return cls(
            kind,
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            config["vocab_size"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            family.is_tied if tied is None else bool(tied),
            family.qkv_bias or attention_bias,
            attention_bias and not family.qkv_bias,
            bool(config.get("mlp_bias")),
            max(1, config.get("num_local_experts") or config.get("num_experts") or 1),
            (config.get("sliding_window") or None) if uses_window else None,
            STORED.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."), 2),
        )

    @property
    def family(self) -> Family:
        return FAMILIES.get(self.model_type, Family())

    @property
    def is_known(self) -> bool:
        return self.model_type in FAMILIES and self.experts == 1

    @property
    def q_width(self) -> int:
        """Features of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Features of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks."""
        attention = 2 * self.hidden * self.q_width + 2 * self.hidden * self.kv_width
        return self.num_layers * (attention + self.experts * 3 * self.hidden * self.feed_forward)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, or of the output layer where they are not the same."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights; what is tied counts once."""
        norms = self.family.norms * self.hidden
        norms += {"none": 0, "head": 2 * self.head_dim, "row": self.q_width + self.kv_width}[self.family.qk_norm]
        biases = self.qkv_bias * (self.q_width + 2 * self.kv_width) + self.o_bias * self.hidden
        biases += self.mlp_bias * (2 * self.feed_forward + self.hidden)
        embeddings = self.embedding_parameters * (1 if self.is_tied else 2)
        return self.linear_parameters + self.num_layers * (norms + biases) + self.hidden + embeddings

    def adapter_parameters(self, lora: Lora) -> int:
        """Weights of a LoRA adapter: rank x (inputs + outputs) of each target."""
        D, F, Q, K = self.hidden, self.feed_forward, self.q_width, self.kv_width
        in_a_block = {
            "q_proj": D + Q,
            "k_proj": D + K,
            "v_proj": D + K,
            "o_proj": Q + D,
            "gate_proj": D + F,
            "up_proj": D + F,
            "down_proj": F + D,
            "qkv_proj": D + Q + 2 * K,
            "gate_up_proj": D + 2 * F,
        }
        once = D + self.vocabulary if "lm_head" in lora.targets else 0
        return lora.rank * (self.num_layers * sum(in_a_block.get(target, 0) for target in lora.targets) + once)

    def trainable(self, spec: Recipe) -> int:
        return self.adapter_parameters(spec.adapter) if isinstance(spec.adapter, Lora) else self.parameters
