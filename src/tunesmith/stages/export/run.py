"""The story of export: the gate obeyed, the adapter merged, files written, loaded again and proven equal."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tunesmith import hub
from tunesmith.errors import FileError, GateError, UsageError
from tunesmith.modeling.adapters import load_adapter, merge_adapter
from tunesmith.modeling.load import DTYPES, load_model, pick_device, resolve_attention, resolve_precision
from tunesmith.recipe import Recipe
from tunesmith.runs import durable
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, fingerprint
from tunesmith.stages.export import proof
from tunesmith.stages.export.card import model_card
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Returns {"export": Model, "parity": Parity} and {"adapter": Adapter} where one was trained and asked for."""
    evaluation = json.loads((inputs["evaluation"].path / "evaluation.json").read_bytes())
    refuse_held(evaluation)
    device = pick_device()
    trained_in = resolve_precision(spec.model.precision, device)
    precision = trained_in if spec.export.dtype == "auto" else spec.export.dtype
    files = hub.resolve(spec.model.base, spec.model.revision)
    tokenizer = load_tokenizer(files, spec.model.template)
    dataset = Dataset(inputs["dataset"].path)
    attention = resolve_attention(spec.model.attention, device)
    producer = {
        "stage": "export",
        "recipe": spec.slice(("export", "model")),
        "inputs": {name: a.id for name, a in inputs.items()},
    }

    def load_trained() -> nn.Module:
        if inputs["model"].kind == "Adapter":
            return load_adapter(
                load_model(files, dtype=trained_in, attention=attention, device=device), inputs["model"].path
            )
        return load_model(inputs["model"].path, dtype=trained_in, attention=attention, device=device)

    outputs: dict[str, Artifact] = {}
    if spec.export.merged:
        outputs |= _merged(
            spec, inputs, run, load_trained, tokenizer, dataset, evaluation, producer, precision, attention
        )
    if inputs["model"].kind == "Adapter" and spec.export.adapter:
        outputs["adapter"] = _adapter(spec, inputs, run, evaluation, dataset, tokenizer, producer)
    return outputs


def refuse_held(evaluation: Mapping[str, Any]) -> None:
    """Raises GateError EXP-001 when the gate says hold."""
    gate = evaluation["gate"]
    if gate["verdict"] != "ship":
        raise GateError(
            "EXP-001",
            f"the gate says hold: {gate['reason']}",
            where="gate",
            expected="a gain whose whole interval is above gate.min_gain",
            fix="look at report.html (fixed and broken examples); train longer or on better rows; gate.require: none ships anyway",
        )


def export_to(run: Run, folder: Path) -> Path:
    """Copy the exported model of a finished run out of the store, every hash checked.

    Raises UsageError EXP-004 when there is no export yet, FileError EXP-005 when the folder is not empty.
    """
    outputs = run.outputs("export")
    if not outputs:
        raise UsageError(
            "EXP-004",
            f"run {run.id} has exported nothing",
            expected="a run whose export has finished",
            fix="tunesmith export RECIPE",
        )
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileError(
            "EXP-005", f"{folder} is not empty", expected="a new or empty folder", fix="choose another folder with --to"
        )
    run.store.verify(outputs["export"])
    with durable.folder_aside(folder) as aside:
        shutil.copytree(outputs["export"].path, aside, dirs_exist_ok=True)
        durable.publish_folder(aside, folder, replace=True)
    return folder


# --------------------------------------------------------------------------------------------------------- the files


