"""The story of export: the gate obeyed, the adapter merged, files written, loaded again and proven equal."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import hub
from tunesmith.modeling.adapters import load_adapter, merge_adapter
from tunesmith.modeling.load import DTYPES, load_model, pick_device, resolve_attention, resolve_precision
from tunesmith.planner import hardware
from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.evaluation import read_evaluation
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, fingerprint
from tunesmith.scoring.items import load_held_out
from tunesmith.stages.export import INFO, proof, quantised
from tunesmith.stages.export.card import model_card
from tunesmith.stages.export.delivery import refuse_held
from tunesmith.stages.export.rendering import compare_rendering
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Returns {"export": Model, "parity": Parity} and {"adapter": Adapter} where one was trained and asked for."""
    evaluation = read_evaluation(inputs["evaluation"].path)
    refuse_held(evaluation, run)
    export = Export.of(spec, inputs, run, evaluation)
    outputs: dict[str, Artifact] = {}
    if spec.export.merged:
        outputs |= _merged(export)
    if export.has_adapter and spec.export.adapter:
        outputs["adapter"] = _adapter(export)
    return outputs


@dataclass(frozen=True)
class Export:
    """What an export is made of. trained_in: number format of evaluation; precision: that of the exported weights."""

    spec: Recipe
    inputs: Mapping[str, Artifact]
    run: Run
    evaluation: Mapping[str, Any]
    files: hub.ModelFiles
    tokenizer: Tokenizer
    dataset: Dataset
    device: torch.device
    trained_in: str
    precision: str

    @classmethod
    def of(cls, spec: Recipe, inputs: Mapping[str, Artifact], run: Run, evaluation: Mapping[str, Any]) -> Export:
        device = pick_device()
        trained_in = resolve_precision(spec.model.precision, device)
        precision = trained_in if spec.export.dtype == "auto" else spec.export.dtype
        files = hub.resolve(spec.model.base, spec.model.revision)
        tokenizer = load_tokenizer(files, spec.model.template)
        dataset = Dataset(inputs["dataset"].path)
        return cls(spec, inputs, run, evaluation, files, tokenizer, dataset, device, trained_in, precision)

    @property
    def has_adapter(self) -> bool:
        return self.inputs["model"].kind == "Adapter"

    def trained(self, dtype: str) -> nn.Module:
        """What was trained, its base (or, fully tuned, itself) in that number format."""
        if self.has_adapter:
            return load_adapter(self.load(self.files.path, dtype), self.inputs["model"].path)
        return self.load(self.inputs["model"].path, dtype)

    def load(self, path: Path, dtype: str) -> nn.Module:
        attention = resolve_attention(self.spec.model.attention, self.device, dtype)
        return load_model(path, dtype=dtype, attention=attention, device=self.device)

    def fits_in_fp32(self) -> bool:
        """Whether one fp32 model fits into the device's free memory. Files hold 2 bytes a weight, or 4."""
        size = sum(path.stat().st_size for path in self.files.path.glob("*.safetensors"))
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
        else:
            free = hardware.detect().ram_available_bytes
        return 2.5 * size < free

    def producer(self) -> dict[str, Any]:
        return {
            "stage": INFO.name,
            "version": INFO.version,
            "recipe": self.spec.slice(("export", "model")),
            "inputs": {name: artifact.id for name, artifact in self.inputs.items()},
        }

    def card(self, kind: str) -> str:
        notes, statistics = self.inputs["model"].notes, self.dataset.statistics
        return model_card(self.spec, self.evaluation, notes, statistics, kind)

    def leave_if_asked(self) -> None:
        if self.run.stopping:
            self.run.leave("while the export was being made")


# --------------------------------------------------------------------------------------------------------- the files


def _merged(export: Export) -> dict[str, Artifact]:
    """The merged model, proven equal to what was trained before it becomes true under its name."""
    run = export.run
    merged, merge_proof = _merge(export)
    export.leave_if_asked()
    with run.store.create("Model", run.stage_key, producer=export.producer()) as draft:
        _write_model(draft.path, merged.to(DTYPES[export.precision]), export.tokenizer)
        del merged
        (draft.path / "README.md").write_bytes(export.card("merged model").encode("utf-8", "backslashreplace"))
        run.record("export", "export/written", sum(path.stat().st_size for path in draft.path.iterdir()), unit="bytes")
        parity = {**_prove(export, draft.path), "merge": merge_proof}  # reads the files back from the disk
        draft.notes |= {
            "precision": export.precision,
            "max_abs_logit_difference": parity["max_abs_logit_difference"],
        }
    assert draft.artifact is not None
    model = draft.artifact
    with run.store.create("Parity", run.stage_key, producer=export.producer()) as draft:
        proof.write(draft.path, parity)
    assert draft.artifact is not None
    run.record("export", "export/max_abs_logit_difference", parity["max_abs_logit_difference"])
    run.record("export", "export/parity_equal", parity["equal"], unit="answers")
    return {"export": model, "parity": draft.artifact}


