"""The story of training: the cast, the model, where we left off; then steps, validations, checkpoints; then the result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from tunesmith import hub
from tunesmith.errors import DataError, FileError, ModelError, RecipeError
from tunesmith.hub import ModelFiles
from tunesmith.modeling.adapters import attach_lora, save_adapter
from tunesmith.modeling.compile import eagerly, graphs_compiled
from tunesmith.modeling.dropout import StepContext
from tunesmith.modeling.forward import micro_batches
from tunesmith.modeling.kernels import apply_liger, liger_model_types
from tunesmith.modeling.load import (
    DTYPES,
    load_model,
    pick_device,
    recompute_activations,
    resolve_attention,
    resolve_precision,
    still_dropout,
)
from tunesmith.modeling.packing import FLASH, choose_layout
from tunesmith.planner import learned
from tunesmith.planner.requirements import refuse_unmet
from tunesmith.planner.switches import kernels
from tunesmith.recipe import Lora, Recipe
from tunesmith.runs import durable
from tunesmith.runs.dataset import Dataset
from tunesmith.runs.patience import patiently
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact
from tunesmith.scoring.perplexity import Perplexity, stream_perplexity
from tunesmith.stages.train import INFO, noise
from tunesmith.stages.train.batches import Order, num_rounds, share
from tunesmith.stages.train.callbacks import Callbacks, Facts, Moment
from tunesmith.stages.train.checkpoint import Checkpoint, Checkpoints, TrainState
from tunesmith.stages.train.checks import check_switches
from tunesmith.stages.train.engines import LocalEngine, make_engine
from tunesmith.stages.train.guards import note_non_finite, note_validation, require_whole_model
from tunesmith.stages.train.loop import Loop, StepResult
from tunesmith.stages.train.memory import PeakMemory, freed_memory_returned
from tunesmith.stages.train.optimizer import make_optimizer
from tunesmith.stages.train.probe import fitting_micro_batch
from tunesmith.stages.train.speed import Compilation, compiled_layers, fastest_attention
from tunesmith.stages.train.utilisation import Utilisation, measured_peak
from tunesmith.stages.train.validation import Answers

DEFAULT_MICRO_BATCH = 8  # where no plan was made: a stage that is run alone
VALIDATIONS_PER_RUN = 10
WARM_UP_STEPS = 1


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Train on a Dataset. Returns {"model": Adapter (lora) or Model (full)}; goes on from the latest checkpoint.

    Works alone or as one of several processes that torchrun started; the result is returned by the first one only.
    """
    engine = make_engine(spec.train)
    run.is_writer = engine.rank == 0
    run.is_patient = True  # what training holds in memory is worth some minutes of waiting for a full disk
    try:
        return Training(spec, inputs, run, engine).story()
    finally:
        run.is_patient = False
        engine.close()


