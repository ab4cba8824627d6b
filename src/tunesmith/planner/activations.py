"""What a forward pass leaves in memory for the way back, counted from the operations of a block, tensor by tensor.

Exact for the model code of transformers 5.23 and LoRA layers of peft 0.21 (tests/unit/test_planner_memory.py lets torch
count the same tensors). Where an operation is another one on a GPU (fused attention), it keeps the same tensors.
"""

# Shape suffixes and letters: D hidden, F feed-forward, Q features of all query heads, K of all key heads, H query heads,
# L blocks, N tokens of a micro-batch, P learned positions of it, V vocabulary.

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.planner.shapes import Shape

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}
# Logits that exist at once while the loss is made (modeling/loss.py), by their number; chosen so that on a CPU a chunk
# stays small beside the model and on a GPU its multiplications are large enough.
LOGITS_AT_ONCE = {True: 2**22, False: 2**27}  # on a CPU, on a GPU
READ_AFTER_NORM = (("q_proj", "k_proj", "v_proj", "qkv_proj"), ("gate_proj", "up_proj", "gate_up_proj"))


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a micro-batch.

    targets: linear layers with an adapter; None when all weights are trained. rank: of the adapter.
    precision: what is computed in. attention: fused (sdpa, flash) or eager. layout: packed or rows. recompute: blocks keep their input only.
    num_tokens: N, padding included. row_tokens: of the longest row, what attention spans. learned: P.
    """

    shape: Shape
    targets: frozenset[str] | None
    rank: int
    precision: str
    attention: str
    layout: str
    recompute: bool
    num_tokens: int
    row_tokens: int
    learned: int

    @property
    def is_lora(self) -> bool:
        return self.targets is not None

    @property
    def width(self) -> int:
        """Bytes of a value that linear layers put out."""
        return WIDTH[self.precision]

    @property
    def stream_width(self) -> int:
        """Bytes of a value between two blocks: full fine-tuning keeps fp32 weights, so embeddings come out in fp32."""
        return self.width if self.is_lora else 4

    @property
    def num_adapters(self) -> int:
        """Adapted layers of a block."""
        return len(self.reads(*READ_AFTER_NORM[0], *READ_AFTER_NORM[1], *ALWAYS_APART)) if self.is_lora else 0

    def reads(self, *layers: str) -> list[str]:
        """Those of the named layers whose weights need their input for the way back."""
        fused = self.shape.family.fused
        there = [name for name in layers if (name in ("qkv_proj", "gate_up_proj")) == fused or name in ALWAYS_APART]
        return there if self.targets is None else [name for name in there if name in self.targets]


ALWAYS_APART = ("o_proj", "down_proj")


def loss_chunk(vocabulary: int, *, on_cpu: bool) -> int:
    """Learned positions whose logits exist at once: between 64 and 4,096, in steps of 64."""
    return max(64, min(4096, LOGITS_AT_ONCE[on_cpu] // vocabulary // 64 * 64))


def saved(job: Pass) -> float:
    """Bytes that live at the end of the forward pass: all blocks, last norm, output layer; logits apart."""
    blocks = job.shape.num_layers * (_block_input(job) if job.recompute else block(job))
    return job.num_tokens * (blocks - _first_block_less(job)) + _rotations(job) + _tail(job)


def block(job: Pass) -> float:
    """Bytes per token that one block keeps."""
    return _norms(job) + _linear_inputs(job) + _attention(job) + _feed_forward(job) + _adapter(job)


def _block_input(job: Pass) -> float:
    return job.shape.hidden * job.stream_width


def _first_block_less(job: Pass) -> float:
    """Nothing before the first adapter needs a gradient, so the first norm keeps nothing (unless recomputation asks for one)."""
    is_before = job.is_lora and not job.recompute and job.shape.model_type != "olmo2"
    return 4.0 * (job.shape.hidden + 1) if is_before else 0.0


def _norms(job: Pass) -> float:
    """Each norm keeps its input in fp32 and one factor per row; where its weight is trained, the scaled input as well."""
    shape, copies = job.shape, 1 if job.is_lora else 2
    values = shape.family.norms * (4 * shape.hidden * copies + 4)
    if shape.family.qk_norm != "none":
        of_heads = shape.q_width + shape.kv_width
        values += of_heads * (4 if job.is_lora else 4 + job.width)
        values += 4 * (shape.num_heads + shape.num_kv_heads if shape.family.qk_norm == "head" else 2)
    return values


def _linear_inputs(job: Pass) -> float:
    """fp32: what several layers read is kept once. 16 bits: each layer keeps a copy of its own in that format."""
    shape, values = job.shape, 0.0
    for layers in READ_AFTER_NORM:
        readers = len(job.reads(*layers))
        values += 4 * shape.hidden * min(readers, 1) if job.precision == "fp32" else 2 * shape.hidden * readers
    # Packed attention joins its pieces into a tensor of its own, eager attention reorders; else attention keeps it already.
    own_copy = job.precision != "fp32" and job.is_lora
    if job.reads("o_proj") and (own_copy or job.layout == "packed" or job.attention == "eager"):
        values += shape.q_width * job.width
    if job.reads("down_proj"):
        values += shape.feed_forward * job.width
    return values


def _attention(job: Pass) -> float:
    """Query, keys, values, result and a factor per head and row; eager attention keeps its probabilities instead."""
    shape = job.shape
    repeats = shape.num_kv_heads != shape.num_heads and (job.layout == "packed" or job.attention == "eager")
    values = (shape.q_width + 2 * (shape.q_width if repeats else shape.kv_width)) * job.width
    if shape.family.fused:
        values += (
            shape.q_width + shape.kv_width
        ) * job.width  # the values are a part of one tensor with the two others
    if job.attention == "eager":
        return values + shape.num_heads * job.row_tokens * (4 if job.precision == "fp32" else 6)
    return values + shape.q_width * job.width + 4 * shape.num_heads


def _feed_forward(job: Pass) -> float:
    """Gate, its activation, and up; their product is counted as the input of the layer after it."""
    return 3 * job.shape.feed_forward * job.width


def _adapter(job: Pass) -> float:
    return job.rank * job.width * job.num_adapters


def _rotations(job: Pass) -> float:
    """Cosines and sines of the positions, the same for all blocks."""
    positions = job.num_tokens if job.layout == "packed" else job.row_tokens
    return 2 * positions * job.shape.head_dim * job.stream_width


def _tail(job: Pass) -> float:
    """The last norm, and the hidden states that a trained output layer reads."""
    shape = job.shape
    norm = job.num_tokens * (4 * shape.hidden * (1 if job.is_lora else 2) + 4)
    return norm + (0 if job.is_lora else job.learned * shape.hidden * job.width)


def way_back(job: Pass) -> float:
    """Bytes that the backward pass of the last block needs beyond what was saved, at its highest.

    That is in the last norm (a few rows of D) or where the feed-forward layer goes back: the gradients of two of its
    tensors, less what they have freed already; eager attention holds two gradients of its probabilities. Terms as
    counted in torch's allocations, to about a tenth of themselves.
    """
    shape, half = job.shape, job.precision != "fp32"
    values = 4.0 * (5 if job.is_lora else 4) * shape.hidden
    feed_forward = (4.0 if half and not job.is_lora else 8.0) * shape.feed_forward
    values = max(values, feed_forward - (0.0 if job.is_lora else 3.0 * shape.hidden))
    if job.attention == "eager":
        freed = 4 * shape.feed_forward + 4.6 * shape.hidden
        values = max(values, 4.0 * (2 * shape.num_heads * job.row_tokens - freed))
    again = job.num_tokens * (block(job) - _block_input(job)) if job.recompute else 0.0
    return job.num_tokens * values + again
