"""What one endpoint serves: a base in the engine, and the models that requests can name, each with its template and its proof.

Without `serve.adapters` that is one exported model. With them it is the base that the adapters were trained on, unmerged, and
beside it the run's own adapter under the run's name, every other adapter under its name, and the plain base as "base".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith import hub
from tunesmith.errors import GateError, UsageError
from tunesmith.modeling.load import pick_device, resolve_precision
from tunesmith.recipe.tree import Serve
from tunesmith.runs.evaluation import read_evaluation, why_held
from tunesmith.runs.run import Run
from tunesmith.stages.serve.checks import check_settings
from tunesmith.stages.serve.engine_spec import EngineSpec, stored_precision
from tunesmith.stages.serve.limits import context_tokens
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer

BASE = "base"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")


@dataclass(frozen=True)
class Choice:
    """A model that requests can name.

    adapter: its key in the engine, None for the engine's model alone. kind: "model", "adapter" or "base", for listings.
    evaluation: folder with evaluation.json and answers.jsonl where one is known. max_new_tokens: of that evaluation.
    """

    name: str
    kind: str
    tokenizer: Tokenizer
    adapter: str | None = None
    evaluation: Path | None = None
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Deployment:
    """files: what the engine loads. precision: of the weights in memory. choices: by name, the main one first.

    generation: generation_config.json of a model folder, whose authors' sampling holds where the user said nothing; empty for
    runs. asked: keys of `serve` that the user wrote.
    """

    files: hub.ModelFiles
    serve: Serve
    precision: str
    choices: Mapping[str, Choice]
    attention: str = "auto"
    adapters: Mapping[str, Path] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return next(iter(self.choices))

    @property
    def context(self) -> int:
        return context_tokens(self.files.config)

    def engine_spec(self) -> EngineSpec:
        """Raises: RecipeError SRV-013 to SRV-015 for what this machine cannot do."""
        return EngineSpec(
            model=self.files.path,
            requests=self.serve.queue,
            context=self.context,
            precision=self.precision,
            engine=check_settings(self.serve),
            attention=self.attention,
            quantisation=self.serve.quantisation,
            compile=self.serve.compile,
            adapters=self.adapters,
        )


def of_folder(
    folder: Path,
    serve: Serve,
    *,
    name: str | None = None,
    workspace: Path | None = None,
    asked: frozenset[str] = frozenset(),
) -> Deployment:
    """A model folder, with the adapters that `serve` names. Raises: UsageError SRV-010/016, GateError SRV-007."""
    if not (folder / "config.json").is_file():
        raise nothing_to_serve(f"{folder} is not a model folder: it has no config.json.")
    files = hub.resolve(str(folder), None)
    settings = folder / "generation_config.json"
    generation = json.loads(settings.read_bytes()) if settings.is_file() else {}
    main = Choice(name or folder.resolve().name, "model", load_tokenizer(files, "auto"))
    found = Deployment(
        files, serve, stored_precision(folder), {main.name: main}, generation=generation, asked=asked
    )  # fmt: skip
    return _with_adapters(found, workspace) if serve.adapters else found


def of_run(run: Run, serve: Serve) -> Deployment:
    """The exported model of a Run; with `serve.adapters` its base, its own adapter and the others.

    Raises: GateError SRV-007, UsageError SRV-010/016.
    """
    evaluation, export = run.outputs("evaluate"), run.outputs("export")
    if evaluation:
        obey_gate(evaluation["evaluation"].path)
    if not export or "export" not in export:
        raise nothing_to_serve(f"run {run.id} has no exported model.")
    if not evaluation:
        raise nothing_to_serve(f"the evaluation of run {run.id} is gone, so nothing says that it may be served.")
    return of_artifacts(run, serve, export["export"].path, evaluation["evaluation"].path)


def of_artifacts(run: Run, serve: Serve, exported: Path, evaluation: Path) -> Deployment:
    """As `of_run`, with the artifacts at hand."""
    spec = run.pinned_recipe
    trained = (run.outputs("train") or {}).get("model")
    if serve.adapters and trained is None:
        raise nothing_to_serve(f"what run {run.id} trained is gone, so nothing says which base its adapters belong to.")
    if serve.adapters and trained.kind == "Adapter":
        files = hub.resolve(spec.model.base, spec.model.revision)
        precision = resolve_precision(spec.model.precision, pick_device())
        plain = Choice(BASE, "base", load_tokenizer(files, spec.model.template))
        found = Deployment(files, serve, precision, {BASE: plain}, attention=spec.model.attention)
        return _with_adapters(found, run.workspace, own=run)
    files = hub.resolve(str(exported), None)
    main = Choice(
        spec.name, "model", load_tokenizer(files, "auto"), None, evaluation, spec.evaluate.max_new_tokens
    )  # fmt: skip
    found = Deployment(files, serve, stored_precision(exported), {main.name: main}, attention=spec.model.attention)
    return _with_adapters(found, run.workspace) if serve.adapters else found


# --------------------------------------------------------------------------------------------------------- adapters


def _with_adapters(found: Deployment, workspace: Path | None, own: Run | None = None) -> Deployment:
    """With the adapters that `serve.adapters` names; own: the Run whose adapter comes first, under the Run's name."""
    choices: dict[str, Choice] = {}
    adapters: dict[str, Path] = {}

    def take(name: str, source: Run | Path) -> None:
        if not NAME.fullmatch(name) or name in choices or name in found.choices:
            raise _bad_adapter(
                name,
                "the name is taken, or holds more than letters, digits and . _ -",
                "another name in serve.adapters",
            )
        key = f"adapter{len(adapters)}"
        choice, adapters[key] = adapter_choice(name, key, source, found.files)
        choices[name] = choice

    if own is not None:
        take(own.recipe.name, own)
    for name, place in found.serve.adapters.items():
        take(name, adapter_source(place, workspace))
    # The main model first: a run's own adapter, else the folder that was named.
    ordered = {**choices, **found.choices} if own is not None else {**found.choices, **choices}
    return Deployment(
        found.files, found.serve, found.precision, ordered, found.attention, adapters, found.generation, found.asked
    )


