"""No key without a reader: for each recipe key its other value changes something that can be seen.

A new key needs one line in EFFECTS: an observer that calls the code which reads the key, at its own place, and tells what
came of it. `other` of the tree is the value tried; the line may name another one, and settings without which the key says
nothing. A key that changes nothing fails, and so does a key without a line.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from hub_server import HubServer, connect
from small_training import WORSENING, small_training

from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.recipe.keys import all_keys, variants_of
from tunesmith.recipe.tree import Section
from tunesmith.runner.fingerprints import _without_folders
from tunesmith.runner.stages import STAGES, load_stages

RECIPE = "name: effects\ndata: {sources: [rows.jsonl, {path: test.jsonl, split: test}]}\n"


# ------------------------------------------------------------------------------------------------------- the observers


class Bench:
    """A folder with rows, a tiny model and what observers share; each of them gets a recipe and the overrides it came from."""

    def __init__(self, folder: Path, tiny: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.tiny, self.patch = folder, tiny, patch
        self.known: dict[Any, Any] = {}
        _write_rows(folder)

    def recipe(self, overrides: tuple[str, ...]) -> Recipe:
        return parse_recipe(RECIPE, overrides, folder=self.folder)

    def see(self, observer: Observer, overrides: tuple[str, ...]) -> Any:
        """What is observed, each recipe once."""
        asked = (observer.__name__, overrides)
        if asked not in self.known:
            self.known[asked] = observer(self, overrides)
        return self.known[asked]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]


Observer = Callable[[Bench, tuple[str, ...]], Any]


def run_folder(bench: Bench, overrides: tuple[str, ...]) -> str:
    from tunesmith.runs.run import folder_of

    return folder_of(bench.folder, bench.recipe(overrides)).name.rsplit("-", 1)[0]


def plan(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """Figures and choices on a machine of eight cores."""
    from tunesmith import hub, planner
    from tunesmith.planner.hardware import Hardware

    spec = bench.recipe(overrides)
    split = {"rows": 1000, "tokens": 100_000, "learned_tokens": 40_000, "p50": 100, "p90": 150, "p99": 200, "max": 256}
    statistics = {"splits": {name: split for name in ("train", "validation", "test")}}
    machine = Hardware(8, 64 * 2**30, 64 * 2**30)
    return planner.plan(
        spec, hub.resolve_config(spec.model.base).config, statistics=statistics, hardware=machine
    ).to_json()


def base_model(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The configuration that is planned with, and the commit a Run is pinned to; of the hub there are two branches."""
    from tunesmith import hub
    from tunesmith.runner import base_model as reader
    from tunesmith.runs.run import Run

    spec = bench.recipe(overrides)
    files = {"config.json": b'{"model_type": "llama", "hidden_size": 7}', "model.safetensors": b"1"}
    with HubServer() as server:
        server.publish("acme/tiny", files)
        server.publish("acme/tiny", {**files, "README.md": b"newer"}, branch="newer")
        with bench.patch.context() as patch:
            connect(patch, server.url, bench.folder)
            pinned = reader.pin(Run.open_or_create(bench.folder / "pins", spec))
            return hub.resolve_config(pinned.model.base, pinned.model.revision).config, pinned.model.revision


