"""Gradients of one training step, computed in several ways; called here and in the pair of gloo processes."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from float64 import in_float64, loss_in_float64
from torch import Tensor, nn

from tunesmith.modeling.adapters import attach_lora
from tunesmith.modeling.dropout import StepContext
from tunesmith.modeling.forward import collate, learned_logits, micro_batches
from tunesmith.modeling.load import load_model, recompute_activations
from tunesmith.modeling.packing import choose_layout
from tunesmith.recipe import Lora, parse_recipe
from tunesmith.recipe.tree import Model
from tunesmith.runs.dataset import Dataset
from tunesmith.stages.train.batches import Order, share
from tunesmith.stages.train.engines import make_engine
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
    packed: bool = False,
    quantisation: str = "none",
    engine: str = "auto",
    overrides: Sequence[str] = (),
    precision: str = "fp32",
) -> Loop:
    """The loop as the stage builds it, with SGD, whose updates show the scale of gradients (AdamW's hide it).

    engine: as in the recipe. Called in one of several processes, it is one of several engines.
    precision: as in the recipe, or fp64, which tests alone have.
    """
    settings = [f"train.batch_size={BATCH}", "train.optimizer={type: sgd}", "train.learning_rate=0.5", "train.epochs=9"]
    settings += ["train.max_grad_norm=null", f"train.engine={engine}"]
    recipe = parse_recipe("{data: {sources: rows.jsonl}}", [*settings, *overrides])
    dataset, context = Dataset(Path(dataset_dir)), StepContext(SEED)
    examples = dataset.split("train")
    made = make_engine(recipe.train)
    model = make_model(Path(model_dir), adapter, dropout, context, recompute, quantisation)
    layout = choose_layout(plain(model), int(dataset.lengths().max())) if packed else "rows"
    assert packed == (layout == "packed")
    is_exact = precision == "fp64"
    model = in_float64(model) if is_exact else model
    model = made.wrap(model, lambda p: make_optimizer(p, recipe.train), precision="fp32" if is_exact else precision)
    order = Order.of(examples, SEED, recipe.train)
    budget = micro_batch * int(dataset.lengths()[examples].max())
    loop = Loop(recipe.train, dataset, order, model, made, context, budget_tokens=budget, layout=layout)
    if is_exact:
        loop.loss = loss_in_float64(model)  # type: ignore[method-assign]
    return loop


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


def quantised_bits(**settings: object) -> dict[str, Tensor]:
    """After a step, all that quantised weights are made of, by layer: whole weights, and scales with theirs."""
    from tunesmith.modeling.quantise import quantised_layers

    loop = make_loop(**settings)  # type: ignore[arg-type]
    assert loop.step(1).finite
    found = {}
    for name, layer in quantised_layers(loop.model):
        found[f"{name}.weight"] = getattr(layer.weight, "full_tensor", lambda layer=layer: layer.weight.data)()
        state = getattr(layer, "quant_state", None)
        if state is not None:
            parts = {"absmax": state.absmax, "offset": state.offset, "absmax2": state.state2.absmax}
            parts |= {"code": state.code, "code2": state.state2.code}
        else:
            parts = {"scales": layer.scales}
        found |= {f"{name}.{part}": value for part, value in parts.items()}
    loop.engine.close()
    return {name: value.detach().clone() for name, value in found.items()}


# ---------------------------------------------------------------------- what is asked of every engine, one or two processes

RATE = 0.1
CONSTANT = ("train.schedule={type: constant, warmup: 0}", f"train.learning_rate={RATE}")
ADAMW = ("train.optimizer={type: adamw, weight_decay: 0.1}", "train.learning_rate=0.001", "train.max_grad_norm=0.5")


def trajectory(steps: int = 10, **settings: object) -> dict[str, object]:
    """SGD at a constant rate, so that the first step's gradients are what its update took away, divided by the rate.

    gradients, weights: of the first step, after the last one ({} elsewhere than in the first process). norms: before
    clipping. labels: weight of what this process learned from, per step.
    """
    overrides = [*CONSTANT, *settings.pop("overrides", ())]  # type: ignore[misc]
    loop = make_loop(overrides=overrides, **settings)  # type: ignore[arg-type]
    start, norms, labels = loop.engine.whole_parameters(), [], []
    gradients: dict[str, Tensor] = {}
    for number in range(1, steps + 1):
        result = loop.step(number)
        assert result.finite
        norms.append(result.grad_norm)
        mine = share(result.examples, loop.lengths, loop.engine.rank, loop.engine.world_size)
        labels.append(float(loop.learned_weights[mine].sum()))
        if number == 1:
            after = loop.engine.whole_parameters()
            gradients = {name: (start[name] - value) / RATE for name, value in after.items()}
    weights = loop.engine.whole_parameters()
    loop.engine.close()
    return {"gradients": gradients, "weights": weights, "norms": norms, "labels": labels}


def some_steps(
    first: int,
    last: int,
    saved: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None,
    adamw: Sequence[str] = (),
    **settings: object,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Steps first..last with AdamW and clipping, from what was saved or from the start. Returns weights and state.

    adamw: overrides of ADAMW.
    """
    overrides = ["train.schedule={type: constant, warmup: 0}", *ADAMW, *adamw]
    loop = make_loop(overrides=overrides, **settings)  # type: ignore[arg-type]
    if saved:
        loop.engine.load_state(*saved)
        if loop.engine.rank == 0:
            for told, held in zip(saved, (loop.engine.whole_parameters(), loop.engine.gather_state()), strict=True):
                assert told.keys() == held.keys()
                assert all(torch.equal(held[name], value) for name, value in told.items()), "what is loaded is there"
        else:
            loop.engine.whole_parameters(), loop.engine.gather_state()
    for number in range(first, last + 1):
        assert loop.step(number).finite
    found = loop.engine.whole_parameters(), loop.engine.gather_state()
    loop.engine.close()
    return found


def spoiled_step(how: str, **settings: object) -> dict[str, object]:
    """A good step, a spoiled one, a good one. how: "gradient" or "loss" is not finite, on the last process only.

    before, after: weights and state around the spoiled step. end: weights after the last one.
    """
    loop = make_loop(overrides=[*ADAMW], **settings)  # type: ignore[arg-type]
    engine = loop.engine
    assert loop.step(1).finite
    before = {**engine.whole_parameters(), **engine.gather_state()}
    is_bad = engine.rank == engine.world_size - 1
    good_backward, good_step = engine.backward, engine.step
    if how == "gradient" and is_bad:
        engine.backward = lambda loss, is_last=True: good_backward(loss * float("nan"), is_last)  # type: ignore[method-assign]
    if how == "loss" and is_bad:
        engine.step = lambda loss, *told: good_step(loss * float("inf"), *told)  # type: ignore[method-assign]
    result = loop.step(2)
    engine.backward, engine.step = good_backward, good_step  # type: ignore[method-assign]
    after = {**engine.whole_parameters(), **engine.gather_state()}
    assert loop.step(3).finite
    end = engine.whole_parameters()
    engine.close()
    return {"finite": result.finite, "again_clean": end, "before": before, "after": after}


def without_second_step(**settings: object) -> dict[str, Tensor]:
    """Steps 1 and 3: what a withheld second step comes to."""
    loop = make_loop(overrides=[*ADAMW], **settings)  # type: ignore[arg-type]
    assert loop.step(1).finite
    assert loop.step(3).finite
    weights = loop.engine.whole_parameters()
    loop.engine.close()
    return weights


def held_numbers(**settings: object) -> dict[str, int]:
    """How many numbers this process holds between two steps: of trained and frozen weights and of optimizer state."""
    loop = make_loop(overrides=[*ADAMW], **settings)  # type: ignore[arg-type]
    assert loop.step(1).finite
    engine = loop.engine
    trained = {id(parameter) for _, parameter in engine.parameters}
    parts = [(id(p) in trained, _held(p), getattr(p, "ds_numel", p.numel())) for p in engine.model.parameters()]
    optimizer = getattr(engine, "engine", None)
    inner = optimizer.optimizer.optimizer if optimizer else engine.optimizer
    state = [
        value for slots in inner.state.values() for value in slots.values() if torch.is_tensor(value) and value.ndim
    ]
    found = {
        "trained": sum(held for is_trained, held, _ in parts if is_trained),
        "frozen": sum(held for is_trained, held, _ in parts if not is_trained),
        "all_trained": sum(whole for is_trained, _, whole in parts if is_trained),
        "all_frozen": sum(whole for is_trained, _, whole in parts if not is_trained),
        "state": sum(_held(value) for value in state),
    }
    engine.close()
    return found


def _held(tensor: Tensor) -> int:
    """Numbers of a tensor that lie in this process."""
    if hasattr(tensor, "ds_tensor"):  # ZeRO-3: its shard, and the whole where it was left gathered
        return tensor.ds_tensor.numel() + (tensor.numel() if tensor.numel() == tensor.ds_numel else 0)
    return tensor.to_local().numel() if hasattr(tensor, "to_local") else tensor.numel()


def logits_after(steps: int, **settings: object) -> Tensor:
    """What this process's model says of one row after some steps, with an adapter: [K, V]."""
    loop = make_loop(**settings)  # type: ignore[arg-type]
    for number in range(1, steps + 1):
        assert loop.step(number).finite
    loop.model.eval()
    with torch.no_grad():
        logits_KV = learned_logits(loop.model, collate(loop.dataset, [loop.shortest]))
    loop.engine.close()
    return logits_KV


def updated_weights(**settings: object) -> dict[str, Tensor]:
    """Trainable weights after two whole SGD steps."""
    loop = make_loop(**settings)  # type: ignore[arg-type]
    for number in (1, 2):
        assert loop.step(number).finite
    return loop.engine.whole_parameters()


def train_stage(workspace: str, stage_key: str, stop_rank: int = -1, stop_step: int = 0) -> str | None:
    """The train stage on an existing Run, as a launched worker calls it; the first process returns the result's folder.

    stop_rank: the process that is asked to stop after stop_step, as by SIGTERM; then every process returns "stopped".
    """
    from tunesmith.errors import InterruptedRun
    from tunesmith.runs.run import Run
    from tunesmith.stages.train import run as stage

    (path,) = (Path(workspace) / "runs").iterdir()
    run = Run.open(path)
    run.stage_key = stage_key
    dataset = run.store.find("Dataset", "d1")
    assert dataset is not None
    told = stage.Training._tell

    def tell(training: Any, result: Any) -> None:
        told(training, result)
        if result.number == stop_step and training.engine.rank == stop_rank:
            run.stop(signal.SIGTERM)

    stage.Training._tell = tell  # type: ignore[method-assign]
    try:
        made = stage.run(run.recipe, {"dataset": dataset}, run)
    except InterruptedRun:
        return "stopped"
    finally:
        stage.Training._tell = told  # type: ignore[method-assign]
    return str(made["model"].path) if made else None