def adapter_source(place: str, workspace: Path | None) -> Run | Path:
    """What `serve.adapters` names: a folder with an adapter, or a Run of the workspace. Raises: UsageError RUN-008."""
    if (Path(place) / "adapter_config.json").is_file():
        return Path(place)
    return Run.open(place, workspace)


def adapter_choice(name: str, key: str, source: Run | Path, base: hub.ModelFiles) -> tuple[Choice, Path]:
    """A model of requests for an adapter, and the adapter's folder. Raises: GateError SRV-007, UsageError SRV-010/016."""
    if isinstance(source, Path):
        _refuse_other_base(name, json.loads((source / "adapter_config.json").read_bytes()), base)
        # The base's tokenizer with the template that stands beside the adapter: an adapter adds no token.
        template = source / "chat_template.jinja"
        tokenizer = load_tokenizer(base, str(template) if template.is_file() else "auto")
        return Choice(name, "adapter", tokenizer, key), source
    spec = source.pinned_recipe
    evaluation = source.outputs("evaluate")
    if not evaluation:
        raise nothing_to_serve(
            f"the adapter {name!r}: run {source.id} has no evaluation, so nothing says it may be served."
        )
    obey_gate(evaluation["evaluation"].path, f"the adapter {name!r} (run {source.id})")
    adapter = (source.outputs("export") or {}).get("adapter")
    if adapter is None:
        raise nothing_to_serve(f"the adapter {name!r}: run {source.id} has no exported adapter (export.adapter: true).")
    trained_on = hub.resolve(spec.model.base, spec.model.revision)
    if not _is_same(trained_on, base):
        raise _bad_adapter(
            name,
            f"run {source.id} was trained on {trained_on.source}, this base is {base.source}",
            "an adapter of this base",
        )
    tokenizer = load_tokenizer(trained_on, spec.model.template)
    answers, tokens = evaluation["evaluation"].path, spec.evaluate.max_new_tokens
    return Choice(name, "adapter", tokenizer, key, answers, tokens), adapter.path


def _refuse_other_base(name: str, config: dict[str, Any], base: hub.ModelFiles) -> None:
    """What a folder says about its base is believed where it can be looked at; else the shapes must do."""
    said = config.get("base_model_name_or_path")
    if not said or said == base.source:
        return
    if Path(said).is_dir() and not _is_same(hub.resolve(said), base):
        raise _bad_adapter(name, f"it was trained on {said}, this base is {base.source}", "an adapter of this base")


def _is_same(one: hub.ModelFiles, other: hub.ModelFiles) -> bool:
    return one.path.resolve() == other.path.resolve() or one.fingerprint == other.fingerprint


# ------------------------------------------------------------------------------------------------------------- gate


def obey_gate(evaluation: Path, what: str = "") -> None:
    """evaluation: the folder of the artifact. what: which model, where there are several.

    Raises: GateError SRV-007 when evaluation does not say ship.
    """
    reason = why_held(read_evaluation(evaluation))
    if reason is not None:
        raise GateError(
            "SRV-007",
            f"The gate says do not ship{' ' + what if what else ''}: {reason}",
            where="gate",
            expected="a model that passes its gate",
            fix="better data or more training; or, to serve it all the same, run it with --set gate.require=none",
        )


def nothing_to_serve(what: str) -> UsageError:
    return UsageError(
        "SRV-010", what, expected="a finished export (export.merged: true), or a folder with config.json and weights",
        fix="tunesmith run RECIPE, or tunesmith export RECIPE; both end with an exported model",
    )  # fmt: skip


def _bad_adapter(name: str, what: str, expected: str) -> UsageError:
    return UsageError(
        "SRV-016", f"the adapter {name!r} cannot be served here: {what}", where="serve.adapters", expected=expected,
        fix="tunesmith runs lists the runs of a workspace; serve the others from an endpoint of their own",
    )  # fmt: skip
