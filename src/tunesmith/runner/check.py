"""Everything that is wrong with a recipe, its model and its rows, found without running it. Nothing is trained or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import hub, tracking
from tunesmith.errors import Findings
from tunesmith.recipe import Lora, code_named
from tunesmith.runner import fingerprints, planning
from tunesmith.runner.stages import STAGES, check_switches, load_stages
from tunesmith.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe


def check(spec: Recipe, workspace: Path, on_phase: Callable[[str], None] = lambda phase: None) -> Findings:
    """All findings, the recipe's own problems excepted: those keep it from being read at all."""
    found = Findings()
    found.facts.append("the recipe is fine")
    _check_words(spec, found)
    on_phase("the model")
    config = _check_model(spec, workspace, found)
    tokenizer = _check_files(spec, config, found) if config is not None else None
    on_phase("the rows")
    from tunesmith.stages.prepare.survey import survey

    statistics = survey(spec, tokenizer, found)
    if config is not None and statistics is not None:
        with found.gathering():
            _tell_plan(planning.make_plan(spec, statistics, workspace)["figures"], found)
    return found


def _check_words(spec: Recipe, found: Findings) -> None:
    """Metrics by their name, code by its file, switches that exclude each other."""
    from tunesmith.scoring.metrics import PERPLEXITY, load_metric

    code = code_named(spec)
    for name in spec.evaluate.metrics:
        if name != PERPLEXITY and name not in code:
            with found.gathering():
                load_metric(name, {})
    with found.gathering():
        fingerprints.allowed(spec, frozenset(code))
        found.facts += [f"it names Python code, which runs only with --allow-code: {name}" for name in code]
    for stage in load_stages(STAGES, "serve"):
        with found.gathering():
            stage.check(spec)
    with found.gathering():
        tracking.check(spec.track)
    try:
        check_switches(spec, load_stages(STAGES, "serve"))
    except Exception as error:
        found.warnings.append(f"`tunesmith run` will stop: {error}".splitlines()[0])


def _check_model(spec: Recipe, workspace: Path, found: Findings) -> hub.ModelConfig | None:
    """The configuration alone; and whether a plan for rows of data.max_tokens fits. None where it does not."""
    config = None
    with found.gathering():
        config = hub.resolve_config(spec.model.base, spec.model.revision)
        kind = config.config.get("model_type")
        found.facts.append(f"the base model {config.source} is there ({kind}{_at(config.commit)})")
        if config.bytes_to_fetch:
            found.facts.append(f"{format_bytes(config.bytes_to_fetch)} of weights would be fetched")
        plan = planning.make_plan(spec, None, workspace)
        found.warnings += [item["text"] for item in plan["unusual"]]
        planning.check_disk(plan, workspace, planning.bytes_there(spec, workspace))
        limit = config.config.get("max_position_embeddings")
        if isinstance(limit, int) and spec.data.max_tokens > limit:
            found.warnings.append(
                f"data.max_tokens {spec.data.max_tokens:,} is more than the {limit:,} positions the base model has seen"
            )
    return config


def _at(commit: str | None) -> str:
    return f", commit {commit[:12]}" if commit else ""


def _tell_plan(figures: dict[str, Any], found: Findings) -> None:
    for name, words, show in (
        ("peak_memory", "training needs about {} of memory ({} to {})", format_bytes),
        ("train_seconds", "training takes about {} ({} to {})", format_seconds),
    ):
        if name in figures:
            found.facts.append(words.format(*(show(figures[name][part]) for part in ("value", "low", "high"))))


def _check_files(spec: Recipe, config: hub.ModelConfig, found: Findings) -> Any:
    """The small files and the architecture: tokenizer, template, adapter targets, number format. Returns the tokenizer or None."""
    from tunesmith.modeling.adapters import check_targets
    from tunesmith.modeling.load import empty_model, pick_device, resolve_attention, resolve_precision
    from tunesmith.text.tokenizers import load_tokenizer

    tokenizer = files = None
    with found.gathering():
        files = hub.resolve(spec.model.base, config.commit or spec.model.revision, weights=False)
        tokenizer = load_tokenizer(files, spec.model.template)
    with found.gathering():
        precision = resolve_precision(spec.model.precision, pick_device())
        resolve_attention(spec.model.attention, pick_device(), precision)
    if files is not None:
        with found.gathering():
            model = empty_model(files.path)
            if isinstance(spec.adapter, Lora):
                check_targets(model, spec.adapter)
    return tokenizer