def _merge(export: Export) -> tuple[nn.Module, dict[str, Any] | None]:
    """The plain model, and the proof of the merge (None: no adapter, or proven anyway by the files in fp32).

    The sum is made in fp32 and rounded once, to what is exported, wherever an fp32 model fits into memory.
    """
    dtype = "fp32" if export.fits_in_fp32() else export.trained_in
    trained = export.trained(dtype)
    if not export.has_adapter:
        return trained, None
    if proof.coarser(export.trained_in, export.precision) == "fp32":
        return merge_adapter(trained), None
    merge_proof = proof.MergeProof(trained, export.dataset, dtype)
    merged = merge_adapter(trained)
    return merged, merge_proof.compare(merged)


def _prove(export: Export, folder: Path) -> dict[str, Any]:
    """The files read back beside what was judged; after training on a quantised base also beside that."""
    spec = export.spec
    evaluated_in = export.evaluation["settings"]["precision"]
    asked = proof.load_asked(export.inputs["evaluation"], load_held_out(export.dataset, spec.evaluate.max_items))
    rendering = compare_rendering(export.tokenizer, folder, [question.item for question in asked])
    exported = export.load(folder, export.precision)
    parity = proof.prove(
        export.trained(export.trained_in),
        exported,
        export.dataset,
        export.tokenizer,
        asked,
        precision=proof.coarser(evaluated_in, export.trained_in, export.precision),
        max_new_tokens=spec.evaluate.max_new_tokens,
        batch_size=spec.evaluate.batch_size,
        check=export.leave_if_asked,
    )
    if spec.model.quantisation.type != "none":
        parity["quantised_base"] = _quantised_distance(export, exported, asked)
    return {**parity, "rendering": rendering}


def _quantised_distance(export: Export, exported: nn.Module, asked: list[proof.Asked]) -> dict[str, Any]:
    """The adapter was trained beside quantised weights and merged into unquantised ones: how much that changed."""
    spec, run = export.spec, export.run
    kind = spec.model.quantisation.type
    attention = resolve_attention(spec.model.attention, export.device, export.trained_in)
    base = load_model(
        export.files,
        dtype=export.trained_in,
        attention=attention,
        device=export.device,
        quantisation=spec.model.quantisation,
    )
    seen = load_adapter(base, export.inputs["model"].path)
    found = {
        "quantisation": kind,
        "what": f"the {kind} base with the adapter, as training saw it, beside the exported model",
        "merged_into": f"the unquantised base, never the {kind} one",
        **quantised.logit_distance(exported, seen, export.dataset),
        **quantised.answer_distance(seen, export.tokenizer, asked, spec.evaluate.max_new_tokens, export.leave_if_asked),
    }
    run.record("export", "export/merged_into", found["merged_into"])
    run.record("export", "export/kl_per_token", found["kl_per_token"], unit="nats")
    run.record("export", "export/answer_share", found["answer_share"], unit="share")
    return found


def _write_model(folder: Path, model: nn.Module, tokenizer: Tokenizer) -> None:
    """Weights, config, tokenizer with its template, generation settings that answer as evaluation did."""
    model.config.use_cache = True
    stop_ids = sorted(tokenizer.stop_ids)
    # Greedy, stopping where training stopped. The base's own settings are not taken over: a repetition penalty or a
    # temperature would make an answer that nobody has evaluated.
    model.generation_config = type(model.generation_config)(
        do_sample=False,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=stop_ids if len(stop_ids) > 1 else stop_ids[0] if stop_ids else None,
        pad_token_id=tokenizer.pad_id,
    )
    model.save_pretrained(folder)
    tokenizer.save(folder)


def _adapter(export: Export) -> Artifact:
    """The adapter with tokenizer and card, as PEFT loads it."""
    run, trained = export.run, export.inputs["model"].path
    key = fingerprint(["export", run.stage_key])
    with run.store.create("Adapter", key, producer=export.producer()) as draft:
        with tempfile.TemporaryDirectory() as scratch:
            export.tokenizer.save(Path(scratch))
            shutil.copytree(scratch, draft.path, dirs_exist_ok=True)
        for path in sorted(trained.glob("adapter_*")):
            shutil.copyfile(path, draft.path / path.name)
        (draft.path / "README.md").write_bytes(export.card("adapter").encode("utf-8", "backslashreplace"))
    assert draft.artifact is not None
    return draft.artifact
