"""The model card: what it is, what it was made from, how it scored, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.recipe import Lora, Recipe


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
    lines += ["", "## Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if kind == "adapter":
        lines += [
            "from peft import PeftModel",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{spec.model.base}")',
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
