"""What one model makes of the held-out rows: answers and losses, asked once and kept in the store.

A changed metric, gate or confidence scores the kept answers anew; twenty trainings on the same rows ask the base once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.modeling.load import pick_device, resolve_attention, resolve_precision
from tunesmith.recipe import Recipe
from tunesmith.runs import durable
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, fingerprint
from tunesmith.scoring.generation import Answer, CacheKind, generate_greedy
from tunesmith.scoring.items import HeldOut
from tunesmith.scoring.perplexity import batch_tokens_for, row_losses
from tunesmith.text.tokenizers import Tokenizer

VERSION = 1  # raised when the same model would answer otherwise
FILE = "side.json"


@dataclass(frozen=True)
class Side:
    """answers: one per held-out chat, in order. nll_N, weight_N: of each held-out row, as scoring.perplexity has them."""

    answers: list[Answer]
    nll_N: np.ndarray
    weight_N: np.ndarray


@dataclass(frozen=True)
class Questions:
    """What both models are asked, and how."""

    dataset: Dataset
    rows: list[HeldOut]
    tokenizer: Tokenizer
    max_new_tokens: int
    batch_size: int
    cache: CacheKind = "dynamic"

    def content(self) -> str:
        """A hash of all that reaches the model: prompts, and the tokens and spans that losses are taken of."""
        digest = hashlib.sha256()
        for row in self.rows:
            ids, spans, weights = self.dataset.sequence(row.example)
            prompt = [] if row.item is None else list(row.item.prompt_ids)
            for part in (ids, spans, weights, np.asarray(prompt, np.int32)):
                data = np.ascontiguousarray(part).tobytes()
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def answers_of(
    who: str, model: dict[str, Any], load: Callable[[], nn.Module], questions: Questions, spec: Recipe, run: Run
) -> Side:
    """The side of one model: read back where it was asked before, else asked now.

    who: base or tuned, for events. model: what identifies it. load: brings it into memory.
    """
    device = pick_device()
    precision = resolve_precision(spec.model.precision, device)
    made_of = {
        "version": VERSION,
        "model": model,
        "questions": questions.content(),
        "max_new_tokens": questions.max_new_tokens,
        "stop_ids": sorted(questions.tokenizer.stop_ids),
        "device": device.type,
        "precision": precision,
        "attention": resolve_attention(spec.model.attention, device, precision),
    }
    if questions.cache != "dynamic":  # below fp32 the answers may differ where two tokens are nearly equal
        made_of["cache"] = questions.cache
    key = fingerprint(made_of)
    found = run.store.find("Evaluation", key, verify="cheap")
    if found is None:
        side = _ask(who, load(), questions, run)
        producer = {"stage": "evaluate", "recipe": spec.slice(("evaluate.max_new_tokens",)), "inputs": made_of}
        with run.store.create("Evaluation", key, producer=producer, notes={"side": who}) as draft:
            durable.write_json(draft.path / FILE, _to_json(side))
        assert draft.artifact is not None
        found = draft.artifact
    else:
        run.record("evaluate", f"evaluate/{who}_answers_kept", len(questions.rows), unit="rows")
    return _read(found)


def _ask(who: str, model: nn.Module, questions: Questions, run: Run) -> Side:
    """Raises InterruptedRun when a stop is asked for meanwhile."""
    where = f"while asking the {who} model"

    def leave_if_asked() -> None:
        if run.stopping:
            run.leave(where)

    answers = generate_greedy(
        model,
        questions.tokenizer,
        [row.item for row in questions.rows if row.item is not None],
        max_new_tokens=questions.max_new_tokens,
        batch_size=questions.batch_size,
        cache=questions.cache,
        on_progress=lambda done, total: run.record("evaluate", f"evaluate/{who}_answers", done, unit="items"),
        on_step=leave_if_asked,
    )
    nll_N, weight_N = row_losses(
        model,
        questions.dataset,
        [row.example for row in questions.rows],
        batch_tokens=batch_tokens_for(model.get_input_embeddings().weight.shape[0]),
        on_batch=leave_if_asked,
    )
    run.record("evaluate", f"evaluate/{who}_rows", len(nll_N), unit="rows")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Side(answers, nll_N, weight_N)


def _to_json(side: Side) -> dict[str, Any]:
    """As plain data; a loss that is not finite, which JSON cannot say, becomes null."""
    return {
        "answers": [asdict(answer) for answer in side.answers],
        "nll": [value if math.isfinite(value) else None for value in side.nll_N.tolist()],
        "weight": side.weight_N.tolist(),
    }


def _read(artifact: Artifact) -> Side:
    plain = json.loads((artifact.path / FILE).read_bytes())
    answers = [Answer(**answer) for answer in plain["answers"]]
    return Side(answers, np.array(plain["nll"], np.float64), np.array(plain["weight"], np.float64))
