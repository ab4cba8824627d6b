"""Scores by the recipe's own base model: how surprising the answers are to it, with their prompts and without.

    perplexity   exp(mean loss of the answer's tokens after the prompt)
    difficulty   mean loss of the answer after its prompt / mean loss of the answer alone (IFD; Li et al. 2024,
                 "From Quantity to Quality", arXiv 2308.12032)

The prompt is rendered by the model's chat template; only what the assistant wrote is scored, no scaffold. Alone, the answer
follows the tokenizer's BOS token (else its EOS token), so that both losses are over the same tokens. Losses are kept on the
disk by (model, template) and row key: a killed run goes on, a changed threshold or added rows score nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import nn

from tunesmith import hub
from tunesmith.modeling.load import load_model, pick_device, resolve_attention, resolve_precision
from tunesmith.recipe import Recipe
from tunesmith.runs import durable
from tunesmith.runs.store import fingerprint
from tunesmith.scoring.perplexity import batch_tokens_for, row_losses
from tunesmith.stages.prepare.layout import KEY
from tunesmith.text.example import Example
from tunesmith.text.templates import Segment, TemplateError
from tunesmith.text.tokenizers import Tokenizer

CHUNK = 256  # rows between two saves
LOSSES = pa.schema([("key", KEY), ("loss", pa.float64()), ("tokens", pa.int64())])
VERSION = 1


def score_rows(
    spec: Recipe,
    parts: Iterable[pa.Table],
    tokenizer: Tokenizer,
    files: hub.ModelFiles,
    cache: Path,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> pa.Table:
    """(row int64, score float64, null where a row has no answer to score) of the good rows of parts, in their order.

    parts: layout.PART, cleaned; only rows worth scoring. files: the base with its weights. cache: a folder of its own.
    on_progress: called with the rows done after each chunk, which is saved by then; it may stop the work by raising.
    The model is loaded when the first row has no loss yet. Raises as load_model, and ModelError EVL-012.
    """
    losses = _Losses(spec, tokenizer, files, cache)
    wants_alone = spec.data.quality.type == "difficulty"
    rows, scores, done = [], [], 0
    for part in parts:
        good = part.filter(part.column("problem").is_null())
        for start in range(0, good.num_rows, CHUNK):
            chunk = good.slice(start, CHUNK)
            keys = chunk.column("key").to_pylist()
            after, tokens = losses.of("after_prompt", keys, chunk)
            with np.errstate(divide="ignore", invalid="ignore"):
                mean = np.where(tokens > 0, after / tokens, np.nan)
                if wants_alone:
                    alone, tokens = losses.of("alone", keys, chunk)
                    value = np.where(alone > 0, mean / (alone / tokens), np.nan)
                else:
                    value = np.exp(np.minimum(mean, 700.0))
            rows.append(chunk.column("row").combine_chunks())
            scores.append(pa.array(value, from_pandas=True))
            done += chunk.num_rows
            on_progress(done)
    return pa.table({"row": pa.chunked_array(rows, pa.int64()), "score": pa.chunked_array(scores, pa.float64())})


class _Losses:
    """Summed losses and counts of tokens by row key, measured where the cache has none."""

    def __init__(self, spec: Recipe, tokenizer: Tokenizer, files: hub.ModelFiles, cache: Path) -> None:
        self.spec, self.tokenizer, self.files = spec, tokenizer, files
        self.precision = resolve_precision(spec.model.precision, pick_device())
        self.kept: dict[str, LossCache] = {}
        self.folder = cache / fingerprint(
            {
                "version": VERSION,
                "model": files.fingerprint,
                "template": tokenizer.template.source,
                "learn": spec.data.learn,
                "max_tokens": spec.data.max_tokens,
                "precision": self.precision,
            }
        )
        self._model: nn.Module | None = None

    def of(self, how: str, keys: Sequence[bytes], chunk: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """how: after_prompt or alone. Returns (summed nats [R], tokens [R])."""
        cache = self.kept.setdefault(how, LossCache(self.folder / how))
        missing = {key: place for place, key in enumerate(keys) if key not in cache.known}
        if missing:
            examples = [example_of(chunk, place) for place in missing.values()]
            cache.add(list(missing), *self._measure(how, examples))
        found = [cache.known[key] for key in keys]
        return np.array([loss for loss, _ in found]), np.array([tokens for _, tokens in found])

    def _measure(self, how: str, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """A row may own several sequences: alone, each answer is one of its own."""
        owners: list[int] = []
        sequences: list[list[Segment]] = []
        for place, example in enumerate(examples):
            for segments in self._sequences(how, example):
                owners.append(place)
                sequences.append(segments)
        encoded = [_Sequence.of(ids, spans, self.spec.data.max_tokens) for ids, spans in self._encode(how, sequences)]
        wanted = [number for number, sequence in enumerate(encoded) if len(sequence.spans_S2)]
        losses, tokens = np.zeros(len(examples)), np.zeros(len(examples), np.int64)
        if wanted:
            model = self._loaded()
            batch_tokens = batch_tokens_for(model.get_input_embeddings().weight.shape[0])
            nll_N, weight_N = row_losses(model, _Sequences(encoded), wanted, batch_tokens=batch_tokens)  # type: ignore[arg-type]
            np.add.at(losses, [owners[number] for number in wanted], nll_N)
            np.add.at(tokens, [owners[number] for number in wanted], weight_N.astype(np.int64))
        return losses, tokens

    def _sequences(self, how: str, example: Example) -> list[list[Segment]]:
        try:
            whole = self.tokenizer.encode_example(example, self.spec.data.learn)
        except TemplateError:
            return []  # preparation sets such a row apart and says why
        answers = [segment for segment in whole if segment.learned and segment.is_content]
        if how == "after_prompt":
            return [[replace(segment, learned=segment.learned and segment.is_content) for segment in whole]]
        return [[segment] for segment in answers] if example.text is None else []

    def _encode(self, how: str, sequences: Sequence[Sequence[Segment]]) -> list[tuple[np.ndarray, list]]:
        encoded = self.tokenizer.encode_segments(sequences)
        first = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
        if how != "alone" or first is None:
            return encoded
        return [
            (
                np.concatenate([np.array([first], np.int32), ids]),
                [(start + 1, end + 1, weight) for start, end, weight in spans],
            )
            for ids, spans in encoded
        ]

    def _loaded(self) -> nn.Module:
        if self._model is None:
            device = pick_device()
            attention = resolve_attention(self.spec.model.attention, device, self.precision)
            quantisation = self.spec.model.quantisation
            self._model = load_model(
                self.files, dtype=self.precision, attention=attention, device=device, quantisation=quantisation
            )
        return self._model


def example_of(part: pa.Table, place: int) -> Example:
    """The row as a chat or a text; of preference answers the chosen one ends the chat."""
    turns = part.column("turns")[place].as_py()
    raw = part.column("extra")[place].as_py()
    extra = json.loads(raw) if raw is not None else None
    found = Example.from_columns([turn["role"] for turn in turns], [turn["content"] for turn in turns], extra)
    chosen = next((answer for answer in found.answers if answer.role == "chosen" or answer.label), None)
    return replace(found, messages=found.messages + (chosen.messages if chosen else ()), answers=())


# ------------------------------------------------------------------------------------------- sequences for a model


@dataclass(frozen=True)
class _Sequence:
    """ids_T: int32. spans_S2: what is scored; the first token of a sequence is predicted by nothing."""

    ids_T: np.ndarray
    spans_S2: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, spans: Sequence[tuple[int, int, float]], limit: int) -> _Sequence:
        """limit: tokens; what lies behind it is not scored."""
        cut = [(max(start, 1), min(end, limit)) for start, end, _ in spans]
        return cls(ids[:limit], np.array([span for span in cut if span[0] < span[1]], np.int32).reshape(-1, 2))


class _Sequences:
    """What `row_losses` asks of a Dataset, in memory."""

    def __init__(self, sequences: Sequence[_Sequence]) -> None:
        self._all = sequences

    def lengths(self) -> np.ndarray:
        return np.array([len(sequence.ids_T) for sequence in self._all], np.int64)

    def sequence(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = self._all[number]
        return found.ids_T, found.spans_S2, np.ones(len(found.spans_S2), np.float32)


class LossCache:
    """Row key -> (summed loss, tokens), in a folder of small Arrow files, each of which became true by renaming."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[bytes, tuple[float, int]] = {}
        for path in sorted(folder.glob("*.arrow")):
            try:
                table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
                columns = [table.column(name).to_pylist() for name in LOSSES.names]
            except (OSError, pa.ArrowInvalid, KeyError):
                continue  # a damaged file: its rows are scored again
            self.known |= {key: (loss, tokens) for key, loss, tokens in zip(*columns, strict=True)}

    def add(self, keys: Sequence[bytes], losses: np.ndarray, tokens: np.ndarray) -> None:
        """Kept on the disk when this returns."""
        table = pa.table([pa.array(list(keys), KEY), pa.array(losses), pa.array(tokens)], LOSSES)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, LOSSES) as writer:
            writer.write_table(table)
        durable.write_bytes(self.folder / f"{keys[0].hex()}.arrow", sink.getvalue().to_pybytes())
        self.known |= dict(zip(keys, zip(losses.tolist(), tokens.tolist(), strict=True), strict=True))
