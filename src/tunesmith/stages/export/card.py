"""The model card: what it is, what it was made from, how it scored, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.tree import Nf4, Quantisation
from tunesmith.units import format_gain, format_score


def model_card(
    spec: Recipe, evaluation: Mapping[str, Any], training: Mapping[str, Any], statistics: Mapping[str, Any], kind: str
) -> str:
    """README.md of an exported folder. kind: "merged model" or "adapter". Holds no date: the same export, the same bytes."""
    parts = (
        _header(spec, kind),
        [f"# {spec.name}", "", f"A {kind} made by tunesmith from `{_base_name(spec)}`.", ""],
        _scores(evaluation),
        _data(statistics),
        _training(spec, training, kind),
        _use(spec, kind),
    )
    return "\n".join(line for part in parts for line in part)


def _header(spec: Recipe, kind: str) -> list[str]:
    """The fields that model hubs read. A base that is a folder or ships with the package is no hub's name."""
    is_hub_name = _base_name(spec) == spec.model.base and ":" not in spec.model.base
    return [
        "---",
        *([f"base_model: {spec.model.base}"] if is_hub_name else []),
        f"library_name: {'peft' if kind == 'adapter' else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: [tunesmith, {spec.adapter.type}]",
        "---",
        "",
    ]


def _base_name(spec: Recipe) -> str:
    """The base without folders of the machine that trained it."""
    base = spec.model.base
    return base.rstrip("/").rpartition("/")[2] if base.startswith(("/", ".", "~")) else base


def _scores(evaluation: Mapping[str, Any]) -> list[str]:
    lines = ["## Scores", "", "Base and tuned model on the same held-out rows, greedy decoding.", ""]
    if evaluation["parts"]:
        lines += ["| test part | metric | n | base | tuned | gain (interval) |", "|---|---|---|---|---|---|"]
    else:
        lines += ["No row was held out."]
    for part, found in evaluation["parts"].items():
        for metric, values in found["metrics"].items():
            gain = values["gain"]
            name = metric if values["higher_is_better"] else f"{metric} (lower is better)"
            lines.append(
                f"| {_cell(part)} | {_cell(name)} | {gain['n']} | {format_score(values['base']['value'])} "
                f"| {format_score(values['tuned']['value'])} | {format_gain(gain['value'])} "
                f"({format_gain(gain['low'])} to {format_gain(gain['high'])}) |"
            )
    gate = evaluation["gate"]
    confidence = evaluation["settings"]["confidence"]
    lines += ["", f"A gain is positive where the tuned model is better; intervals are paired, at {confidence:.0%}."]
    return [*lines, f"Gate: **{gate['verdict']}**: {gate['reason']}.", ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _data(statistics: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Data",
        "",
        f"{statistics['read']:,} rows read, {statistics['used']:,} used, {statistics['dropped']:,} dropped, "
        f"{statistics['quarantined']:,} set apart.",
        "",
    ]
    return [*lines, *(f"- {item['rule']}: {item['dropped']:,}" for item in statistics["funnel"]), ""]


def _training(spec: Recipe, training: Mapping[str, Any], kind: str) -> list[str]:
    adapter = "all weights"
    if isinstance(spec.adapter, Lora):
        adapter = f"LoRA, rank {spec.adapter.rank}, alpha {spec.adapter.alpha:g}"
    quantised = ""
    if spec.model.quantisation.type != "none":
        judged = "the unquantised base" if spec.export.merged else "that base"
        quantised = f"The base was held as {spec.model.quantisation.type} while the adapter was trained; " + (
            "the adapter is merged into the unquantised base."
            if kind == "merged model"
            else f"the scores are those of {judged} with the adapter."
        )
    return [
        "## Training",
        "",
        f"{adapter}; {training['steps']} steps of {spec.train.batch_size} examples, learning rate {spec.train.learning_rate:g}, "
        f"{training['tokens']:,} tokens, seed {spec.seed}.",
        *([quantised] if quantised else []),
        "",
    ]


def _use(spec: Recipe, kind: str) -> list[str]:
    if kind == "adapter":
        judged_quantised = spec.model.quantisation.type != "none" and not spec.export.merged
        settings = f", quantization_config={_settings(spec.model.quantisation)}" if judged_quantised else ""
        load = [
            *(["from transformers import BitsAndBytesConfig"] if judged_quantised else []),
            "from peft import PeftModel",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{_base_name(spec)}"{settings})',
            'model = PeftModel.from_pretrained(base, "this-folder")',
        ]
    else:
        load = ['model = AutoModelForCausalLM.from_pretrained("this-folder")']
    return [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *load,
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")',
        "```",
        "",
        "Greedy decoding is what was evaluated. The licence of the base model holds for this model as well.",
        "",
    ]


def _settings(quantisation: Quantisation) -> str:
    """As transformers is told to load such a base."""
    if isinstance(quantisation, Nf4):
        double = f", bnb_4bit_use_double_quant={quantisation.double_quantisation}"
        return f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"{double})'
    return "BitsAndBytesConfig(load_in_8bit=True)"
