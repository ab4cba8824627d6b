"""How far a right merge moves logits, and how far a wrong one: `python benchmarks/export_proof.py` -> results/export-proof.json.

The limits of stages/export/proof.py come from here. Random adapters on models of 2 to 64 layers, each trained and exported
number format; differences of logits in rounding steps of the largest logit of a row, the largest over all rows. `wrong`:
the same merge with a mistake in it (the scale 5 % off; the adapter of one v_proj left out); in fp32 and in bf16.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from record import ROOT, store
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.modeling.adapters import attach_lora, load_adapter, merge_adapter, save_adapter
from tunesmith.modeling.load import DTYPES, load_model
from tunesmith.recipe import Lora
from tunesmith.stages.export.proof import ROUNDING, STEPS, coarser

CPU = torch.device("cpu")
FORMATS = (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"), ("fp32", "fp16"))
UPDATES = (0.02, 0.002)  # standard deviation of B: a strong adapter and a weak one
ROWS, LENGTH = 4, 48


def main() -> None:
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {}
    for name, folder in models():
        for update in UPDATES:
            adapter, ids = make_adapter(folder, update)
            for trained_in, exported_in in FORMATS:
                found = measure(folder, adapter, ids, trained_in, exported_in)
                figures[f"{name}, update {update:g}, {trained_in} to {exported_in}"] = found
                print(name, update, trained_in, exported_in, found, flush=True)
    of = {True: [], False: []}
    for setting, found in figures.items():
        of[setting.endswith("fp32 to fp32")].append(found)
    store(
        "export-proof",
        {
            "largest_steps": {"fp32": max(f["right"] for f in of[True]), "below": max(f["right"] for f in of[False])},
            "smallest_wrong_steps": {"fp32": min(min(f["wrong"].values()) for f in of[True])},
            "limits_in_steps": STEPS,
            "steps": figures,
        },
    )


def models() -> Iterator[tuple[str, Path]]:
    yield "tunesmith-tiny (5 layers, trained)", ROOT / "src" / "tunesmith" / "hub" / "builtin" / "tunesmith-tiny"
    for width, layers, vocabulary, spread in ((64, 2, 512, 0.02), (256, 24, 2048, 0.06), (512, 12, 4096, 0.02), (128, 64, 1024, 0.05)):  # fmt: skip
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=max(2, width // 64), max_position_embeddings=512, tie_word_embeddings=False,
            initializer_range=spread,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            LlamaForCausalLM(config).save_pretrained(folder)
            yield f"random, {layers} layers of {width}, weights {spread:g}", Path(folder)


def make_adapter(folder: Path, update: float) -> tuple[Path, list[torch.Tensor]]:
    """A LoRA adapter whose B is drawn at random, and rows of random ids."""
    base = load_model(folder, device=CPU)
    vocabulary = base.config.vocab_size
    model, draw = attach_lora(base, Lora(), seed=1), torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, update, generator=draw)
    adapter = Path(tempfile.mkdtemp(prefix="tunesmith-export-proof-"))
    save_adapter(model, adapter)
    return adapter, [torch.randint(5, vocabulary, (1, LENGTH), generator=draw) for _ in range(ROWS)]


def measure(folder: Path, adapter: Path, ids: list[torch.Tensor], trained_in: str, exported_in: str) -> dict[str, Any]:
    def trained(dtype: str) -> nn.Module:
        return load_adapter(load_model(folder, dtype=dtype, device=CPU), adapter)

    def merged(spoil: Callable[[nn.Module], None] | None = None) -> nn.Module:
        model = trained(trained_in if trained_in == exported_in else "fp32")
        if spoil:
            spoil(model)
        return merge_adapter(model).to(DTYPES[exported_in])

    reference, step = trained(trained_in), ROUNDING[coarser(trained_in, exported_in)]
    right = steps(reference, merged(), ids, step)
    mistakes = MISTAKES if trained_in == exported_in else {}
    wrong = {name: steps(reference, merged(spoil), ids, step) for name, spoil in mistakes.items()}
    return {"right": round(right, 2), "wrong": {name: round(value, 2) for name, value in wrong.items()}}


@torch.inference_mode()
def steps(reference: nn.Module, other: nn.Module, ids: list[torch.Tensor], step: float) -> float:
    """The largest difference of any row's logits, in rounding steps of that row's largest."""
    largest = 0.0
    for ids_1T in ids:
        one, two = (model(input_ids=ids_1T).logits.float() for model in (reference, other))
        largest = max(largest, float((one - two).abs().max() / one.abs().max()) / step)
    return largest


def wrong_scale(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 0.95


def one_left_out(model: nn.Module) -> None:
    layer = next(m for name, m in model.named_modules() if name.endswith("layers.1.self_attn.v_proj"))
    layer.lora_B["default"].weight.data.zero_()


MISTAKES = {"scale 5 % off": wrong_scale, "one v_proj left out": one_left_out}

if __name__ == "__main__":
    main()
