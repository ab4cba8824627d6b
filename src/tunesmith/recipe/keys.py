"""The keys of the tree by dotted path: what each one is, and which one a wrong name most likely meant."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunesmith.recipe.tree import Recipe

# Names that other tools use for the same thing; a wrong key is answered with ours.
ELSEWHERE = {
    "lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "max_seq_length": "data.max_tokens",
    "max_length": "data.max_tokens",
    "sequence_len": "data.max_tokens",
    "cutoff_len": "data.max_tokens",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.targets",
    "lora_target_modules": "adapter.targets",
    "base_model": "model.base",
    "model_name_or_path": "model.base",
    "datasets": "data.sources",
    "dataset": "data.sources",
    "warmup_ratio": "train.schedule.warmup",
    "lr_scheduler_type": "train.schedule.type",
    "max_grad_norm": "train.max_grad_norm",
    "bf16": "model.precision",
    "fp16": "model.precision",
    "save_steps": "train.save_every",
    "eval_steps": "train.evaluate_every",
    "save_total_limit": "train.keep_checkpoints",
    "chat_template": "model.template",
    "attn_implementation": "model.attention",
    "torch_compile": "train.compile",
    "use_liger_kernel": "train.kernels",
    "cache_implementation": "evaluate.cache",
    "quantization": "model.quantisation",
    "quantization_config": "model.quantisation",
    "load_in_4bit": "model.quantisation",
    "load_in_8bit": "model.quantisation",
    "bnb_4bit_quant_type": "model.quantisation",
    "bnb_4bit_use_double_quant": "model.quantisation.double_quantisation",
    "bnb_4bit_compute_dtype": "model.precision",
    "optim": "train.optimizer",
    "report_to": "track.to",
    "wandb_project": "track.wandb.project",
    "warmup_steps": "train.schedule.warmup",
    "metric_for_best_model": "train.best_metric",
    "early_stopping_patience": "train.early_stopping.patience",
    "early_stopping_threshold": "train.early_stopping.min_delta",
    "load_best_model_at_end": "train.keep",
    "adam_beta1": "train.optimizer.beta1",
    "adam_beta2": "train.optimizer.beta2",
    "adam_epsilon": "train.optimizer.epsilon",
    "lr_scheduler": "train.schedule.type",
    "lora_target": "adapter.targets",
    "finetuning_type": "adapter.type",
    "sample_packing": "train.packing",
    "val_set_size": "data.split.validation",
    "val_size": "data.split.validation",
    "quantization_bit": "model.quantisation",
    "double_quantization": "model.quantisation.double_quantisation",
    "flash_attn": "model.attention",
    "flash_attention": "model.attention",
    "deepspeed": "train.engine.config",
    "fsdp": "train.engine.type",
    "fsdp_config": "train.engine",
    "num_processes": "train.processes",
    "nproc_per_node": "train.processes",
    "compute_metrics": "evaluate.metrics",
}


@dataclass(frozen=True)
class Key:
    """One leaf of the tree. expected: its type and limits in words; owner: the module that reads it."""

    path: str
    doc: str
    unit: str
    owner: str
    default: Any
    other: Any
    expected: str


@cache
def all_keys() -> dict[str, Key]:
    """Every leaf by its path, in the order of the tree; an element of `data.sources` stands as `data.sources.0`."""
    return {key.path: key for key in _walk(Recipe, "")}


@cache
def sections() -> frozenset[str]:
    """Paths that hold further keys."""
    return frozenset(path.rsplit(".", n)[0] for path in all_keys() for n in range(1, path.count(".") + 1))


@cache
def typed_sections() -> dict[str, str | None]:
    """Sections that are chosen by a word, and the word that is meant where none is written.

    `adapter: full` stands for {type: full}, and {rank: 8} for {type: lora, rank: 8}.
    """
    return dict(_typed(Recipe, ""))


def _typed(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        variants = list(_models(field.annotation))
        if variants and all("type" in variant.model_fields for variant in variants):
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            yield f"{prefix}{name}", getattr(default, "type", None)
        below = f"{prefix}{name}.0." if get_origin(field.annotation) is tuple else f"{prefix}{name}."
        for variant in variants:
            yield from _typed(variant, below)


@cache
def variants_of(section: str) -> dict[str, tuple[str, ...]]:
    """The keys of each variant of a section, by its word: {"lora": ("type", "rank", ...), "full": ("type",)}."""
    model: list[type[BaseModel]] = [Recipe]
    for part in section.split("."):
        if not part.isdigit():
            model = [v for m in model if part in m.model_fields for v in _models(m.model_fields[part].annotation)]
    return {
        word: tuple(variant.model_fields)
        for variant in model
        if "type" in variant.model_fields
        for word in get_args(variant.model_fields["type"].annotation)
    }


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        inner = list(_models(field.annotation))
        if not inner:
            yield _leaf(path, field)
        seen: set[str] = set()
        types = [str(variant.model_fields["type"].default) for variant in inner if "type" in variant.model_fields]
        below = f"{path}.0." if get_origin(field.annotation) is tuple else f"{path}."
        for variant in inner:
            for key in _walk(variant, below):
                if key.path not in seen:
                    seen.add(key.path)
                    if len(types) > 1 and key.path == f"{below}type":  # the word that chooses among the variants
                        meant = None if field.is_required() else field.get_default(call_default_factory=True)
                        word = getattr(meant, "type", key.default)
                        key = replace(key, doc=field.description or "", expected=" | ".join(types), default=word)
                    yield key


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None:
        for argument in get_args(annotation):
            yield from _models(argument)


def _leaf(path: str, field: FieldInfo) -> Key:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    limits = [text for item in field.metadata if (text := _limit(item))]
    expected = ", ".join([_words(field.annotation), *limits])
    return Key(
        path,
        field.description or "",
        str(extra.get("unit", "")),
        str(extra.get("owner", "")),
        default,
        extra.get("other"),
        expected,
    )


def _limit(item: Any) -> str:
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if getattr(item, name, None) is not None:
            return f"{sign} {getattr(item, name)}"
    if getattr(item, "min_length", None):
        return f"at least {item.min_length} item{'s' if item.min_length > 1 else ''}"
    if getattr(item, "pattern", None):
        return f"matching {item.pattern}"
    return ""


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is Annotated:
        limits = ", ".join(
            filter(None, (_limit(item) for inner in arguments[1:] for item in getattr(inner, "metadata", [inner])))
        )
        return f"{_words(arguments[0])} {limits}".strip()
    if origin in (Union, types.UnionType):
        return " | ".join(map(_words, arguments))
    if origin is tuple:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return "mapping of names to names" if arguments[1] is str else "mapping of keys to what they may be"
    return {int: "whole number", float: "number", str: "text", bool: "true | false"}.get(annotation, str(annotation))


# Names whose value is only a factor of ours.
FACTORS = ("per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps")


def caution(wrong: str) -> str:
    """What to mind when the value of another tool's key is carried over to ours; empty where it is the same value."""
    is_factor = wrong.rsplit(".", 1)[-1] in FACTORS
    return "the product: per device x accumulation steps x processes" if is_factor else ""


def did_you_mean(wrong: str) -> str | None:
    """The key that a wrong path most likely meant: the same name elsewhere, another tool's name, or the nearest one."""
    last = wrong.rsplit(".", 1)[-1]
    known = [*all_keys(), *sections()]
    if last in ELSEWHERE and ELSEWHERE[last] != wrong:
        return ELSEWHERE[last]
    same = [path for path in known if path.rsplit(".", 1)[-1] == last and path != wrong]
    if same:
        return min(same, key=lambda path: (path.count("."), path))
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.75)
    if near:
        return near[0]
    names = {path.rsplit(".", 1)[-1]: path for path in known}
    near = difflib.get_close_matches(last, list(names), n=1, cutoff=0.7)
    return names[near[0]] if near else None
