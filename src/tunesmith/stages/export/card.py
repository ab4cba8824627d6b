"""The model card: what it is, what it was made from, how it scored, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.tree import Nf4, Quantisation


def model_card(
    spec: Recipe, evaluation: Mapping[str, Any], training: Mapping[str, Any], statistics: Mapping[str, Any], kind: str
) -> str:
    """README.md of an exported folder. kind: "merged model" or "adapter". Holds no date: the same export, the same bytes."""
    lines = [f"# {spec.name}", "", f"A {kind} made by tunesmith from `{spec.model.base}`.", "", "## Scores", ""]
    lines += ["Base and tuned model on the same held-out items, greedy decoding.", ""]
    lines += ["| test part | n | metric | base | tuned | gain (interval) |", "|---|---|---|---|---|---|"]
    for part, found in evaluation["parts"].items():
        for metric, values in found["metrics"].items():
            gain = values["gain"]
            lines.append(
                f"| {part} | {found['n']} | {metric} | {values['base']['value']:.3f} | {values['tuned']['value']:.3f} "
                f"| {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}) |"
            )
    gate = evaluation["gate"]
    lines += ["", f"Gate: **{gate['verdict']}**: {gate['reason']}.", "", "## Data", ""]
    lines += [
        f"{statistics['read']:,} rows read, {statistics['used']:,} used, {statistics['dropped']:,} dropped, {statistics['quarantined']:,} set apart."
    ]
    lines += [f"- {item['rule']}: {item['dropped']:,}" for item in statistics["funnel"]]
    adapter = (
        f"LoRA, rank {spec.adapter.rank}, alpha {spec.adapter.alpha:g}"
        if isinstance(spec.adapter, Lora)
        else "all weights"
    )
    lines += [
        "",
        "## Training",
        "",
        f"{adapter}; {training['steps']} steps of {spec.train.batch_size} examples, learning rate {spec.train.learning_rate:g}, "
        f"{training['tokens']:,} tokens, seed {spec.seed}.",
    ]
    quantisation = spec.model.quantisation
    if quantisation.type != "none":
        lines.append(
            f"The base was held as {quantisation.type} while the adapter was trained; "
            + (
                "the adapter is merged into the unquantised base."
                if kind == "merged model"
                else f"the scores are those of {'the unquantised base' if spec.export.merged else 'that base'} with the adapter."
            )
        )
    lines += ["", "## Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if kind == "adapter":
        judged_quantised = quantisation.type != "none" and not spec.export.merged
        settings = f", quantization_config={_settings(quantisation)}" if judged_quantised else ""
        lines += [
            *(["from transformers import BitsAndBytesConfig"] if judged_quantised else []),
            "from peft import PeftModel",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{spec.model.base}"{settings})',
            'model = PeftModel.from_pretrained(base, "this-folder")',
        ]
    else:
        lines += ['model = AutoModelForCausalLM.from_pretrained("this-folder")']
    lines += [
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")',
        "```",
        "",
        "The licence of the base model holds for this model as well.",
        "",
    ]
    return "\n".join(lines)


def _settings(quantisation: Quantisation) -> str:
    """As transformers is told to load such a base."""
    if isinstance(quantisation, Nf4):
        double = f", bnb_4bit_use_double_quant={quantisation.double_quantisation}"
        return f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"{double})'
    return "BitsAndBytesConfig(load_in_8bit=True)"
