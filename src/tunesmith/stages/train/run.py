"""The story of training: model, adapter, order, resume; then steps, validations, checkpoints; then the result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import hub
from tunesmith.errors import DataError
from tunesmith.modeling.adapters import ADAPTER, attach_lora, save_adapter
from tunesmith.modeling.dropout import StepContext
from tunesmith.modeling.load import DTYPES, load_model, pick_device, resolve_attention, resolve_precision
from tunesmith.recipe import Lora, Recipe
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact
from tunesmith.scoring.perplexity import stream_perplexity
from tunesmith.stages.train.batches import Order
from tunesmith.stages.train.checkpoint import Checkpoints, TrainState
from tunesmith.stages.train.engines import LocalEngine, ReplicaEngine
from tunesmith.stages.train.guards import note_non_finite, note_validation
from tunesmith.stages.train.loop import Loop, StepResult
from tunesmith.stages.train.memory import PeakMemory
from tunesmith.stages.train.optimizer import make_optimizer
from tunesmith.stages.train.probe import fitting_micro_batch

DEFAULT_MICRO_BATCH = 8  # where no plan was made: a stage that is run alone


def externals(spec: Recipe, run: Run) -> dict[str, Any]:
    """What training depends on besides the recipe and the Dataset: the base model's files."""
    return {"base": hub.resolve(spec.model.base, spec.model.revision).fingerprint}


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Train on a Dataset. Returns {"model": Adapter (lora) or Model (full)}; goes on from the latest checkpoint."""
    # --- the cast
    engine = _engine(spec)
    device = pick_device()
    run.is_writer = engine.rank == 0
    memory = PeakMemory(device)
    threads = _pin_threads(spec)
    dataset = Dataset(inputs["dataset"].path)
    train_examples = dataset.split("train")
    validation_examples = dataset.split("validation").tolist()
    _refuse_empty(dataset, train_examples)
    order = Order.of(train_examples, spec.seed, spec.train)

    # --- the model, as the plan (or the run that is resumed) chose it
    checkpoints = Checkpoints(run, spec.train.keep_checkpoints)
    resumed = checkpoints.latest()
    state = resumed.state if resumed else TrainState()
    choices = (run.plan or {}).get("choices", {})
    state.precision = state.precision or resolve_precision(spec.model.precision, device)
    state.attention = state.attention or resolve_attention(spec.model.attention, device)
    if state.gradient_checkpointing is None:
        asked = spec.train.gradient_checkpointing
        state.gradient_checkpointing = (
            choices.get("gradient_checkpointing", False) if asked == "auto" else asked == "on"
        )
    context = StepContext(spec.seed)
    model = _model(spec, state, device, context)
    scale_loss = state.precision == "fp16"
    engine = _engine(spec, scale_loss) if scale_loss else engine
    model = engine.wrap(model, lambda parameters: make_optimizer(parameters, spec.train))
    if resumed:
        engine.load_state(resumed.weights, resumed.optimizer)
        run.record("train", "train/resumed", state.step, unit="step")
        if state.threads != threads:
            run.record("train", "train/threads_changed", [state.threads, threads], unit="threads")
    state.threads = threads
    if state.micro_batch is None:
        state.micro_batch = _micro_batch(spec, model, dataset, train_examples.tolist(), choices, run)

    # --- the steps
    autocast = DTYPES[state.precision] if state.precision != "fp32" else None
    budget_tokens = state.micro_batch * int(dataset.lengths()[train_examples].max())
    loop = Loop(spec, dataset, order, model, engine, context, budget_tokens, autocast)
    evaluate_every, save_every = _rhythm(spec, order.num_steps)
    run.record("train", "train/steps", order.num_steps, unit="steps")
    model.train()
    if not state.stopped_early:
        for result in loop.steps(state.step + 1):
            state.step, state.tokens = result.step, state.tokens + round(engine.total(result.tokens))
            _tell(run, result, state, dataset, engine)
            last = result.step == order.num_steps
            is_best = False
            if validation_examples and (result.step % evaluate_every == 0 or last):
                is_best = _validate(spec, run, model, dataset, validation_examples, state, autocast)
            stopping = engine.total(float(run.stopping)) > 0
            if is_best or last or stopping or state.stopped_early or result.step % save_every == 0:
                _save(checkpoints, engine, state)
            if stopping:
                engine.close()
                run.leave(f"after step {state.step} of {order.num_steps}")
            if state.stopped_early:
                run.record("train", "train/stopped_early", state.step, step=state.step, unit="step")
                break

    # --- the result
    run.record("train", "train/peak_memory", memory.peak(), unit="bytes")
    if spec.train.keep == "best" and state.best_step not in (None, state.step):
        best = checkpoints.load(state.best_step)
        if best is None:
            raise DataError(
                "TRN-004",
                f"the best checkpoint (step {state.best_step}) is gone or damaged",
                where="train.keep",
                expected="the weights with the lowest validation loss",
                fix="train.keep: last takes the last ones; or remove the checkpoints and train again",
            )
        engine.load_state(best.weights, None)
    run.record(
        "train",
        "train/result_step",
        state.best_step if spec.train.keep == "best" and state.best_step else state.step,
        unit="step",
    )
    artifact = _result(spec, inputs, run, model, state) if engine.rank == 0 else None
    engine.close()
    return {"model": artifact} if artifact else {}


# ---------------------------------------------------------------------------------------------------- before step 1


def _engine(spec: Recipe, scale_loss: bool = False) -> LocalEngine:
    replicas = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return (ReplicaEngine if replicas else LocalEngine)(spec.train.max_grad_norm, scale_loss)


def _pin_threads(spec: Recipe) -> int:
    """Bits depend on the number of threads, so it is fixed and recorded."""
    threads = spec.train.threads
    if threads == "auto":
        threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def _refuse_empty(dataset: Dataset, examples: Any) -> None:
    if len(examples) == 0 or dataset.learned_weights()[examples].sum() == 0:
        raise DataError(
            "TRN-005",
            f"{len(examples)} training rows, and no token of them is learned",
            where="data",
            expected="at least one row with an answer to learn",
            fix="tunesmith explain ROW --run latest says what became of a row",
        )


def _model(spec: Recipe, state: TrainState, device: torch.device, context: StepContext) -> nn.Module:
    files = hub.resolve(spec.model.base, spec.model.revision)
    # Full fine-tuning below fp32 keeps fp32 weights and computes in the lower format; frozen weights need no such copy.
    dtype = state.precision if isinstance(spec.adapter, Lora) else "fp32"
    model = load_model(files, dtype=dtype, attention=state.attention, device=device)
    model.config.use_cache = False
    if state.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if isinstance(spec.adapter, Lora):
        model = attach_lora(model, spec.adapter, spec.seed, context)
        model.peft_config[ADAPTER].base_model_name_or_path = spec.model.base
    else:
        model.requires_grad_(True)
    return model


def _micro_batch(
    spec: Recipe, model: nn.Module, dataset: Dataset, examples: list[int], choices: dict[str, Any], run: Run
) -> int:
    if spec.train.micro_batch != "auto":
        return min(spec.train.micro_batch, spec.train.batch_size)
    asked = min(int(choices.get("micro_batch", DEFAULT_MICRO_BATCH)), spec.train.batch_size)
    return fitting_micro_batch(model, dataset, examples, asked, run)


def _rhythm(spec: Recipe, num_steps: int) -> tuple[int, int]:
    """Steps between validations and between saves."""
    every = spec.train.evaluate_every
    evaluate_every = max(1, num_steps // 10) if every == "auto" else every
    return evaluate_every, evaluate_every if spec.train.save_every == "auto" else spec.train.save_every


# ------------------------------------------------------------------------------------------------- between two steps


def _tell(run: Run, result: StepResult, state: TrainState, dataset: Dataset, engine: LocalEngine) -> None:
    step = result.step
    run.record("train", "train/loss", result.loss, step=step, unit="nats")
    run.record("train", "train/learning_rate", result.rate, step=step)
    run.record("train", "train/grad_norm", result.grad_norm, step=step)
    run.record("train", "train/step_seconds", round(result.seconds, 4), step=step, unit="s")
    run.record(
        "train",
        "train/tokens_per_second",
        round(result.tokens * engine.world_size / result.seconds, 1),
        step=step,
        unit="tokens/s",
    )
    if not result.finite:
        rows = [dataset.row(example) for example in result.examples]
        run.record("train", "train/nonfinite", rows, step=step, unit="rows")
        note_non_finite(state, step, rows)


def _validate(
    spec: Recipe,
    run: Run,
    model: nn.Module,
    dataset: Dataset,
    examples: list[int],
    state: TrainState,
    autocast: torch.dtype | None,
) -> bool:
    device = next(model.parameters()).device
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        found = stream_perplexity(model, dataset, examples)
    run.record("train", "validation/loss", found.loss, step=state.step, unit="nats")
    run.record("train", "validation/perplexity", found.value, step=state.step)
    return note_validation(state, found.loss, spec.train.early_stopping)


def _save(checkpoints: Checkpoints, engine: LocalEngine, state: TrainState) -> None:
    weights, optimizer = engine.whole_parameters(), engine.gather_state()
    if engine.rank == 0:
        checkpoints.save(state, weights, optimizer)
    engine.total(0.0)  # nobody goes on before the checkpoint is true


# ------------------------------------------------------------------------------------------------------- the result


def _result(spec: Recipe, inputs: Mapping[str, Artifact], run: Run, model: nn.Module, state: TrainState) -> Artifact:
    is_lora = isinstance(spec.adapter, Lora)
    producer = {
        "stage": "train",
        "recipe": spec.slice(("seed", "model", "adapter", "train")),
        "inputs": {name: artifact.id for name, artifact in inputs.items()},
    }
    notes = {
        "steps": state.step,
        "best_step": state.best_step,
        "best_loss": state.best_loss,
        "tokens": state.tokens,
        "skipped": state.skipped,
        "micro_batch": state.micro_batch,
        "gradient_checkpointing": state.gradient_checkpointing,
        "precision": state.precision,
        "attention": state.attention,
        "threads": state.threads,
        "stopped_early": state.stopped_early,
    }
    with run.store.create("Adapter" if is_lora else "Model", run.stage_key, producer=producer, notes=notes) as draft:
        if is_lora:
            save_adapter(model, draft.path)
        else:
            model.config.use_cache = True
            model.save_pretrained(draft.path)
            _copy_tokenizer(hub.resolve(spec.model.base, spec.model.revision).path, draft.path)
    assert draft.artifact is not None
    return draft.artifact


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Everything of the base but its weights and what save_pretrained wrote already."""
    for path in sorted(source.iterdir()):
        is_weight = path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json")
        if path.is_file() and not is_weight and not (target / path.name).exists() and path.name != "README.md":
            shutil.copyfile(path, target / path.name)
