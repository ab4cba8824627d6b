"""The story of preparation: read, refuse or set apart, select, encode, and write a Dataset that accounts for every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from tunesmith import hub
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, fingerprint
from tunesmith.stages.prepare import parts
from tunesmith.stages.prepare.assemble import assemble
from tunesmith.stages.prepare.bad_rows import bad_rows_error, bad_rows_of, refused_rows
from tunesmith.stages.prepare.decide import Selection, ask, decide, draw_sample, place_in, told_of_odd
from tunesmith.stages.prepare.encoding.encoder import Encoder
from tunesmith.stages.prepare.encoding.tokens import EncodeTask, Tokens, encoder_of, prove, write_tokens
from tunesmith.stages.prepare.externals import pii_model_hash, source_files, source_hashes, tokenizer_hash
from tunesmith.stages.prepare.judged import KEYS as VERDICT_KEYS
from tunesmith.stages.prepare.judged import Judged, write_verdicts
from tunesmith.stages.prepare.reading.files import skipped_files, told_of_skipped
from tunesmith.stages.prepare.rows import Rows, write_rows
from tunesmith.stages.prepare.sets.signatures import Views
from tunesmith.stages.prepare.sets.signatures import made_of as signatures_made_of
from tunesmith.stages.prepare.spread import Compute, compute_of
from tunesmith.text.checks import MaskFacts, check_columns, check_masks, told
from tunesmith.text.tokenizers import Tokenizer

READER_VERSION = 4
RULES_VERSION = 2  # raised when the same rows and recipe give other verdicts, signatures or facts
ENCODER_VERSION = 2  # raised when the same rows, tokenizer and template give other ids or spans
MASKS_CHECKED = 32  # rows
MOST_THREADS = 4  # that encode; tokenizers have their own besides
MANY_BYTES = 16 * 2**20  # of rows whose texts are compared: from here on workers are started at once
TRAINABLE = ("auto", "train")  # what the user holds out is not judged


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Make Rows, Tokens and Dataset, each only where it is not there yet."""
    model = spec.model
    with compute_of(spec) as compute, ThreadPoolExecutor(1) as aside:
        if Views.of(spec).compares and sum(_size(path) for files in source_files(spec) for path in files) > MANY_BYTES:
            compute.warm_up()
        # Loading the tokenizer and reading the rows share the cores; what is wrong with rows is told first.
        encoder = aside.submit(encoder_of, model.base, model.revision, model.template, spec.data.learn)
        return _prepare(spec, run, compute, encoder, aside)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _prepare(
    spec: Recipe, run: Run, compute: Compute, loading: Future[Encoder], aside: ThreadPoolExecutor
) -> dict[str, Artifact]:
    rows_artifact = _rows(spec, run, compute)
    rows = Rows(rows_artifact.path)
    _judge_bad_rows(spec, run, rows)
    proving = aside.submit(lambda read: prove(loading.result(), read), rows)  # while rows are judged
    verdicts_artifact = _verdicts(spec, run, compute, rows_artifact, rows)
    judged = Judged(verdicts_artifact.path)
    rows = Rows(rows_artifact.path, judged.folder if judged.rewritten else None)

    for sentence in told_of_odd(judged, rows):
        run.record("prepare", "prepare/note", sentence)

    encoder = proving.result()
    selection = decide(spec, rows, judged, _scores(spec, run, rows, judged, encoder.tokenizer))
    ask(selection)
    _leave_if_asked(run, "before tokenising")
    checking = aside.submit(_sample_masks, spec, rows, selection, encoder.tokenizer)

    tokens_artifact = _tokens(spec, run, compute, rows_artifact, judged, rows, encoder.tokenizer)
    tokens = Tokens(tokens_artifact.path)
    _judge_refused_rows(spec, rows, selection, tokens)
    _check_all_masks(run, rows, tokens, encoder.tokenizer, checking.result())
    _leave_if_asked(run, "before writing the Dataset")
    inputs = (rows_artifact, verdicts_artifact, tokens_artifact)
    dataset = _dataset(spec, run, rows, selection, tokens, encoder, inputs)
    return {"rows": rows_artifact, "tokens": tokens_artifact, "dataset": dataset}


# ------------------------------------------------------------------------------------------------------------- rows


