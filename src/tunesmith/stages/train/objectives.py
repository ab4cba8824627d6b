"""Losses of a micro-batch. What divides them is decided once per step, by the loop."""

from __future__ import annotations

from torch import Tensor, nn

from tunesmith.modeling.forward import Batch, chunk_of, learned_hidden, learned_logits
from tunesmith.modeling.loss import chunked_cross_entropy, weighted_cross_entropy

# Shape suffixes: K learned positions.


def sft_loss(model: nn.Module, batch: Batch, weights_K: Tensor) -> Tensor:
    """Summed weighted cross-entropy in nats. The caller divides by the step's total weight, so that the loss of a step
    does not depend on how it was cut into micro-batches or over processes.

    Logits exist a chunk at a time where the output layer is a linear layer of its own and whole here; an adapted one, one
    behind soft caps or scales, and one in shards have those of all learned positions.
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        found = learned_hidden(model, batch)
        if found:
            hidden_KD, _ = found
            chunk = chunk_of(head.weight.shape[0], hidden_KD.device)
            return chunked_cross_entropy(hidden_KD, head, batch.targets_K, weights_K, chunk)
    return weighted_cross_entropy(learned_logits(model, batch), batch.targets_K, weights_K)