def _merged(
    spec: Recipe,
    inputs: Mapping[str, Artifact],
    run: Run,
    load_trained: Callable[[], nn.Module],
    tokenizer: Tokenizer,
    dataset: Dataset,
    evaluation: Mapping[str, Any],
    producer: Mapping[str, Any],
    precision: str,
    attention: str,
) -> dict[str, Artifact]:
    """The merged model, proven equal to what was trained before it becomes true under its name."""
    merged = load_trained()
    if inputs["model"].kind == "Adapter":
        merged = merge_adapter(merged)
    with run.store.create("Model", run.stage_key, producer=producer) as draft:
        _write_model(draft.path, merged.to(DTYPES[precision]), tokenizer, spec)
        card = model_card(spec, evaluation, inputs["model"].notes, dataset.statistics, "merged model")
        (draft.path / "README.md").write_text(card)
        del merged
        # The proof reads the files back from the disk, before they become true under their name.
        exported = load_model(draft.path, dtype=precision, attention=attention, device=pick_device())
        parity = proof.compare(load_trained(), exported, dataset, precision, "export: merged vs trained")
        if spec.model.quantisation.type != "none":
            parity["quantised_base"] = _distance(spec, inputs, run, exported, tokenizer, dataset, evaluation, attention)
        draft.notes |= {"precision": precision, "max_abs_logit_difference": parity["max_abs_logit_difference"]}
    assert draft.artifact is not None
    export = draft.artifact
    with run.store.create("Parity", run.stage_key, producer=producer) as draft:
        proof.write(draft.path, parity)
    assert draft.artifact is not None
    parity_artifact = draft.artifact
    run.record("export", "export/max_abs_logit_difference", parity["max_abs_logit_difference"])
    return {"export": export, "parity": parity_artifact}


def _distance(
    spec: Recipe,
    inputs: Mapping[str, Artifact],
    run: Run,
    exported: nn.Module,
    tokenizer: Tokenizer,
    dataset: Dataset,
    evaluation: Mapping[str, Any],
    attention: str,
) -> dict[str, Any]:
    """The adapter was trained beside quantised weights and merged into unquantised ones: how much that changed."""
    quantisation = spec.model.quantisation.type
    device = next(exported.parameters()).device
    base = load_model(
        hub.resolve(spec.model.base, spec.model.revision),
        dtype=resolve_precision(spec.model.precision, device),
        attention=attention,
        device=device,
        quantisation=spec.model.quantisation,
    )
    seen = load_adapter(base, inputs["model"].path)

    def tell(done: int, total: int) -> None:
        if run.stopping:
            run.leave("while answers on the quantised base were compared")

    found = {
        "quantisation": quantisation,
        "what": f"the {quantisation} base with the adapter, as training saw it, beside the exported model",
        "merged_into": f"the unquantised base, never the {quantisation} one",
        **proof.logit_distance(exported, seen, dataset),
        **proof.answer_distance(
            seen,
            tokenizer,
            dataset,
            inputs["evaluation"].path / "answers.jsonl",
            evaluation["settings"]["max_new_tokens"],
            tell,
        ),
    }
    run.record("export", "export/merged_into", found["merged_into"])
    run.record("export", "export/kl_per_token", found["kl_per_token"], unit="nats")
    run.record("export", "export/answer_share", found["answer_share"], unit="share")
    return found


def _write_model(folder: Path, model: nn.Module, tokenizer: Tokenizer, spec: Recipe) -> None:
    """Weights, config, tokenizer with its template, generation settings that stop where training stopped."""
    model.config.use_cache = True
    model.generation_config.eos_token_id = (
        sorted(tokenizer.stop_ids) if len(tokenizer.stop_ids) > 1 else next(iter(tokenizer.stop_ids))
    )
    model.generation_config.pad_token_id = tokenizer.pad_id
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save(folder)


def _adapter(
    spec: Recipe,
    inputs: Mapping[str, Artifact],
    run: Run,
    evaluation: Mapping[str, Any],
    dataset: Dataset,
    tokenizer: Tokenizer,
    producer: Mapping[str, Any],
) -> Artifact:
    """The adapter with tokenizer and card, as PEFT loads it."""
    with run.store.create("Adapter", fingerprint(["export", run.stage_key]), producer=producer) as draft:
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save(Path(scratch))
            shutil.copytree(scratch, draft.path, dirs_exist_ok=True)
        for path in sorted(inputs["model"].path.glob("adapter_*")):
            shutil.copyfile(path, draft.path / path.name)
        (draft.path / "README.md").write_text(
            model_card(spec, evaluation, inputs["model"].notes, dataset.statistics, "adapter")
        )
    assert draft.artifact is not None
    return draft.artifact
