"""Gradients of one training step, computed in several ways; called here and in the pair of gloo processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tunesmith.modeling.adapters import attach_lora
from tunesmith.modeling.dropout import StepContext
from tunesmith.modeling.forward import micro_batches
from tunesmith.modeling.load import load_model, recompute_activations
from tunesmith.modeling.packing import choose_layout
from tunesmith.recipe import Lora, parse_recipe
from tunesmith.recipe.tree import Model
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.train.batches import Order, share
from tunesmith.stages.train.engines import LocalEngine, ReplicaEngine
from tunesmith.stages.train.loop import Loop
from tunesmith.stages.train.optimizer import make_optimizer

SEED, STEP, BATCH = 17, 3, 7
CPU = torch.device("cpu")


def make_model(
    model_dir: Path, adapter: str, dropout: float, context: StepContext, recompute: bool, quantisation: str = "none"
) -> nn.Module:
    model = load_model(model_dir, device=CPU, quantisation=Model(quantisation={"type": quantisation}).quantisation)
    if recompute:
        recompute_activations(model)
    if adapter == "full":
        return model.requires_grad_(True).train()
    model = attach_lora(model, Lora(rank=4, dropout=dropout, targets=("q_proj", "down_proj")), SEED, context)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # B starts at zero, which would hide A's gradients
            parameter.data.normal_(0, 0.02, generator=draw)
    return model.train()


def plain(model: nn.Module) -> nn.Module:
    """The transformers model below an adapter."""
    return getattr(model, "get_base_model", lambda: model)()


def make_loop(
    model_dir: str,
    dataset_dir: str,
    adapter: str = "full",
    dropout: float = 0.0,
    micro_batch: int = 2,
    recompute: bool = False,
    processes: int = 1,
    packed: bool = False,
    quantisation: str = "none",
) -> Loop:
    """The loop as the stage builds it, with SGD, whose updates show the scale of gradients (AdamW's hide it)."""
    recipe = parse_recipe(
        "{data: {sources: rows.jsonl}}",
        [f"train.batch_size={BATCH}", "train.optimizer={type: sgd}", "train.learning_rate=0.5", "train.epochs=9"],
    )
    dataset, context = Dataset(Path(dataset_dir)), StepContext(SEED)
    examples = dataset.split("train")
    engine = (ReplicaEngine if processes > 1 else LocalEngine)(None)
    model = make_model(Path(model_dir), adapter, dropout, context, recompute, quantisation)
    layout = choose_layout(plain(model), int(dataset.lengths().max())) if packed else "rows"
    assert packed == (layout == "packed")
    model = engine.wrap(model, lambda p: make_optimizer(p, recipe.train))
    order = Order.of(examples, SEED, recipe.train)
    budget = micro_batch * int(dataset.lengths()[examples].max())
    return Loop(recipe.train, dataset, order, model, engine, context, budget_tokens=budget, layout=layout)


def step_gradients(**settings: object) -> dict[str, Tensor]:
    """Gradients of step STEP over all processes, by parameter name, and its "loss"."""
    loop = make_loop(**settings)  # type: ignore[arg-type]
    examples, engine = loop.order.step(STEP), loop.engine
    total = float(loop.learned_weights[examples].sum())
    groups = micro_batches(
        share(examples, loop.lengths, engine.rank, engine.world_size), loop.lengths, loop.budget_tokens, loop.layout
    )
    loss, tokens = loop.accumulate(STEP, groups, total)
    sums = engine._synchronise(loss, tokens, False)
    found = {name: parameter.grad.clone() for name, parameter in engine.parameters}
    return {**found, "loss": sums[0].clone(), "tokens": sums[1].clone()}


def quantised_shares(**settings: object) -> list[float]:
    """How much of each quantised weight this process holds, as a share of the whole."""
    loop = make_loop(**settings)  # type: ignore[arg-type]
    weights = [p for p in loop.model.parameters() if not p.is_floating_point()]
    assert weights
    return [getattr(p, "to_local", lambda p=p: p)().numel() / p.numel() for p in weights]


def updated_weights(**settings: object) -> dict[str, Tensor]:
    """Trainable weights after two whole SGD steps."""
    loop = make_loop(**settings)  # type: ignore[arg-type]
    for number in (1, 2):
        assert loop.step(number).finite
    return loop.engine.whole_parameters()


def train_stage(workspace: str, stage_key: str) -> str | None:
    """The train stage on an existing Run, as a launched worker calls it; the first process returns the result's folder."""
    from tunesmith.runs.run import Run
    from tunesmith.stages.train.run import run as train

    (path,) = (Path(workspace) / "runs").iterdir()
    run = Run.open(path)
    run.stage_key = stage_key
    dataset = run.store.find("Dataset", "d1")
    assert dataset is not None
    made = train(run.recipe, {"dataset": dataset}, run)
    return str(made["model"].path) if made else None