def _rows(spec: Recipe, run: Run, compute: Compute) -> Artifact:
    sources = [source.model_dump(exclude={"path", "limit", "repeat", "weight"}) for source in spec.data.sources]
    made_of = {"reader": READER_VERSION, "sources": sources, "files": source_hashes(spec)}

    def make(aside: Path, folder: Path) -> dict[str, Any]:
        return write_rows(spec.data.sources, aside, folder, compute, _teller(run, "prepare/rows_read", "while reading"))

    found, _ = _made_by_parts(run, "Rows", made_of, spec.slice(("data.sources",)), make)
    if skipped := skipped_files(source.path for source in spec.data.sources):
        run.record("prepare", "prepare/note", told_of_skipped(skipped))
    run.record("prepare", "prepare/rows", found.notes["rows"], unit="rows")
    run.record("prepare", "prepare/formats", found.notes["formats"], unit="rows")
    return found


def _made_by_parts(
    run: Run, kind: str, made_of: dict[str, Any], recipe: dict[str, Any], make: Callable[[Path, Path], dict[str, Any]]
) -> tuple[Artifact, bool]:
    """(the artifact, whether it was made now). made_of: all that decides its content. make: (where parts are made, the
    artifact's folder) -> notes, and `hashes` of the parts' files; a start that is killed leaves the parts it finished."""
    id = fingerprint(made_of)
    found = run.store.find(kind, id)
    if found is not None:
        return found, False
    producer = {"stage": "prepare", "recipe": recipe, "inputs": made_of}
    with (
        parts.folder_for(run.store.folder(kind, id)) as aside,
        run.store.create(kind, id, producer=producer) as draft,
    ):
        notes = make(aside, draft.path)
        draft.hashes |= notes.pop("hashes")
        draft.notes |= notes
    assert draft.artifact is not None
    return draft.artifact, True


def _teller(run: Run, event: str, where: str) -> Callable[[int], None]:
    """Tells how far a step is, and leaves where somebody asked to."""

    def tell(count: int) -> None:
        run.record("prepare", event, count, unit="rows")
        _leave_if_asked(run, where)

    return tell


def _judge_bad_rows(spec: Recipe, run: Run, rows: Rows) -> None:
    counts, first = bad_rows_of(rows)
    run.record("prepare", "prepare/bad_rows", counts.total(), unit="rows")
    _stop_for(bad_rows_error(spec, counts, first, rows.num_rows))


def _judge_refused_rows(spec: Recipe, rows: Rows, selection: Selection, tokens: Tokens) -> None:
    """Rows that the chat template refuses are bad rows as well: they stop the run, or are set apart if they are few."""
    refused = list(refused_rows(rows, tokens, selection.accounts.left))
    if refused:
        _stop_for(bad_rows_error(spec, *bad_rows_of(rows, refused), rows.num_rows))


def _stop_for(refusal: DataError | None) -> None:
    if refusal is not None:
        raise refusal


# --------------------------------------------------------------------------------------------------------- verdicts


def _verdicts(spec: Recipe, run: Run, compute: Compute, rows_artifact: Artifact, rows: Rows) -> Artifact:
    made_of = {
        "rules": RULES_VERSION,
        "rows": rows_artifact.id,
        "recipe": spec.slice(VERDICT_KEYS),
        "signatures": signatures_made_of(spec),
        "pii_model": pii_model_hash(spec),
    }

    def make(aside: Path, folder: Path) -> dict[str, Any]:
        tell = _teller(run, "prepare/rows_judged", "while judging rows")
        return write_verdicts(spec, rows, aside, folder, compute, tell)

    return _made_by_parts(run, "Verdicts", made_of, spec.slice(VERDICT_KEYS), make)[0]


def _scores(spec: Recipe, run: Run, rows: Rows, judged: Judged, tokenizer: Tokenizer) -> np.ndarray | None:
    """By the base model, of the rows that may be trained on and that no rule took; None where no such score is asked for."""
    if spec.data.quality.type not in ("perplexity", "difficulty"):
        return None
    from tunesmith.stages.prepare.cleaning.model_scores import score_rows  # torch: only who asks for it pays for it

    tell = _teller(run, "prepare/rows_scored", "while scoring rows")
    files = hub.resolve(spec.model.base, spec.model.revision)
    named = (number for number, facts in enumerate(rows.parts) if rows.splits[facts["source"]] in TRAINABLE)
    left = (
        (part := rows.part(number)).filter(pc.invert(pc.is_in(part["row"], judged.part(number, "verdicts")["row"])))
        for number in named
    )
    found = score_rows(spec, left, tokenizer, files, run.store.root / "losses", tell)
    scores = np.full(rows.num_rows, np.nan)
    scores[found["row"].to_numpy()] = found["score"].to_numpy()
    return scores


# ----------------------------------------------------------------------------------------------------------- tokens


