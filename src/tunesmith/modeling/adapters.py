"""LoRA adapters through PEFT: attached, saved, loaded, merged. The only door to peft."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.hub import read_json, refuse_odd_files
from tunesmith.modeling.dropout import FunctionalDropout, StepContext
from tunesmith.recipe import Lora
from tunesmith.runs import durable

ADAPTER = "default"  # the name under which peft keeps our one adapter
HEAD = "lm_head"
MAX_RANK = 2**14  # more than the width of most layers
PLAIN_NAME = re.compile(r"[\w.-]{1,200}")
# Settings that have peft import a module, copy layers, or load what is not in the folder.
ASKS_FOR_MORE = (
    "auto_map",
    "auto_mapping",
    "megatron_config",
    "layer_replication",
    "runtime_config",
    "trust_remote_code",
)


def attach_lora(
    model: nn.Module, lora: Lora, seed: int, context: StepContext | None = None, base_name: str | None = None
) -> nn.Module:
    """The model with fresh fp32 adapters; every other weight is frozen. The start follows from the seed alone.

    context: tells dropout which step and examples are on their way; needed where lora.dropout > 0.
    base_name: written into the adapter's files, so that others find the base.
    Raises ModelError MDL-105 when a target names no linear layer of this model.
    """
    check_targets(model, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,  # peft's own draws from a stream; ours is put in its place below
        target_modules=list(lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )
    with torch.random.fork_rng(), _quiet():
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    if base_name:
        adapted.peft_config[ADAPTER].base_model_name_or_path = base_name
    layers = [layer for layer in adapted.modules() if isinstance(layer, LoraLayer)]
    _start(layers, seed)
    if lora.dropout:
        assert context is not None, "dropout needs the step's context"
        for number, layer in enumerate(layers):
            layer.lora_dropout[ADAPTER] = FunctionalDropout(lora.dropout, number, context)
            adapted.peft_config[ADAPTER].lora_dropout = lora.dropout
    return adapted


def check_targets(model: nn.Module, lora: Lora) -> None:
    """Raises ModelError MDL-105 when a target names no linear layer of this model; its weights may be on the meta device."""
    linears = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [target for target in lora.targets if target not in linears]
    if unknown:
        raise ModelError(
            "MDL-105",
            f"the model has no linear layer named {', '.join(unknown)}",
            where="adapter.targets",
            expected=f"some of: {', '.join(sorted(linears))}",
            fix=f"adapter.targets: [{', '.join(sorted(linears - {HEAD}))}]",
        )


@torch.no_grad()
def _start(layers: list[LoraLayer], seed: int) -> None:
    """A uniform (Kaiming, as in microsoft/LoRA), B zero; drawn on the CPU, so that every device starts the same."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        a = layer.lora_A[ADAPTER].weight
        bound = 1 / math.sqrt(a.shape[1])  # kaiming_uniform_ with a = sqrt(5)
        a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
        layer.lora_B[ADAPTER].weight.zero_()


@torch.no_grad()
def draw_b(model: nn.Module, spread: float, seed: int) -> None:
    """New B in every layer, normal with that spread: an adapter that was hardly trained then does something to be measured."""
    generator = torch.Generator().manual_seed(seed)
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        for part in (*layer.lora_B.values(), *layer.lora_embedding_B.values()):
            weight = getattr(part, "weight", part)
            weight.copy_(torch.empty(weight.shape).normal_(0, spread, generator=generator))