def workers(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """Where parts are made: so many processes, or a cluster."""
    from tunesmith.stages.prepare.spread import compute_of

    return compute_of(bench.recipe(overrides))


def ledger(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """What preparation makes of the rows: of each its source, format, split, fate, tokens and learned tokens."""
    from tunesmith.errors import TunesmithError
    from tunesmith.runs.dataset import Dataset
    from tunesmith.runs.run import Run
    from tunesmith.stages.prepare.run import run as prepare

    spec = bench.recipe(overrides)
    work = bench.folder / "ledgers"
    run = Run.open_or_create(work, spec)
    run.stage_key = spec.hash()[:20]
    try:
        made = prepare(spec, {}, run)
    except TunesmithError as refusal:
        return refusal.code
    told = []
    for entry in Dataset(made["dataset"].path).ledger():
        names = ("source", "file", "position", "split", "status", "rule", "tokens", "learned", "copies")
        told.append([entry[name] for name in names])
    return told, made["rows"].notes["formats"]


def fetched_ledger(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The same of rows that are fetched first, with a cache of the test's own."""
    with bench.patch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(bench.folder / "cache"))
        return ledger(bench, overrides)


def cleaned(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """What cleaning makes of a part of rows in which every rule has something to find."""
    import numpy as np
    from row_parts import keys_of, part_of, row
    from tiny_tagger import make_tagger

    from tunesmith.errors import TunesmithError
    from tunesmith.stages.prepare.cleaning.judge import judge
    from tunesmith.stages.prepare.cleaning.scores import judge_scores

    tagger = bench.once("tagger", lambda: make_tagger(bench.folder / "tagger"))
    spec = bench.recipe(tuple(text.replace("TAGGER", str(tagger)) for text in overrides))
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"
    pem = f"-----BEGIN PRIVATE KEY-----\n{'MIIEowIBAAKCAQEA' * 4}\n-----END PRIVATE KEY-----"
    found = ("a@acme.io", "+49 30 12345678", "DE89370400440532013000", "4111111111111111", "8.8.8.8", "12345678Z",
             "AKIA" + "Q2WERTY7UIOPASD3", token, pem, "anna of oslo", "beep \x07", "ha " * 9, "one\ntwo\n" * 9, "=" * 150)  # fmt: skip
    rows = [row("Please tell me what you know about this matter.", f"Here it is: {text}") for text in found]
    asked = "Where is my order, which I placed a while ago?"
    rows += [
        *(
            row(asked, "It is on its way.", meta={name: value})
            for name in ("quality_score", "score")
            for value in (0.1, 0.6, 0.85)
        ),
        row(asked, "I'm sorry, but I cannot say; as an AI language model I know nothing of it."),
        row("Gone?", "Yes."),
        row("Wo ist meine Bestellung von letzter Woche?", "Sie ist unterwegs und wird am Freitag bei Ihnen sein."),
        row("Where is it? ", "It is on its way. " * 40),
    ]
    try:
        judged = judge(part_of(rows), spec, keys_of)
    except TunesmithError as error:
        return error.code
    told: list[Any] = [judged.verdicts.to_pylist(), judged.flags.to_pylist(), judged.part.column("turns").to_pylist()]
    if "quality" in judged.measured.column_names:
        scores = judged.measured.column("quality").to_numpy()
        told.append(judge_scores(np.arange(len(rows)), scores, np.ones(len(rows), bool), spec.data.quality).to_pylist())
    return told


def question(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """Whether a default filter that takes a third of the rows asks."""
    from tunesmith.stages.prepare.cleaning.question import questions

    counts = {"length": {"seen": 30, "dropped": 10, "first": [[0, 3.0]]}}
    return [error.code for error in questions(bench.recipe(overrides), counts, str)]


def order(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The examples of all steps of a training on forty."""
    from tunesmith.stages.train.batches import Order

    spec = bench.recipe(overrides)
    found = Order.of(list(range(40)), spec.seed, spec.train)  # type: ignore[arg-type]
    return [found.step(number) for number in range(1, found.num_steps + 1)]


def optimizer(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The kind of update rule, and the settings of its groups."""
    import torch

    from tunesmith.stages.train.optimizer import make_optimizer

    named = [("weight", torch.nn.Parameter(torch.ones(2, 2))), ("bias", torch.nn.Parameter(torch.ones(2)))]
    made = make_optimizer(named, bench.recipe(overrides).train)
    groups = [{name: value for name, value in group.items() if name != "params"} for group in made.param_groups]
    return type(made).__name__, groups


def rates(bench: Bench, overrides: tuple[str, ...]) -> list[float]:
    from tunesmith.stages.train.schedule import rate_factor

    return [rate_factor(bench.recipe(overrides).train.schedule, step, 20) for step in range(1, 21)]


def held_base(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """How the linear layers of the base lie in memory."""
    import torch

    from tunesmith.modeling import quantise
    from tunesmith.modeling.load import load_model

    kind = bench.recipe(overrides).model.quantisation
    model = load_model(bench.tiny, device=torch.device("cpu"), quantisation=kind)
    return quantise.facts(model) if kind.type != "none" else "unquantised"


def trained_parts(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The model as training gets it: what is trained, in which shape; the adapter's scale and dropout."""
    import torch
    from peft.tuners.lora import LoraLayer

    from tunesmith import hub
    from tunesmith.modeling.dropout import StepContext
    from tunesmith.stages.train.checkpoint import TrainState
    from tunesmith.stages.train.run import _model

    spec = bench.recipe((f"model.base={bench.tiny}", *overrides))
    state = TrainState(precision="fp32", attention="sdpa", gradient_checkpointing=False)
    files = hub.resolve(spec.model.base)
    model = _model(spec, files, state, torch.device("cpu"), StepContext(spec.seed))
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return (
        {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad},
        {(layer.scaling["default"], getattr(layer.lora_dropout["default"], "p", 0.0)) for layer in layers},
    )


def training(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """A small real training: its events by step, what was chosen, which checkpoints are left."""
    workspace = bench.folder / "trainings" / str(len(bench.known))
    small = small_training(workspace, bench.tiny, ("train.max_steps=4", *overrides))
    result = small.train()
    names = ("train/loss", "validation/loss", "train/learning_rate", "checkpoint/saved", "train/result_step")
    # Times differ from run to run.
    chosen = {name: value for name, value in result.notes.items() if name not in ("threads", "tokens", "attention_ms")}
    left = sorted(path.name for path in (workspace / "artifacts" / "checkpoint").rglob("step-*"))
    layouts = [event.value for event in small.run.events() if event.name == "train/layout"]
    return {name: small.values(name) for name in names}, chosen, left, layouts


def compiled(bench: Bench, overrides: tuple[str, ...]) -> list[str]:
    """Whether a training compiles its layers; nothing is really compiled."""
    from tunesmith.stages.train import run as stage
    from tunesmith.stages.train.speed import Compilation

    told: list[str] = []
    with bench.patch.context() as patch:
        patch.setattr(stage, "compiled_layers", lambda loop, run: told.append("compiled") or Compilation(0.0, 1.0, 0))
        settings = ("train.max_steps=1", *overrides)
        small_training(bench.folder / "compiled" / str(len(bench.known)), bench.tiny, settings).train()
    return told


def whose_kernels(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """On a GPU, where liger_kernel is installed."""
    from tunesmith.planner import switches

    with bench.patch.context() as patch:
        patch.setattr(switches, "find_spec", lambda name: name)
        return switches.kernels(bench.recipe(overrides), on_cpu=False)[0]


def decoding(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The kind of cache that generation is asked for by the evaluation."""
    from tunesmith.stages.evaluate import answers

    asked: list[str] = []
    generate = answers.generate_greedy

    def note(*told: Any, **named: Any) -> Any:
        asked.append(named["cache"])
        return generate(*told, **named)

    with bench.patch.context() as patch:
        patch.setattr(answers, "generate_greedy", note)
        return evaluation(bench, overrides), asked


def engine(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The engine of one process, whether its layers stay whole after a forward pass, or the refusal."""
    import torch

    from tunesmith.errors import RecipeError
    from tunesmith.modeling.load import load_model
    from tunesmith.stages.train.engines import make_engine
    from tunesmith.stages.train.engines.fsdp import decoder_layers

    try:
        made = make_engine(bench.recipe(overrides).train)
    except RecipeError as error:
        return str(error)
    if made.name != "fsdp":
        return made.name
    model = load_model(bench.tiny, device=torch.device("cpu"))
    layers = decoder_layers(model)
    made.wrap(model, lambda parameters: torch.optim.SGD([p for _, p in parameters], lr=0.1))
    model(input_ids=torch.ones(1, 4, dtype=torch.int64), use_cache=False)
    whole = {type(parameter.data).__name__ for layer in layers for parameter in layer.parameters()}
    made.close()
    return made.name, whole


def deepspeed_is_told(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """DeepSpeed's configuration on a machine with GPUs."""
    from tunesmith.stages.train.engines.deepspeed_config import Facts, engine_config, read_config

    (bench.folder / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    known = Facts(bench.recipe(overrides).train, "bf16", world_size=2, hidden_size=64)
    return engine_config(read_config(known.engine), known)


def worsening(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """As `training`, one whose validation improves for a few steps and worsens afterwards."""
    return training(bench, (*WORSENING, "train.evaluate_every=1", *overrides))


def launched(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """Where the runner lets training work: here, or in so many processes."""
    from tunesmith import launch

    runner = importlib.import_module("tunesmith.runner.execute")  # the package shows its function of that name
    told: list[Any] = []
    with bench.patch.context() as patch:
        patch.setattr(launch, "train", lambda spec, run, inputs, processes, **more: told.append(processes) or {})
        info = load_stages(STAGES, "train")[-1].info
        stage = SimpleNamespace(info=info, package="", run=lambda spec, inputs, run: told.append("here") or {})
        runner._work(stage, bench.recipe(overrides), {}, None)  # type: ignore[arg-type]
    return told


def evaluation(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The real stage on a tiny model: scores, how many answers came at a time, how long they are."""
    from tunesmith.stages.evaluate.run import run as evaluate

    finished = bench.once("pipeline", lambda: _pipeline(bench))
    spec = bench.recipe((*QUICK, f"model.base={bench.tiny}", *overrides))
    run = _fresh_run(bench, spec, finished.workspace)
    inputs = {**finished.outputs("prepare"), **finished.outputs("train")}
    run.store.find = lambda kind, id, **options: None  # type: ignore[method-assign]  # answers kept would not be asked again
    made = evaluate(spec, inputs, run)["evaluation"]
    told = json.loads((made.path / "evaluation.json").read_bytes())
    answers = [json.loads(line) for line in (made.path / "answers.jsonl").read_text().splitlines()]
    progress = [event.value for event in run.events() if event.name == "evaluate/tuned_answers"]
    bench.known["evaluation artifact"] = made
    return told["parts"], told["gate"]["metric"], progress, [len(answer["tuned_ids"]) for answer in answers]


def verdict(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The gate's judgement of a model that is a little better by one metric and much better by the other."""
    from tunesmith.scoring.statistics import paired_gain
    from tunesmith.stages.evaluate.gate import judge, judged_metric

    base = {"exact_match": [0.0] * 20, "token_f1": [0.0] * 20}
    tuned = {"exact_match": [1.0] * 5 + [0.0] * 15, "token_f1": [1.0] * 15 + [0.0] * 5}
    spec = bench.recipe(overrides)
    gains = {name: paired_gain(base[name], tuned[name], spec.evaluate.confidence, spec.seed) for name in base}
    return judge(spec, judged_metric(spec, has_items=True), gains)


def exported(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """The real stage: what was written, and in which number format."""
    from safetensors import safe_open

    from tunesmith.stages.export.run import run as export

    finished = bench.once("pipeline", lambda: _pipeline(bench))
    bench.see(evaluation, ())
    spec = bench.recipe((*QUICK, f"model.base={bench.tiny}", *overrides))
    inputs = {
        **finished.outputs("prepare"),
        **finished.outputs("train"),
        "evaluation": bench.known["evaluation artifact"],
    }
    outputs = export(spec, inputs, _fresh_run(bench, spec, finished.workspace))
    formats = set()
    if "export" in outputs:
        with safe_open(outputs["export"].path / "model.safetensors", "pt") as weights:
            formats = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    return sorted(outputs), formats


def endpoint(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """Where `serve` would listen, what holds for a request, what the engine is told; nothing is started."""
    from tunesmith.stages.serve import checks
    from tunesmith.stages.serve import endpoint as module
    from tunesmith.stages.serve.limits import Limits
    from tunesmith.stages.serve.protocol import Defaults
    from tunesmith.stages.serve.run import keep

    run = exported_run(bench, overrides)
    asked: list[Any] = []

    def listen(host: str, port: int) -> None:
        asked.append((host, port))
        raise InterruptedError

    class Told(module.Endpoint):
        def __init__(self, deployment: Any, **options: Any) -> None:
            super().__init__(deployment, **options)
            asked.append((self._engine_spec.to_json(), list(deployment.choices)))

    with bench.patch.context() as patch:
        patch.setattr(module, "listen", listen)
        patch.setattr(importlib.import_module("tunesmith.stages.serve.run"), "Endpoint", Told)
        # A machine that could do either, so that the choice shows.
        patch.setattr(checks, "find_spec", lambda name: True)
        patch.setattr(checks.hardware, "detect", lambda: SimpleNamespace(gpus=("a GPU",)))
        with pytest.raises(InterruptedError):
            keep(run)  # type: ignore[arg-type]
    serve = run.recipe.serve
    return asked, asdict(Limits.of(serve, context=2048)), Defaults.of(serve, 400).to_json()


def exported_run(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """A Run by its face, whose exported model is the tiny one; with an adapter folder that recipes may name."""
    from tunesmith.runs.run import Run

    spec = bench.recipe(overrides)
    folder = bench.folder / "served"
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text('{"gate": {"verdict": "ship"}}')
    line = {"part": "test", "messages": [], "tuned": "", "tuned_ids": [], "finish": "stop"}
    (folder / "answers.jsonl").write_text("".join(json.dumps({"row": n, **line}) + "\n" for n in range(50)))
    (bench.folder / "adapter").mkdir(exist_ok=True)
    (bench.folder / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    made = {
        "train": {"model": SimpleNamespace(kind="Model")},
        "export": {"export": SimpleNamespace(path=bench.tiny)},
        "evaluate": {"evaluation": SimpleNamespace(path=folder)},
    }

    class Finished(Run):
        def __init__(self) -> None:
            self.path, self.workspace = folder, bench.folder

        id = "r"
        stopping = False
        recipe = pinned_recipe = spec

        def outputs(self, stage: str) -> Any:
            return made.get(stage)

        def record(self, *told: Any, **more: Any) -> None:
            pass

    return Finished()


def proof(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """How many prompts the stage would ask its endpoint."""
    from tunesmith.stages.serve import run as module

    run = exported_run(bench, overrides)
    asked: list[int] = []

    class Stopped:
        is_ready = True
        engine = SimpleNamespace(facts=dict)

        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def __enter__(self) -> Stopped:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    def ask(endpoint: Any, exam: Any, run: Any) -> None:
        asked.append(len(exam.questions))
        raise InterruptedError

    inputs = {**run.outputs("evaluate"), **run.outputs("export")}
    with bench.patch.context() as patch:
        patch.setattr(module, "Endpoint", Stopped)
        patch.setattr(module, "ask", ask)
        with pytest.raises(InterruptedError):
            module.run(run.recipe, inputs, run)
    return asked


def sinks(bench: Bench, overrides: tuple[str, ...]) -> list[str]:
    """What listens to a Run that `tunesmith.run` has begun."""
    from tunesmith import api, runner
    from tunesmith.runs.run import Run

    spec = bench.recipe(overrides)
    run = Run.open_or_create(bench.folder / "tracked", spec)
    (run.path / "report.html").touch()

    def execute(spec: Recipe, workspace: Path, *, on_begin: Callable[[Run], None], **more: Any) -> runner.Outcome:
        on_begin(run)
        return runner.Outcome(run, [])

    with bench.patch.context() as patch:
        patch.setattr(runner, "execute", execute)
        api.run(spec)
    (told,) = run.listeners
    return [type(call).__name__ for call in told.calls]  # type: ignore[attr-defined]


def tracker(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """What a tracker's library is asked for when a run begins there; the configuration, which is the recipe, left out."""
    from tunesmith.tracking.facts import RunFacts

    spec, calls = bench.recipe(overrides), []
    (name,) = spec.track.to

    def answers(what: str, answer: Any = None) -> Callable[..., Any]:
        def call(*told: Any, **named: Any) -> Any:
            calls.append((what, told, {key: value for key, value in named.items() if key not in ("config", "params")}))
            return answer

        return call

    made = SimpleNamespace(info=SimpleNamespace(run_id="1"), dir=str(bench.folder), url="there", starting_step=0)
    client = SimpleNamespace(
        get_experiment_by_name=answers("find"), create_experiment=answers("make", "7"), search_runs=answers("search", []),
        create_run=answers("begin", made), log_batch=answers("describe"),
    )  # fmt: skip
    fakes = {
        "wandb": SimpleNamespace(Settings=lambda **named: named, init=answers("begin", made)),
        "mlflow": SimpleNamespace(MlflowClient=lambda tracking_uri: calls.append(tracking_uri) or client),
        "mlflow.entities": SimpleNamespace(Param=lambda name, value: name),
        "trackio": SimpleNamespace(init=answers("begin", made)),
    }
    facts = RunFacts("id", "key", bench.folder / "tracked", bench.folder, spec, {}, 1)
    with bench.patch.context() as patch:
        for module, fake in fakes.items():
            patch.setitem(sys.modules, module, fake)
        patch.setattr(os, "environ", dict(os.environ))  # what a tracker sets is for its own process
        return importlib.import_module(f"tunesmith.tracking.{name}").make(spec).open(facts), calls


def reported(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """What the report of a run says that stopped at a row."""
    from tunesmith.report.facts import gather
    from tunesmith.runs.run import Run

    run = Run.open_or_create(bench.folder / "reported", bench.recipe(overrides))
    quoting = {"code": "DAT-013", "where": "rows.jsonl:3", "what": "it reads 'caf'", "expected": "", "fix": ""}
    run.record("prepare", "stage/failed", {"error": "DAT-032", "what": "1 bad row", "problems": [quoting]})
    return gather(run)["status"]["trouble"]["what"]


def plateau(bench: Bench, overrides: tuple[str, ...]) -> list[float]:
    """The factor of the rate after each of some validations."""
    from tunesmith.recipe.tree import Plateau
    from tunesmith.stages.train.schedule import PlateauState, note_plateau

    schedule, state, found = bench.recipe(overrides).train.schedule, PlateauState(), []
    assert isinstance(schedule, Plateau)
    for loss in (1.0, 0.8, 0.9, 0.79, *[0.9] * 40):
        state = note_plateau(state, schedule, loss, higher_is_better=False)
        found.append(state.factor)
    return found


def judged(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """A training that asks for answers at its validations: their values, which step was the best, what was asked of
    generation."""
    from tunesmith.stages.train import validation

    asked: list[Any] = []
    generate = validation.generate_greedy

    def note(model: Any, tokenizer: Any, items: Any, **named: Any) -> Any:
        asked.append((len(items), named["max_new_tokens"], named["batch_size"]))
        return generate(model, tokenizer, items, **named)

    with bench.patch.context() as patch:
        patch.setattr(validation, "generate_greedy", note)
        workspace = bench.folder / "judged" / str(len(bench.known))
        small = small_training(workspace, bench.tiny, (*WORSENING, "train.evaluate_every=3", *overrides))
        notes = small.train().notes
    told = {
        event.name: event.value for event in small.run.events() if event.name.startswith(("validation", "train/best"))
    }
    return told, notes["best_step"], notes["steps"], asked


def called(bench: Bench, overrides: tuple[str, ...]) -> str:
    """Who asks to stop after a step."""
    from tunesmith.recipe import code_named
    from tunesmith.runner.fingerprints import allowed
    from tunesmith.stages.train.callbacks import Callbacks, Facts

    (bench.folder / "watch.py").write_text("class Watch:\n    def on_step(self, facts):\n        return 'stop'\n")
    spec = bench.recipe(overrides)
    code = allowed(spec, frozenset(code_named(spec)))
    return Callbacks(spec.train.callbacks, code).tell(Facts("step", 1, 2))


def noise(bench: Bench, overrides: tuple[str, ...]) -> bool:
    small = small_training(
        bench.folder / "noise" / str(len(bench.known)), bench.tiny, ("train.max_steps=8", *overrides)
    )
    small.train()
    return bool(small.values("train/gradient_noise_scale"))


def searched(bench: Bench, overrides: tuple[str, ...]) -> Any:
    """A search by its own worker, with trials of which nothing is trained: what is drawn, given up, kept, and when it ends."""
    from tunesmith.tuning.progress import Progress
    from tunesmith.tuning.search import Search
    from tunesmith.tuning.worker import Worker, _Watch

    search = Search(bench.recipe(overrides), bench.folder / f"search-{len(bench.known)}", frozenset(), None, "s")
    search.folder.mkdir(parents=True)
    study = search.open_study()
    worker = Worker(search, study, Progress(1, None, None), None)
    kept: list[int] = []
    told: list[Any] = [search.objective, search.deadline() is not None]
    with bench.patch.context() as patch:
        patch.setattr(_Watch, "_keep_the_best", lambda watch: kept.append(watch.number))
        while (trial := worker._next()) is not None:
            watch = _Watch(worker, trial)
            stops: list[Exception] = []
            watch.run = SimpleNamespace(stopping=False, stop_for=stops.append, events=list)  # type: ignore[assignment]
            watch.num_steps, watch.is_own = 10, True
            watch._judge(2, float(trial.number))  # each one worse than the one before
            study.end(trial.number, "complete", float(trial.number))
            watch.clean_up("complete")
            told.append((trial.drawn, bool(stops)))
    worker.owner.close()
    study.close()
    return told, kept


# ----------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Effect:
    """see: what is observed. given: settings without which the key says nothing. other: the value tried, where that of the
    tree will not do. reruns: the stages whose fingerprint changes; None stands for those of the key's section."""

    see: Observer
    given: tuple[str, ...] = ()
    other: Any = None
    reruns: tuple[str, ...] | None = None


# Stages whose fingerprint a key of this section is part of. A change reaches later stages through their inputs.
RERUNS = {
    "compute": (),
    "data": ("prepare",), "adapter": ("train",), "train": ("train",), "evaluate": ("evaluate",), "gate": ("evaluate",),
    "export": ("export",), "serve": ("serve",), "tune": (), "report": (),
}  # fmt: skip
ALL_MODEL = ("prepare", "train", "evaluate", "export")
LATER = ("train", "evaluate", "export")  # they load the model
SET_APART = ("data.on_bad_row=quarantine", "data.max_bad_share=0.2")
MIXED = ("data.sources=[{path: rows.jsonl}, {path: other.jsonl}]", *SET_APART)
APART = ("data.sources=[{path: rows.jsonl, split: train}, {path: test.jsonl, split: test}]", *SET_APART)
NEAR = ("data.deduplicate=near", *APART)
NINE = ("tune.trials=9",)
WSD, PLATEAU = ("train.schedule=wsd",), ("train.schedule=plateau",)
ANSWERS = ("train.validation={metrics: [exact_match], max_new_tokens: 3}",)
SGD = ("train.optimizer=sgd",)
FSDP = ("train.engine.type=fsdp",)
DEEPSPEED = ("train.engine.type=deepspeed",)
STOPPING = ("train.early_stopping={patience: 2}",)
TAGGED = ("data.filters.pii.model=TAGGER",)
FIELDS = ("data.sources=[{path: rows.jsonl}]", *SET_APART)
QUICK = ("train.max_steps=2", "train.batch_size=4", "train.threads=1", "train.micro_batch=2", "evaluate.max_new_tokens=4",
         "adapter={rank: 2, targets: [q_proj]}", "gate.require=none", "data.max_tokens=256", *SET_APART)  # fmt: skip

EFFECTS: dict[str, Effect] = {
    "name": Effect(run_folder, reruns=()),
    "seed": Effect(order, reruns=("prepare", "train")),
    "model.base": Effect(base_model, other="TINY", reruns=ALL_MODEL),
    "model.revision": Effect(base_model, ("model.base=acme/tiny",), other="newer", reruns=ALL_MODEL),
    "model.template": Effect(ledger, SET_APART, reruns=ALL_MODEL),
    "model.precision": Effect(training, reruns=LATER),
    "model.attention": Effect(training, reruns=LATER),
    "model.quantisation.type": Effect(held_base, reruns=LATER),
    "model.quantisation.double_quantisation": Effect(held_base, ("model.quantisation=nf4",), reruns=LATER),
    "adapter.type": Effect(trained_parts),
    "adapter.rank": Effect(trained_parts),
    "adapter.alpha": Effect(trained_parts),
    "adapter.dropout": Effect(trained_parts),
    "adapter.targets": Effect(trained_parts),
    "data.sources.0.path": Effect(ledger, FIELDS),
    "data.sources.0.split": Effect(ledger, FIELDS),
    "data.sources.0.name": Effect(ledger, FIELDS),
    "data.sources.0.format": Effect(ledger, FIELDS),
    "data.sources.0.fields": Effect(ledger, FIELDS),
    "data.sources.0.at": Effect(ledger, ("data.sources=[{path: two_lists.json}]", *SET_APART)),
    "data.sources.0.columns": Effect(ledger, FIELDS),
    "data.sources.0.query": Effect(fetched_ledger, ("data.sources=[{path: 'sqlite:///rows.db'}]", *SET_APART)),
    "compute.type": Effect(workers),
    "compute.workers": Effect(workers, other=7),
    "compute.address": Effect(workers, ("compute=ray",)),
    "data.on_bad_row": Effect(ledger, ("data.max_bad_share=0.2",)),
    "data.max_bad_share": Effect(ledger, ("data.on_bad_row=quarantine",)),
    "data.filters.length": Effect(cleaned),
    "data.filters.length.min_characters": Effect(cleaned),
    "data.filters.length.max_characters": Effect(cleaned),
    "data.filters.quality": Effect(cleaned),
    "data.filters.quality.column": Effect(cleaned),
    "data.filters.quality.above": Effect(cleaned),
    "data.filters.quality.below": Effect(cleaned),
    "data.filters.columns.0.column": Effect(cleaned, ("data.filters.columns=[{column: quality_score, above: 0.5}]",)),
    "data.filters.columns.0.above": Effect(cleaned, ("data.filters.columns=[{column: score, below: 2}]",)),
    "data.filters.columns.0.below": Effect(cleaned, ("data.filters.columns=[{column: score, above: 0.01}]",)),
    "data.filters.where": Effect(cleaned),
    "data.filters.control_characters": Effect(cleaned),
    **{
        f"data.filters.{name}{'.' * bool(key)}{key}": Effect(cleaned, given if key else ())
        for name, given, keys in (
            ("language", ("data.filters.language={keep: [en]}",), ("keep", "min_probability", "min_letters", "of")),
            ("residue", ("data.filters.residue={}",), ("action", "phrases")),
            ("refusals", ("data.filters.refusals={}",), ("action",)),
            ("repetition", ("data.filters.repetition={}",), ("ngram", "max_repeated_ngrams", "max_run")),
        )
        for key in ("", *keys)
    },
    "data.filters.refusals.phrases": Effect(cleaned, ("data.filters.refusals={}",), other=("it is on its way",)),
    "data.filters.repetition.max_repeated_lines": Effect(
        cleaned, ("data.filters.repetition={max_repeated_ngrams: 1}",)
    ),
    **{f"data.filters.secrets.{kind}": Effect(cleaned) for kind in ("api_keys", "private_keys", "tokens")},
    **{f"data.filters.pii.{kind}": Effect(cleaned) for kind in ("email", "phone", "iban", "card", "ip", "national_id")},
    "data.filters.pii.model": Effect(cleaned),
    **{
        f"data.filters.pii.{key}": Effect(cleaned, TAGGED)
        for key in ("model_action", "model_labels", "model_probability")
    },
    "data.filters.accept_drop_share": Effect(question),
    "data.quality.type": Effect(cleaned),
    "data.quality.above": Effect(cleaned, ("data.quality=heuristics",)),
    "data.quality.below": Effect(cleaned, ("data.quality=heuristics",), other=0.8),
    "data.quality.keep": Effect(cleaned, ("data.quality=heuristics",)),
    "data.sources.0.limit": Effect(ledger, MIXED),
    "data.sources.0.repeat": Effect(ledger, MIXED),
    "data.sources.0.weight": Effect(ledger, MIXED),
    "data.mixture.temperature": Effect(ledger, MIXED),
    "data.mixture.rows": Effect(ledger, MIXED),
    "data.deduplicate.type": Effect(ledger, SET_APART, other="none"),
    "data.deduplicate.conflicts": Effect(ledger, SET_APART),
    "data.deduplicate.on": Effect(ledger, NEAR),
    "data.deduplicate.threshold": Effect(ledger, NEAR),
    "data.deduplicate.length": Effect(ledger, NEAR),
    "data.deduplicate.unit": Effect(ledger, NEAR),
    "data.leaks.type": Effect(ledger, SET_APART),
    "data.leaks.near": Effect(ledger, APART),
    "data.leaks.length": Effect(ledger, APART),
    "data.leaks.overlap": Effect(ledger, APART),
    "data.leaks.overlap_words": Effect(ledger, (*APART, "data.leaks.overlap=0.5")),
    "data.leaks.against": Effect(ledger, ("data.sources=[rows.jsonl]", *SET_APART), other=["test.jsonl"]),
    "data.split.stratify": Effect(ledger, SET_APART),
    "data.split.validation": Effect(ledger, SET_APART),
    "data.split.test": Effect(ledger, SET_APART),
    "data.max_tokens": Effect(ledger, SET_APART),
    "data.too_long": Effect(ledger, (*SET_APART, "data.max_tokens=64")),
    "data.learn": Effect(ledger, SET_APART),
    "train.epochs": Effect(order),
    "train.max_steps": Effect(order, ("train.batch_size=4",)),
    "train.batch_size": Effect(order),
    "train.micro_batch": Effect(plan),
    "train.packing": Effect(training),
    "train.learning_rate": Effect(optimizer),
    "train.schedule.type": Effect(rates),
    "train.schedule.warmup": Effect(rates),
    "train.schedule.final": Effect(rates),
    "train.schedule.decay": Effect(rates, WSD),
    "train.schedule.shape": Effect(rates, WSD),
    "train.schedule.timescale": Effect(rates, ("train.schedule=inverse_sqrt",)),
    "train.schedule.factor": Effect(plateau, PLATEAU),
    "train.schedule.patience": Effect(plateau, PLATEAU),
    "train.schedule.min_gain": Effect(plateau, PLATEAU),
    "train.schedule.cooldown": Effect(plateau, PLATEAU),
    "train.validation.metrics": Effect(judged),
    "train.validation.max_items": Effect(judged, ANSWERS),
    "train.validation.max_new_tokens": Effect(judged, ANSWERS),
    "train.validation.batch_size": Effect(judged, ANSWERS),
    "train.best_metric": Effect(judged),
    "train.callbacks": Effect(called),
    "train.gradient_noise": Effect(noise),
    "train.optimizer.type": Effect(optimizer),
    "train.optimizer.beta1": Effect(optimizer),
    "train.optimizer.beta2": Effect(optimizer),
    "train.optimizer.epsilon": Effect(optimizer),
    "train.optimizer.weight_decay": Effect(optimizer),
    "train.optimizer.momentum": Effect(optimizer, SGD),
    "train.optimizer.beta2_decay": Effect(optimizer, ("train.optimizer=adafactor",)),
    "train.max_grad_norm": Effect(training),
    "train.gradient_checkpointing": Effect(plan),
    "train.compile": Effect(compiled),
    "train.kernels": Effect(whose_kernels, other="off"),
    "train.evaluate_every": Effect(training),
    "train.save_every": Effect(training, ("train.keep=last", "train.evaluate_every=3")),
    "train.keep_checkpoints": Effect(training, ("train.keep_checkpoints=3",)),
    "train.keep": Effect(worsening),
    "train.early_stopping": Effect(worsening),
    "train.early_stopping.metric": Effect(
        judged, ("train.evaluate_every=1", "train.early_stopping={patience: 1, min_delta: 0.5}")
    ),
    "train.early_stopping.patience": Effect(worsening, STOPPING),
    "train.early_stopping.min_delta": Effect(worsening, STOPPING),
    "train.processes": Effect(launched),
    "train.threads": Effect(plan),
    "train.engine.type": Effect(engine, other="fsdp"),
    "train.engine.reshard_after_forward": Effect(engine, FSDP),
    "train.engine.cpu_offload": Effect(engine, FSDP),
    "train.engine.zero_stage": Effect(deepspeed_is_told, DEEPSPEED),
    "train.engine.offload_optimizer": Effect(deepspeed_is_told, DEEPSPEED),
    "train.engine.offload_parameters": Effect(deepspeed_is_told, (*DEEPSPEED, "train.engine.zero_stage=3")),
    "train.engine.config": Effect(deepspeed_is_told, DEEPSPEED),
    "evaluate.metrics": Effect(evaluation),
    "evaluate.max_new_tokens": Effect(evaluation, other=9),
    "evaluate.batch_size": Effect(evaluation, other=2),
    "evaluate.cache": Effect(decoding),
    "evaluate.max_items": Effect(evaluation, other=1),
    "evaluate.split": Effect(evaluation),
    "evaluate.confidence": Effect(verdict),
    "gate.require": Effect(verdict, reruns=("evaluate", "export")),
    "gate.metric": Effect(verdict),
    "gate.min_gain": Effect(verdict),
    "export.merged": Effect(exported),
    "export.adapter": Effect(exported),
    "export.dtype": Effect(exported),
    "serve.host": Effect(endpoint, reruns=()),
    "serve.port": Effect(endpoint, reruns=()),
    "serve.engine": Effect(endpoint),
    "serve.compile": Effect(endpoint),
    "serve.quantisation": Effect(endpoint),
    "serve.adapters": Effect(endpoint),
    "serve.temperature": Effect(endpoint, reruns=()),
    "serve.top_p": Effect(endpoint, reruns=()),
    "serve.max_new_tokens": Effect(endpoint),
    "serve.max_body_bytes": Effect(endpoint),
    "serve.queue": Effect(endpoint),
    "serve.parity_items": Effect(proof),
    "accept_unusual": Effect(plan, ("train.learning_rate=0.5",), reruns=()),
    "tune.space": Effect(searched, NINE, other={"train.epochs": {"low": 1, "high": 3}}),
    "tune.metric": Effect(searched, NINE),
    "tune.direction": Effect(searched, NINE),
    "tune.trials": Effect(searched, NINE, other=4),
    "tune.minutes": Effect(searched, NINE),
    "tune.prune": Effect(searched, NINE),
    "tune.sampler": Effect(searched, NINE),
    "tune.keep": Effect(searched, NINE),
    "tune.seed": Effect(searched, NINE),
    "report.texts": Effect(reported),
    "track.to": Effect(sinks, reruns=()),
    "track.tensorboard.folder": Effect(tracker, ("track=tensorboard",), reruns=()),
    **{
        f"track.{name}.{key}": Effect(tracker, (f"track={name}",), reruns=())
        for name, keys in (
            ("wandb", ("project", "entity", "name", "tags", "mode", "url")),
            ("mlflow", ("uri", "experiment", "name", "tags")),
            ("trackio", ("project", "name")),
        )
        for key in keys
    },
}


# ----------------------------------------------------------------------------------------------------------- the tests


def keys() -> dict[str, Any]:
    """Key -> its other value: every leaf, the words of sections that have a type, sections that may be null."""
    found = {path: key.other for path, key in all_keys().items()}
    for path, other in list(found.items()):
        if other is None and path.endswith(".type"):
            words = list(variants_of(path.removesuffix(".type")))
            found[path] = words[1] if len(words) > 1 else None
    return {path: other for path, other in found.items() if not (other is None and path.endswith(".type"))} | dict(
        _nullable(Recipe, "")
    )


def _nullable(section: type[Section], prefix: str) -> Iterator[tuple[str, Any]]:
    """Sections with keys of their own that may be null: their `other` switches them off, or on."""
    from tunesmith.recipe.keys import _models

    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        inner = list(_models(field.annotation))
        if inner and type(None) in getattr(field.annotation, "__args__", ()):
            yield path, (field.json_schema_extra or {}).get("other")  # type: ignore[union-attr]
        for model in inner:
            if f"{path}.0" not in {key[: len(path) + 2] for key in all_keys()}:
                yield from _nullable(model, f"{path}.")  # type: ignore[arg-type]


KEYS = keys()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        yield Bench(tmp_path_factory.mktemp("effects"), tiny_model_dir, patch)


def override(path: str, effect: Effect, bench: Bench) -> str:
    value = effect.other if effect.other is not None else KEYS[path]
    return f"{path}={str(bench.tiny) if value == 'TINY' else json.dumps(value)}"


def test_every_key_has_an_effect_to_look_for() -> None:
    missing, gone = sorted(set(KEYS) - set(EFFECTS)), sorted(set(EFFECTS) - set(KEYS))
    assert not missing, f"keys without an effect: {', '.join(missing)}; add a line to EFFECTS in {Path(__file__).name}"
    assert not gone, f"effects of keys that are gone: {', '.join(gone)}"


@pytest.mark.parametrize("path", EFFECTS)
def test_another_value_changes_what_is_seen(bench: Bench, path: str) -> None:
    effect = EFFECTS[path]
    changed = override(path, effect, bench)
    before, after = bench.see(effect.see, effect.given), bench.see(effect.see, (*effect.given, changed))
    assert before != after, f"{changed} changes nothing that {effect.see.__name__} sees: {before}"


@pytest.mark.parametrize("path", EFFECTS)
def test_another_value_changes_the_fingerprint_of_the_right_stages_and_of_no_other(bench: Bench, path: str) -> None:
    effect = EFFECTS[path]
    before = bench.recipe(effect.given)
    after = bench.recipe((*effect.given, override(path, effect, bench)))
    assert before.hash() != after.hash()
    changed = {
        stage.info.name
        for stage in load_stages(STAGES, "serve")
        if _without_folders(before.slice(stage.info.keys)) != _without_folders(after.slice(stage.info.keys))
    }
    expected = RERUNS[path.partition(".")[0]] if effect.reruns is None else effect.reruns
    assert changed == set(expected)


# --------------------------------------------------------------------------------------------------------- what it needs


def _write_rows(folder: Path) -> None:
    """Rows in which every key of `data` has something to decide about."""

    def row(number: int, **more: Any) -> dict[str, Any]:
        asked = f"Where is order number {number}, which I placed a while ago?"
        other = {
            "question": f"What became of number {number}, dear friends?",
            "answer": "It came.",
            "text": f"{asked} Gone.",
        }
        return {
            "prompt": asked,
            "completion": f"Number {number} is on its way.",
            "quality_score": 0.9,
            "score": 0.9,
            **other,
            **more,
        }

    rows = [row(number) for number in range(60)]
    rows[3]["quality_score"] = 0.6
    rows[4]["score"] = 0.1
    rows[5] = {
        "prompt": "Is it gone?",
        "completion": "Yes, it is.",
        "quality_score": 0.9,
        "score": 0.9,
        "question": "?",
        "answer": "!",
        "text": "Gone.",
    }
    rows[6]["completion"] = "It is on its way. " * 40
    rows += [dict(rows[7]), dict(rows[8])]
    turns = [
        ("user", "Where is my order, the one of last week?"),
        ("assistant", "Which one?"),
        ("user", "17"),
        ("assistant", "It came."),
    ]
    chat = {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "question": "Which?",
        "answer": "17",
        "text": "Talk.",
    }
    rows += [
        row(70, prompt=_words(1)),
        row(70, prompt=_words(1, {29: "zebra"})),  # a near-duplicate
        row(71, prompt=_words(2)),
        row(72, prompt=_words(2, {29: "zebra"})),  # with another answer
        row(73, prompt=_words(3)),
        row(73, prompt=_words(3, {15: "zebra"})),  # farther apart
        row(74, prompt=_words(4)),
        row(75, prompt=_words(4)),  # a conflict
        row(76, prompt=_words(5)),
        row(77, prompt=_words(6)),
        row(78, prompt=f"{_words(7)} {_words(8)} {_words(9)}"),
        row(79, prompt=" ".join(_words(10).split()[:8])),
    ]
    lines = [json.dumps(line) for line in [*rows, chat]]
    lines.insert(10, '{"prompt": ')
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    held_out = [rows[9], *(row(number) for number in range(100, 106))]
    held_out += [
        row(110, prompt=_words(5, {0: "zebra"})),  # near a training row
        row(111, prompt=_words(6, {15: "zebra"})),  # farther away
        row(112, prompt=_words(8)),  # inside a training row
        row(113, prompt=" ".join(_words(10).split()[:10])),  # eight of its words are in a training row
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held_out))
    (folder / "two_lists.json").write_text(json.dumps({"data": {"rows": rows[:20]}, "more": rows[20:30]}))
    with contextlib.closing(sqlite3.connect(folder / "rows.db")) as database:
        database.execute("CREATE TABLE rows (prompt TEXT, completion TEXT)")
        asked = [(one["prompt"], one["completion"]) for one in rows[:20]]
        database.executemany("INSERT INTO rows VALUES (?, ?)", asked)
        database.commit()
    (folder / "other.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(200, 220)))


def _words(text: int, changed: Mapping[int, str] = MappingProxyType({})) -> str:
    """Thirty words that no other text has."""
    return " ".join(changed.get(place, f"word{text}x{place}") for place in range(30))


def _pipeline(bench: Bench) -> Any:
    """A Run with prepared rows and a trained adapter."""
    from tunesmith import api

    spec = bench.recipe((*QUICK, f"model.base={bench.tiny}"))
    return api.train(spec, workspace=bench.folder / "work", quiet=True).run


def _fresh_run(bench: Bench, spec: Recipe, workspace: Path) -> Any:
    from tunesmith.runs.run import Run

    run = Run.open_or_create(workspace, spec)
    run.stage_key = os.urandom(8).hex()
    return run