def _sample_masks(spec: Recipe, rows: Rows, selection: Selection, tokenizer: Tokenizer) -> MaskFacts:
    """What is learned and what is not, by a sample of the rows that are left. Raises what `check_masks` raises."""
    chosen, _ = draw_sample(rows, np.flatnonzero(selection.accounts.left), MASKS_CHECKED)
    sample = [(place_in(rows, row), example) for row, example in rows.examples(chosen)]
    return check_masks(tokenizer, sample, spec.data.learn)


def _check_all_masks(run: Run, rows: Rows, tokens: Tokens, tokenizer: Tokenizer, sampled: MaskFacts) -> None:
    """The cheap checks, on every row; and what the sample showed is told."""
    run.record("prepare", "prepare/masks_checked", sampled.rows, unit="rows")
    for sentence in told(sampled):
        run.record("prepare", "prepare/note", sentence)
    numbers = range(len(rows.parts))
    check_columns(
        tokenizer, map(tokens.part, numbers), lambda part, place: place_in(rows, rows.parts[part]["base"] + place)
    )


def _tokens(
    spec: Recipe,
    run: Run,
    compute: Compute,
    rows_artifact: Artifact,
    judged: Judged,
    rows: Rows,
    tokenizer: Tokenizer,
) -> Artifact:
    model = spec.model
    made_of = {
        "rows": rows_artifact.id,
        "rewritten": judged.rewritten,
        "tokenizer": tokenizer_hash(hub.resolve(model.base, model.revision, weights=False)),
        "template": list(tokenizer.template.sources),
        "encoder": ENCODER_VERSION,
        "learn": spec.data.learn,
    }

    def make(aside: Path, folder: Path) -> dict[str, Any]:
        # Encoding leaves the interpreter free for most of its time; processes would each load the tokenizer.
        threads = min(compute.workers, MOST_THREADS)
        encoding = compute if compute.cluster is not None else Compute(threads=threads)
        named = model.base, model.revision, model.template, spec.data.learn
        task = EncodeTask(0, str(rows.folder), str(rows.rewritten or ""), str(aside), *named)
        return write_tokens(rows, task, folder, encoding, _teller(run, "prepare/rows_encoded", "while tokenising"))

    recipe = spec.slice(("model.base", "model.template", "data.learn"))
    found, is_new = _made_by_parts(run, "Tokens", made_of, recipe, make)
    encoded = found.notes["encoded"] if is_new else 0
    run.record("prepare", "prepare/encoded_rows", encoded, unit="rows")
    run.record("prepare", "prepare/tokenizer", found.notes["tokenizer"])
    return found


# ---------------------------------------------------------------------------------------------------------- dataset


def _dataset(
    spec: Recipe,
    run: Run,
    rows: Rows,
    selection: Selection,
    tokens: Tokens,
    encoder: Encoder,
    inputs: tuple[Artifact, ...],
) -> Artifact:
    encoding = {name: inputs[-1].notes[name] for name in ("tokenizer", "ways")}
    producer = {
        "stage": "prepare",
        "recipe": spec.slice(("seed", "data")),
        "inputs": {a.kind.lower(): a.id for a in inputs},
    }
    with run.store.create("Dataset", run.stage_key, producer=producer) as draft:
        statistics = assemble(spec, rows, tokens, selection, encoder, draft.path, told=encoding)
        draft.notes |= {"splits": statistics["splits"]}
    _tell_lengths(spec, run, statistics)
    splits = ", ".join(f"{name} {told['rows']:,}" for name, told in statistics["splits"].items() if told["rows"])
    told = f"{statistics['used']:,} of {statistics['read']:,} rows used ({splits})"
    lost = ", ".join(f"{statistics[what]:,} {what}" for what in ("dropped", "quarantined") if statistics[what])
    run.record("prepare", "prepare/note", f"{told}; {lost}" if lost else told)
    for split, counts in statistics["splits"].items():
        run.record("prepare", f"prepare/{split}_rows", counts["rows"], unit="rows")
    assert draft.artifact is not None
    return draft.artifact


def _tell_lengths(spec: Recipe, run: Run, statistics: dict[str, Any]) -> None:
    """How long the rows are, and what data.max_tokens costs, before anything is trained."""
    over = statistics["over_limit"]
    told = "lengths in tokens: p50 {p50:,}, p99 {p99:,}, longest {max:,}".format(**over)
    if over["rows"]:
        done = {"drop": "dropped", "truncate": "cut", "split": "split"}[spec.data.too_long]
        told += (
            f"; {over['rows']:,} rows over data.max_tokens {spec.data.max_tokens:,} are {done}, "
            f"{over['learned_share']:.1%} of the learned tokens lost"
        )
    run.record("prepare", "prepare/note", told)


def _leave_if_asked(run: Run, where: str) -> None:
    if run.stopping:
        run.leave(where)