def save_adapter(model: nn.Module, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """The adapter as PEFT writes it: adapter_config.json, adapter_model.safetensors; the same adapter, the same bytes.

    weights: the adapter's, whole, by their names in the model; None takes the model's own, which may lie in shards.
    """
    assert isinstance(model, PeftModel), type(model)
    with _quiet():
        # "auto" would ask the hub whether the vocabulary grew.
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=weights)
    (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's empty card; export writes a real one
    config = Path(folder) / "adapter_config.json"
    settings = json.loads(config.read_bytes())
    settings["target_modules"] = sorted(settings["target_modules"])  # a set in peft: its order changes with the process
    durable.write_json(config, dict(sorted(settings.items())))


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """The model with a saved adapter, in evaluation mode. Raises ModelError MDL-107 when they do not fit together, MDL-113
    for an adapter that asks for more than matrices beside layers."""
    refuse_foreign(folder)
    try:
        with _quiet():
            return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as error:
        raise _does_not_fit(folder, error) from error


def load_adapters(model: nn.Module, folders: Sequence[Path]) -> list[LoraLayer]:
    """The model with several saved adapters beside each other, each under its number ("0", "1" ...), none of them active.

    Returns the layers that hold them; what a layer does with them is up to its caller (modeling/mixing.py).
    Raises ModelError MDL-107 when one does not fit, MDL-125 for adapters that are more than low-rank sums beside linear layers.
    """
    adapted: nn.Module = model
    for number, folder in enumerate(folders):
        refuse_foreign(folder)
        _refuse_more_than_lora(folder)
        try:
            with _quiet():
                if number == 0:
                    adapted = PeftModel.from_pretrained(model, str(folder), adapter_name="0", is_trainable=False)
                else:
                    adapted.load_adapter(str(folder), adapter_name=str(number), is_trainable=False)
        except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as error:
            raise _does_not_fit(folder, error) from error
    adapted.eval()
    layers = [layer for layer in adapted.modules() if isinstance(layer, LoraLayer)]
    head = model.get_output_embeddings()
    for layer in layers:
        if layer is head or not all(isinstance(part, nn.Linear) for part in layer.lora_A.values()) or not layer.lora_A:
            raise _more_than_lora(folders[0], "the output layer or an embedding")
    return layers


def refuse_foreign(folder: Path) -> None:
    """An adapter's files before peft reads them: it would unpickle adapter_model.bin, import what the settings name, and run
    patterns of a stranger over the names of all layers. Raises ModelError MDL-113."""
    try:
        refuse_odd_files(folder)
        config = read_json(folder / "adapter_config.json")
    except (OSError, ValueError, ModelError) as error:
        raise _foreign(
            folder, getattr(error, "headline", None) or f"adapter_config.json cannot be read: {error}"
        ) from error
    if not isinstance(config, dict):
        raise _foreign(folder, "its adapter_config.json is no object")
    if not (folder / "adapter_model.safetensors").is_file():
        pickles = [name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists()]
        raise _foreign(
            folder,
            f"it has only {pickles[0]} (pickle: it can run code)" if pickles else "it has no adapter_model.safetensors",
        )
    if config.get("peft_type", "LORA") != "LORA":
        raise _foreign(folder, f"its kind is {str(config['peft_type'])[:80]}")
    for name in ASKS_FOR_MORE:
        if config.get(name):
            raise _foreign(folder, f"{name} is {str(config[name])[:80]}")
    rank = config.get("r")
    if type(rank) is not int or not 0 < rank <= MAX_RANK:
        raise _foreign(folder, f"r is {str(rank)[:80]}")
    for name in (
        "target_modules",
        "modules_to_save",
        "exclude_modules",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
    ):
        told = config.get(name)
        words = [told] if isinstance(told, str) else list(told or ())
        if not all(isinstance(word, str) and PLAIN_NAME.fullmatch(word) for word in words):
            raise _foreign(folder, f"{name} holds a pattern: {str(told)[:80]}")
    ranks = (config.get("rank_pattern") or {}).values()
    if not all(type(value) is int and 0 < value <= MAX_RANK for value in ranks):
        raise _foreign(folder, "rank_pattern holds what is no rank")


def _foreign(folder: Path, why: str) -> ModelError:
    return ModelError(
        "MDL-113",
        f"the adapter in {folder} is refused: {why}",
        expected="LoRA as safetensors, with a rank and the names of layers",
        fix="save it again by PEFT (safe_serialization=True), without what is named here",
    )


def _refuse_more_than_lora(folder: Path) -> None:
    """Raises ModelError MDL-125, or MDL-107 when there is no adapter."""
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise _does_not_fit(folder, error) from error
    more = {
        "peft_type": config.get("peft_type") not in (None, "LORA"),
        "use_dora": bool(config.get("use_dora")),
        "modules_to_save": bool(config.get("modules_to_save")),
        "bias": config.get("bias", "none") != "none",
        "trainable_token_indices": bool(config.get("trainable_token_indices")),
        "target_parameters": bool(config.get("target_parameters")),
    }
    if found := [name for name, is_set in more.items() if is_set]:
        raise _more_than_lora(folder, ", ".join(f"{name}: {config[name]}" for name in found))


def _more_than_lora(folder: Path, what: str) -> ModelError:
    return ModelError(
        "MDL-125",
        f"the adapter in {folder} changes more than linear layers inside the model ({what})",
        where="serve.adapters",
        expected="LoRA beside linear layers, without the output layer",
        fix="serve that run by itself: its merged model has everything in it",
    )


def _does_not_fit(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        "MDL-107",
        f"the adapter in {folder} does not fit this model: {str(error).splitlines()[0]}",
        expected="an adapter trained on this base",
        fix="give the base model that the adapter's adapter_config.json names",
    )


def merge_adapter(model: nn.Module) -> nn.Module:
    """The plain model with the adapter folded into its weights. The model must be in 16 or 32 bits, not quantised.

    Raises ModelError MDL-106 when a merged weight is not finite, MDL-123 for a quantised base.
    """
    assert isinstance(model, PeftModel), type(model)
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ModelError(
            "MDL-123",
            "an adapter is never merged into quantised weights: rounding them once more would change what it learned",
            where="model.quantisation",
            expected="the base in 16 or 32 bits",
            fix="load the base without quantisation and merge there, as `tunesmith export` does",
        )
    try:
        with _quiet():
            return model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # peft: "NaNs detected in the merged weights"
        raise ModelError(
            "MDL-106",
            f"the adapter cannot be merged: {error}",
            expected="finite weights in base and adapter",
            fix="train again with a lower train.learning_rate; or export the adapter alone: export.merged: false",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """peft warns of tied weights it does not touch and of cards it cannot find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