class Training:
    """One training on its way. `story` reads in order; the methods below it are its acts."""

    spec: Recipe
    run: Run
    engine: LocalEngine  # one process or one of several
    dataset: Dataset
    train_examples: np.ndarray  # int64, those with something to learn
    validation_examples: list[int]
    order: Order  # which examples each step sees
    checkpoints: Checkpoints
    state: TrainState  # all that a resume needs besides tensors
    callbacks: Callbacks  # your own code, in the first process
    answers: Answers  # what a validation measures besides the loss
    use: Utilisation  # of the machine
    loop: Loop  # the step
    step_seconds: list[float]  # of the steps of this process's life
    stopping: bool  # some process was asked to stop; all of them know at the same place
    compiled: Compilation | None  # what compiling the layers cost and gained, where they are
    cleanup: contextlib.ExitStack  # what is undone when training ends, however it ends

    def __init__(self, spec: Recipe, inputs: Mapping[str, Artifact], run: Run, engine: LocalEngine) -> None:
        self.spec, self.inputs, self.run, self.engine = spec, inputs, run, engine
        self.device = pick_device()
        self.threads = _pin_threads(spec.train.threads)
        dtype = DTYPES[resolve_precision(spec.model.precision, self.device)]
        self.peak_flops = measured_peak(self.device, dtype, self.threads) * engine.world_size
        self.memory = PeakMemory(self.device)
        self.dataset = Dataset(inputs["dataset"].path)
        self.train_examples = self._learnable("train")
        self.validation_examples = self._learnable("validation").tolist()
        self.order = Order.of(self.train_examples, spec.seed, spec.train)
        self.evaluate_every, self.save_every = _rhythm(spec, self.order.num_steps)
        self.checkpoints = Checkpoints(run, spec.train.keep_checkpoints)
        self.step_seconds = []
        self.compiled: Compilation | None = None
        self.stopping = False
        self.cleanup = contextlib.ExitStack()
        self.callbacks = Callbacks(spec.train.callbacks if engine.rank == 0 else (), run.allowed_code)
        self.failure: RecipeError | None = None  # of a callback, in the first process
        self.has_failed = False  # that, told to all of them

    def story(self) -> dict[str, Artifact]:
        resumed = self.checkpoints.latest()
        self.state = state = resumed.state if resumed else TrainState()
        self.files = hub.resolve(self.spec.model.base, self.spec.model.revision)
        refuse_unmet(self.spec, self.files.config, has_cuda=self.device.type == "cuda")
        self._choose()
        on_cpu = self.device.type == "cpu"
        check_switches(self.spec, on_cpu=on_cpu, recompute=bool(state.gradient_checkpointing), kernels=state.kernels)
        # Recomputation frees and makes every tensor again: it saves nothing where freed memory stays with the heap.
        with self.cleanup, freed_memory_returned(on_cpu and bool(state.gradient_checkpointing)):
            return self._train(resumed)

    def _train(self, resumed: Checkpoint | None) -> dict[str, Artifact]:
        state = self.state
        self._build()
        if resumed:
            self.engine.load_state(resumed.weights, resumed.optimizer)
            self.loop.plateau = state.plateau
            self.callbacks.load_state(state.callbacks)
            self.run.record("train", "train/resumed", state.step, unit="step")
            self._compare_threads()
        state.threads = self.threads
        self._fit_micro_batch()
        if self.spec.train.compile != "off":
            self.compiled = compiled_layers(self.loop, self.run)

        self.run.record("train", "train/steps", self.order.num_steps, unit="steps")
        saved_step = state.step
        while True:
            is_best = self._validation_due() and self._validate()
            if self._save_due(is_best) and state.step != saved_step:
                self._save()
                saved_step = state.step
            if self.has_failed:
                return self._give_up()
            if self.stopping:
                self.run.leave(f"after step {state.step} of {self.order.num_steps}")
            if state.stopped_by or state.step == self.order.num_steps:
                break
            result = self.loop.step(state.step + 1)
            self._tell(result)

        if state.stopped_by:
            self.run.record("train", "train/stopped_early", state.step, step=state.step, unit="step")
            self.run.record("train", "train/stopped_by", state.stopped_by)
        self.run.record("train", "train/peak_memory", self.memory.peak(), unit="bytes")
        if self.compiled:
            self.run.record("train", "train/recompilations", graphs_compiled() - self.compiled.graphs, unit="graphs")
        self._remember_pace()
        result_step = self._take_best()
        self.run.record("train", "train/result_step", result_step, unit="step")
        weights = self.engine.whole_parameters()  # asked by all processes, written by the first
        made = {}
        if self.engine.rank == 0:
            made = {"model": self._patiently_write(result_step, weights)}
        end = {"steps": state.step, "result_step": result_step}
        self._call_back("end", end, path=str(made["model"].path) if made else None)
        return self._give_up() if self.has_failed else made

    # -------------------------------------------------------------------------------------------------- before step 1

    def _learnable(self, split: str) -> np.ndarray:
        """Examples of a split that have a token to learn. Raises DataError TRN-005 when no training row has one."""
        examples = self.dataset.split(split)
        learnable = examples[self.dataset.learned_weights()[examples] > 0]
        if len(learnable) < len(examples):
            self.run.record("train", f"{split}/nothing_to_learn", len(examples) - len(learnable), unit="rows")
        if split == "train" and len(learnable) == 0:
            raise DataError(
                "TRN-005",
                f"{len(examples)} training rows, and no token of them is learned",
                where="data",
                expected="at least one row with an answer to learn",
                fix="tunesmith explain ROW --run latest says what became of a row",
            )
        if split == "validation" and len(learnable) == 0:
            self.run.record("train", "train/no_validation", "no validation rows: the last weights become the result")
        return learnable

    def _choose(self) -> None:
        """Number format, attention, kernels and recomputation: as the recipe and the plan say, or as the resumed run chose."""
        state, spec = self.state, self.spec
        state.precision = state.precision or resolve_precision(spec.model.precision, self.device)
        state.attention = state.attention or self._fastest_attention()
        state.kernels = state.kernels or kernels(spec, on_cpu=self.device.type == "cpu")[0]
        if state.gradient_checkpointing is None:
            asked = spec.train.gradient_checkpointing
            planned = bool(self._planned("gradient_checkpointing", False))
            state.gradient_checkpointing = planned if asked == "auto" else asked == "on"

    def _fastest_attention(self) -> str:
        """What the recipe names; auto: the fastest, as it was timed on this machine before or is timed now."""
        spec, precision = self.spec, self.state.precision
        asked = resolve_attention(spec.model.attention, self.device, precision)
        if spec.model.attention != "auto":
            return asked
        longest = int(self.dataset.lengths()[self.train_examples].max())
        picked, self.state.attention_ms = fastest_attention(
            spec, self.files.config, longest, self.device, precision, self.threads, self.run, self.engine
        )
        return picked

    def _planned(self, name: str, otherwise: Any) -> Any:
        return (self.run.plan or {}).get("choices", {}).get(name, otherwise)

    def _build(self) -> None:
        """Model, optimizer and loop. After this all tensors are as they are before step 1."""
        spec, state = self.spec, self.state
        context = StepContext(spec.seed)
        # What runs on a GPU only is looked at there before weights are cut into shards.
        on_gpu = state.attention in FLASH or state.kernels == "liger"
        device = self.device if on_gpu else self.engine.loads_on or self.device
        model = _model(spec, self.files, state, device, context, self.cleanup)
        state.attention = getattr(model.config, "_attn_implementation", None) or state.attention
        self._check_vocabulary(model)
        self._tell_quantised(model)
        longest = int(self.dataset.lengths().max())
        asked = "rows" if spec.train.packing == "off" else state.layout
        # A resume takes the way that was chosen at the start, proven anew: the libraries may have changed meanwhile.
        state.layout = asked if asked == "rows" else choose_layout(model, longest)
        self.answers = Answers(spec, self.files, self.dataset, self.run.allowed_code)
        if self.answers:
            require_whole_model(self.engine, "answers at validation")
        if spec.train.gradient_noise == "on":
            require_whole_model(self.engine, "train.gradient_noise: on")
        model = self.engine.wrap(
            model, lambda parameters: make_optimizer(parameters, spec.train), precision=state.precision
        )
        for note in self.engine.notes:
            self.run.record("train", "train/note", note)
        self.loop = Loop(
            spec.train,
            self.dataset,
            self.order,
            model.train(),
            self.engine,
            context,
            budget_tokens=0,
            layout=state.layout,
            is_stopping=lambda: self.run.stopping,
        )
        self.use = Utilisation(
            spec, self.files.config, self.loop.lengths, self.loop.learned_weights, peak_flops=self.peak_flops
        )
        self.run.record(
            "train",
            "train/peak_flops",
            round(self.peak_flops),
            unit="FLOP/s, matrix multiplication measured at the start",
        )

    def _check_vocabulary(self, model: nn.Module) -> None:
        """Before a GPU would answer with an assertion in the middle of an epoch."""
        rows, largest = model.get_input_embeddings().weight.shape[0], self.dataset.largest_id()
        if largest >= rows:
            raise ModelError(
                "TRN-007",
                f"the rows hold token id {largest}, and the model has {rows} embedding rows",
                where="model.base",
                expected="a tokenizer whose ids all have an embedding",
                fix="use the tokenizer that belongs to the model; tokens added to it need a model resized for them",
            )

    def _tell_quantised(self, model: nn.Module) -> None:
        if self.spec.model.quantisation.type != "none":
            from tunesmith.modeling import quantise  # bitsandbytes is an extra

            self.run.record("train", "train/quantised", quantise.facts(model))

    def _compare_threads(self) -> None:
        if self.state.threads != self.threads:
            what = (
                f"threads changed from {self.state.threads} to {self.threads}: last bits may differ from a straight run"
            )
            self.run.record("train", "train/threads_changed", what)

    def _fit_micro_batch(self) -> None:
        """How many of the longest rows go through the model at once; decided once per training."""
        train, state = self.spec.train, self.state
        most = -(-train.batch_size // self.engine.world_size)
        longest = int(self.dataset.lengths()[self.train_examples].max())
        if state.micro_batch is None and train.micro_batch != "auto":
            state.micro_batch = min(train.micro_batch, most)
        elif state.micro_batch is None:
            asked = min(int(self._planned("micro_batch", DEFAULT_MICRO_BATCH)), most)
            self.loop.budget_tokens = asked * longest
            state.micro_batch = fitting_micro_batch(self.loop, self.train_examples.tolist(), asked, self.run)
        self.loop.budget_tokens = state.micro_batch * longest

    # ------------------------------------------------------------------------------------------------ between two steps

    def _tell(self, result: StepResult) -> None:
        """Into the state and the events. Raises ModelError TRN-002 after several withheld updates in a row."""
        step, state = result.number, self.state
        self.step_seconds.append(result.seconds)
        state.step, state.tokens, self.stopping = step, state.tokens + result.tokens, result.stopping
        values = {
            "loss": (result.loss, "nats"),
            "learning_rate": (result.rate, ""),
            "grad_norm": (result.grad_norm, ""),
            "step_seconds": (round(result.seconds, 4), "s"),
            "tokens_per_second": (round(result.tokens / result.seconds, 1), "tokens/s"),
            "memory": (self.memory.now(), "bytes"),
            "memory_peak": (self.memory.peak(), "bytes"),
        }
        utilisation = self.use.of(result.examples, result.seconds)
        if utilisation is not None:
            values["mfu"] = (round(utilisation, 4), "share of train/peak_flops")
        if result.noise and result.finite:
            state.noise = noise.note(state.noise, result.noise)
            scale = noise.scale(state.noise)
            if scale is not None:
                values["gradient_noise_scale"] = (round(scale, 3), "examples")
        self.run.record_step("train", step, {f"train/{name}": told for name, told in values.items()})
        if not result.finite:
            rows = [self.dataset.row(example) for example in result.examples]
            self.run.record("train", "train/nonfinite", rows, step=step, unit="rows")
            note_non_finite(state, step, rows)
        self._call_back("step", {"tokens": result.tokens, **{name: value for name, (value, _) in values.items()}})

    def _call_back(
        self, moment: Moment, values: Mapping[str, float], *, is_best: bool = False, path: str | None = None
    ) -> None:
        """Your own code, in the first process. What it answers, or that it fails, holds for all of them."""
        if not self.spec.train.callbacks:
            return
        asks = ""
        try:
            asks = self.callbacks.tell(Facts(moment, self.state.step, self.order.num_steps, values, is_best, path))
        except RecipeError as error:
            self.failure = error
        stops, fails = self.engine.total(float(bool(asks)), float(self.failure is not None))
        self.has_failed = fails > 0
        if stops:
            self.state.stopped_by = asks or "train.callbacks"

    def _give_up(self) -> dict[str, Artifact]:
        """After a callback failed and everything is saved: the first process says it, the others leave in good order."""
        if self.failure:
            raise self.failure
        return {}

    def _validation_due(self) -> bool:
        """Asked again after a resume, so that a validation that a stop cut short is made up for."""
        step = self.state.step
        at_rhythm = step % self.evaluate_every == 0 or step == self.order.num_steps or bool(self.state.stopped_by)
        wanted = at_rhythm and not self.has_failed
        return bool(self.validation_examples) and 0 < step != self.state.validated_step and wanted

    def _validate(self) -> bool:
        """True when these weights are the best so far. A stop asked for meanwhile leaves at once, unvalidated."""
        state, train, started = self.state, self.spec.train, time.perf_counter()
        # Compiled layers are for training passes: those of a validation have shapes and modes of their own.
        eager = eagerly() if train.compile != "off" else contextlib.nullcontext()
        try:
            with eager:
                loss = self._validation_loss()
                scores = self.answers.scores(
                    self.loop.model, self.engine, self.loop.number_format, on_batch=self._leave_validation
                )
        except _StopAsked:
            self.stopping = True
            return False
        self.run.record(
            "train", "validation/seconds", round(time.perf_counter() - started, 4), step=state.step, unit="s"
        )
        self.run.record("train", "validation/loss", loss.loss, step=state.step, unit="nats")
        self.run.record("train", "validation/perplexity", loss.value, step=state.step)
        for name, value in scores.items():
            self.run.record("train", f"validation/{self.answers.metrics[name].name}", value, step=state.step)
        if self.run.stopping and self.engine.world_size == 1:  # of several processes none may leave alone
            self.stopping = True
        found = {"loss": loss.loss, "perplexity": loss.value, **scores}
        is_best = note_validation(state, found, train)
        self.loop.plateau = state.plateau
        if is_best:
            self.run.record("train", "train/best", state.best_value, step=state.step, unit=train.best_metric)
        self._call_back("validation", found, is_best=is_best)
        return is_best

    def _leave_validation(self) -> None:
        """Of several processes none may leave while the others wait for its sum."""
        if self.run.stopping and self.engine.world_size == 1:
            raise _StopAsked

    def _validation_loss(self) -> Perplexity:
        """Over all validation rows, divided over the processes; the same for every micro-batch."""
        engine = self.engine
        loop, budget = self.loop, self.loop.budget_tokens
        layout = loop.layout
        mine = share(self.validation_examples, loop.lengths, engine.rank, engine.world_size)
        with loop.number_format():
            part = stream_perplexity(
                loop.model, self.dataset, mine, batch_tokens=budget, layout=layout, on_batch=self._leave_validation
            )
            if engine.in_step:  # as many passes as the process with the most of them makes
                rounds = num_rounds(self.validation_examples, loop.lengths, budget, layout, engine.world_size)
                for _ in range(rounds - len(micro_batches(mine, loop.lengths, budget, layout))):
                    stream_perplexity(loop.model, self.dataset, [loop.shortest], layout=layout)
        return Perplexity(*engine.total(part.nll_sum, part.weight))

    def _save_due(self, is_best: bool) -> bool:
        state = self.state
        wanted = is_best and self.spec.train.keep == "best"
        ends = self.stopping or self.has_failed or state.stopped_by or state.step == self.order.num_steps
        if self.run.is_given_up:  # by a search: nobody goes on from here
            return False
        return bool(wanted or ends) or state.step % self.save_every == 0

    def _save(self) -> None:
        weights, optimizer = self.engine.whole_parameters(), self.engine.gather_state()
        saved = None
        if self.engine.rank == 0:
            self.state.callbacks = self.callbacks.state()
            saved = self.checkpoints.save(self.state, weights, optimizer)
        self.engine.total(0.0)  # nobody goes on before the checkpoint is true
        self._call_back("save", {}, path=str(saved.path) if saved else None)

    # ------------------------------------------------------------------------------------------------------ the result

    def _remember_pace(self) -> None:
        """For the next plan on this machine: measured over planned seconds of a step. The first step warms up."""
        plan = self.run.plan or {}
        planned, pace = plan.get("figures", {}).get("step_seconds"), plan.get("pace")
        if self.engine.rank == 0 and planned and pace and len(self.step_seconds) > WARM_UP_STEPS:
            measured = statistics.median(self.step_seconds[WARM_UP_STEPS:])
            told = measured * pace["factor"] / planned["value"]
            patiently(self.run, lambda: learned.remember(self.run.workspace, pace["machine"], told), needed=0)

    def _take_best(self) -> int:
        """Put the weights that become the result in place; returns their step."""
        best_step, step = self.state.best_step, self.state.step
        if self.spec.train.keep == "last" or best_step is None or best_step == step:
            return step
        best = self.checkpoints.load(best_step)
        if best is None:
            raise FileError(
                "TRN-004",
                f"the best checkpoint (step {best_step}) is gone or damaged",
                where="train.keep",
                expected=f"the weights with the best validation {self.spec.train.best_metric}",
                fix=f"train.keep: last takes the last ones; or remove {self.checkpoints.folder} and train again",
            )
        self.engine.load_state(best.weights, None)
        return best_step

    def _patiently_write(self, result_step: int, weights: dict[str, torch.Tensor]) -> Artifact:
        needed = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        return patiently(self.run, lambda: self._write_result(result_step, weights), needed=needed)

    def _write_result(self, result_step: int, weights: dict[str, torch.Tensor]) -> Artifact:
        spec, state, model = self.spec, self.state, self.loop.model
        producer = {
            "stage": INFO.name,
            "version": INFO.version,
            "recipe": spec.slice(INFO.keys),
            "inputs": {name: artifact.id for name, artifact in self.inputs.items()},
            "base": self.files.fingerprint,
        }
        notes = {
            "steps": state.step,
            "planned_steps": self.order.num_steps,
            "result_step": result_step,
            "best_step": state.best_step,
            "best_metric": spec.train.best_metric,
            "best_value": state.best_value,
            "best_loss": state.best_loss,
            "validations": state.validations,
            "tokens": state.tokens,
            "skipped": state.skipped,
            "stopped_early": bool(state.stopped_by),
            "stopped_by": state.stopped_by,
            "micro_batch": state.micro_batch,
            "gradient_checkpointing": state.gradient_checkpointing,
            "precision": state.precision,
            "quantisation": spec.model.quantisation.type,
            "attention": state.attention,
            "kernels": state.kernels,
            "attention_ms": state.attention_ms,
            "compile": {"seconds": self.compiled.seconds, "gain": self.compiled.gain} if self.compiled else None,
            "layout": state.layout,
            "threads": state.threads,
            "processes": self.engine.world_size,
            "engine": self.engine.name,
        }
        kind = "Adapter" if isinstance(spec.adapter, Lora) else "Model"
        with self.run.store.create(kind, self.run.stage_key, producer=producer, notes=notes) as draft:
            if kind == "Adapter":
                save_adapter(model, draft.path, weights)
            else:
                model.config.use_cache = True
                model.save_pretrained(draft.path, state_dict={**_buffers(model), **weights})
                _tell_number_format(draft.path, weights)
                _copy_tokenizer(self.files.path, draft.path)
        assert draft.artifact is not None
        return draft.artifact


class _StopAsked(Exception):
    """A stop was asked for in the middle of a validation."""


def _pin_threads(asked: int | str) -> int:
    """Bits depend on the number of threads, so it is fixed and recorded. auto: physical cores over processes here."""
    if asked == "auto":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(psutil.cpu_count(logical=False) or usable, usable)
        asked = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(int(asked))
    return int(asked)


def _rhythm(spec: Recipe, num_steps: int) -> tuple[int, int]:
    """Steps between validations and between saves."""
    train = spec.train
    evaluate_every = (
        max(1, num_steps // VALIDATIONS_PER_RUN) if train.evaluate_every == "auto" else train.evaluate_every
    )
    return evaluate_every, evaluate_every if train.save_every == "auto" else train.save_every


def _model(
    spec: Recipe,
    files: ModelFiles,
    state: TrainState,
    device: torch.device,
    context: StepContext,
    cleanup: contextlib.ExitStack | None = None,
) -> nn.Module:
    """cleanup: gets what is to be undone when training ends."""
    # Full fine-tuning below fp32 keeps fp32 weights and computes in the lower format; frozen weights need no such copy.
    dtype = state.precision if isinstance(spec.adapter, Lora) else "fp32"
    model = load_model(
        files, dtype=dtype, attention=state.attention, device=device, quantisation=spec.model.quantisation
    )
    model.config.use_cache = False
    still_dropout(model)
    if state.kernels == "liger" and (spec.train.kernels == "liger" or model.config.model_type in liger_model_types()):
        restore = apply_liger(model)
        if cleanup is not None:
            cleanup.callback(restore)
    else:
        state.kernels = "torch"
    if state.gradient_checkpointing:
        recompute_activations(model)
    if isinstance(spec.adapter, Lora):
        return attach_lora(model, spec.adapter, spec.seed, context, base_name=spec.model.base)
    return model.requires_grad_(True)


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a saved model holds besides its weights, by full names."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer.detach().cpu()
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def _tell_number_format(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """config.json names the format of the weights beside it, which may be finer than the one they were used in."""
    config = json.loads((folder / "config.json").read_bytes())
    told, format = config.get("dtype"), str(next(iter(weights.values())).dtype).removeprefix("torch.")
    if told != format:
        durable.write_json(folder / "config.json", {**config, "dtype": format})


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Settings, tokenizer and templates of the base; neither its weights nor code, nor what save_pretrained wrote already."""
    for path in sorted(source.iterdir()):
        is_wanted = hub.is_carried(path.name) and not path.name.endswith(".index.json")
        if path.is_file() and is_wanted and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
