"""Compiled decoder layers: losses and gradients of eager ones, one compilation for all layers and lengths, resumed bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradients import make_loop
from small_training import fill_dataset, small_training
from test_gradients import assert_close
from test_resume import Killed, kill_at, weights
from torch import Tensor

from tunesmith.errors import ModelError, RecipeError
from tunesmith.modeling.compile import compile_layers, compiling, decoder_layers, eagerly, graphs_compiled
from tunesmith.modeling.forward import micro_batches
from tunesmith.planner.switches import compiler_trouble
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.stages.train import checks

# torch's compiler warns about torch's own modules while it works.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
needs_compiler = pytest.mark.skipif(bool(compiler_trouble(on_cpu=True)), reason="no C++ compiler")


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    fill_dataset(folder)
    return folder


def passes(loop, steps: tuple[int, ...]) -> dict[str, Tensor]:
    """Gradients, summed over some steps of different lengths, and the loss."""
    loss = torch.zeros(())
    for step in steps:
        groups = micro_batches(loop.order.step(step), loop.lengths, loop.budget_tokens, loop.layout)
        loss += loop.accumulate(step, groups, 100.0)[0]
    return {**{name: p.grad.clone() for name, p in loop.engine.parameters}, "loss": loss}


def with_backend(patch: pytest.MonkeyPatch, backend: object) -> None:
    inner = torch.nn.Module.compile
    patch.setattr(torch.nn.Module, "compile", lambda layer, **told: inner(layer, backend=backend, **told))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are captured, guarded and differentiated as always, and the graphs are run as they are: C++ takes half a minute."""
    torch._dynamo.reset()
    with_backend(monkeypatch, "aot_eager")


def assert_compiled_as_eager(**settings: object) -> None:
    loop = make_loop(micro_batch=3, **settings)  # type: ignore[arg-type]
    eager = passes(loop, (1, 2, 3, 4))
    loop.engine.discard()
    before = graphs_compiled()
    assert compile_layers(loop.model) == 2
    with compiling():
        passes(loop, (1,))
    loop.engine.discard()
    made = graphs_compiled() - before
    assert made > 0, "something was compiled"
    assert_close(passes(loop, (1, 2, 3, 4)), eager)  # micro-batches of several lengths and numbers of examples
    assert graphs_compiled() - before == made, "other lengths need no other program"
    loop.engine.discard()
    with eagerly():
        assert_close(passes(loop, (1, 2, 3, 4)), eager, tolerance=1e-9)


@needs_compiler
def test_compiled_layers_have_the_gradients_of_eager_ones(tiny_model_dir: Path, dataset_dir: Path) -> None:
    assert_compiled_as_eager(model_dir=tiny_model_dir, dataset_dir=dataset_dir, adapter="full")


@pytest.mark.usefixtures("captured")
def test_layers_of_packed_examples_have_the_gradients_of_eager_ones(tiny_model_dir: Path, dataset_dir: Path) -> None:
    assert_compiled_as_eager(model_dir=tiny_model_dir, dataset_dir=dataset_dir, adapter="lora", packed=True)


@needs_compiler
@pytest.mark.usefixtures("captured")
def test_a_compiled_training_tells_its_cost_and_gain_and_is_resumed_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = ["train.compile=regional", "train.max_steps=4", "train.save_every=2", "train.evaluate_every=2"]
    straight = small_training(tmp_path / "straight", tiny_model_dir, settings)
    made = straight.train()
    (seconds,) = straight.values("train/compile_seconds").values()
    (gain,) = straight.values("train/compile_gain").values()
    assert made.notes["compile"] == {"seconds": seconds, "gain": gain}
    assert gain > 0
    assert straight.values("train/recompilations") == {None: 0}
    assert set(next(iter(straight.values("train/compile_tokens_per_second").values()))) == {"eager", "compiled"}

    eager = small_training(tmp_path / "eager", tiny_model_dir, ["train.compile=off", *settings[1:]])
    assert eager.train().notes["compile"] is None
    for name in ("train/loss", "validation/loss"):
        for step, value in eager.values(name).items():
            assert straight.values(name)[step] == pytest.approx(value, rel=1e-5)

    killed = small_training(tmp_path / "killed", tiny_model_dir, settings)
    kill_at(killed, "train/grad_norm", 3)
    with pytest.raises(Killed):
        killed.train()
    torch._dynamo.reset()  # another process has compiled nothing yet
    assert weights(killed.again().train()) == weights(made)


def test_a_model_without_known_layers_is_not_compiled() -> None:
    assert decoder_layers(torch.nn.Linear(2, 2)) == []
    with pytest.raises(ModelError, match=r"MDL-110 train\.compile: Linear does not say which"):
        compile_layers(torch.nn.Linear(2, 2))


@needs_compiler
def test_a_compiler_that_fails_is_told_in_its_own_words(tiny_model_dir: Path, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no space left in the register file")

    small = small_training(tmp_path, tiny_model_dir, ["train.compile=regional", "train.max_steps=1"])
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        with_backend(patch, broken)
        with pytest.raises(ModelError, match=r"MDL-111 train\.compile: torch\.compile failed: .*register file"):
            small.train()
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------------------------- refusals


def recipe(*overrides: str) -> Recipe:
    return parse_recipe("{data: {sources: rows.jsonl}}", ["train.compile=regional", *overrides])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("train.engine=fsdp",), "train.engine is fsdp"),
        (("model.quantisation=nf4",), "model.quantisation is nf4"),
        (("adapter.dropout=0.1",), "adapter.dropout draws anew in each step"),
        (("train.gradient_checkpointing=on",), "activations are recomputed"),
    ],
)
def test_what_compiled_layers_are_not_shown_to_train_with_is_refused(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(RecipeError, match=rf"TRN-061 train\.compile: .*{told}(?s:.*)try: --set train\.compile=off"):
        checks.check(recipe(*overrides))


def test_a_plan_that_recomputes_is_refused_before_a_model_is_loaded(tiny_model_dir: Path, tmp_path: Path) -> None:
    small = small_training(tmp_path, tiny_model_dir, ["train.compile=regional"])
    small.run.write_plan({"choices": {"gradient_checkpointing": True, "micro_batch": 1}, "figures": {}})
    with pytest.raises(RecipeError, match=r"TRN-061 .*activations are recomputed"):
        small.train()


def test_without_a_compiler_it_is_refused_with_the_line_that_installs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(RecipeError, match=r"TRN-060 (?s:.*)no C\+\+ compiler is installed(?s:.*)apt-get install g\+\+"):
        checks.check(recipe())
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    with pytest.raises(RecipeError, match=r"TRN-060 (?s:.*)(Python's own headers are missing|no C\+\+ compiler)"):
        checks.check(recipe())
