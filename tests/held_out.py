"""Small evaluations for tests: a Dataset with held-out chats and texts, an adapter that does something, a Run around them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.modeling.adapters import attach_lora, load_adapter, save_adapter
from tunesmith.modeling.load import load_model
from tunesmith.recipe import Lora, Recipe, parse_recipe
from tunesmith.runs.dataset import Dataset, DatasetWriter
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact
from tunesmith.scoring.generation import generate_greedy
from tunesmith.scoring.items import Item
from tunesmith.text.example import Message
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer

CPU = torch.device("cpu")
NOTES = {
    "steps": 2, "result_step": 2, "best_step": None, "best_loss": None, "tokens": 100, "skipped": [], "stopped_early": False,
    "micro_batch": 2, "gradient_checkpointing": False, "precision": "fp32", "attention": "sdpa", "threads": 1, "processes": 1,
}  # fmt: skip
STATISTICS = {
    "read": 12, "used": 12, "quarantined": 0, "dropped": 0, "truncated": 0, "funnel": [], "formats": {"messages": 12},
    "splits": {
        name: {"rows": 4, "tokens": 80, "learned_tokens": 40, "p50": 20, "p90": 20, "p99": 20, "max": 20}
        for name in ("train", "validation", "test")
    },
    "lengths": {"counts": [12], "edges": [20.0, 21.0]},
}  # fmt: skip


def speaker(folder: Path, tiny_model_dir: Path, *, tied: bool = False, **config: object) -> Path:
    """The tiny model with weights wide enough that its greedy answers vary from prompt to prompt."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    made = AutoConfig.from_pretrained(tiny_model_dir, tie_word_embeddings=tied, initializer_range=0.3, **config)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


def adapter(folder: Path, model_dir: Path, update: float = 0.1, **lora: object) -> Path:
    """An adapter that is not zero, as after training."""
    model, draw = attach_lora(load_model(model_dir, device=CPU), Lora(**lora), 1), torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, update, generator=draw)
    save_adapter(model, folder)
    return folder


@dataclass
class Evaluated:
    """What stands before evaluation: recipe, run, inputs; `evaluate` and `export` call the stages as the runner does."""

    run: Run
    recipe: Recipe
    inputs: dict[str, Artifact]

    def evaluate(self, key: str = "e1") -> Artifact:
        from tunesmith.stages.evaluate.run import run as evaluate

        self.run.stage_key = key
        made = evaluate(self.recipe, self.inputs, self.run)
        self.run.set_outputs("evaluate", made)
        self.inputs["evaluation"] = made["evaluation"]
        return made["evaluation"]

    def export(self, key: str = "x1") -> dict[str, Artifact]:
        from tunesmith.stages.export.run import run as export

        self.run.stage_key = key
        made = export(self.recipe, self.inputs, self.run)
        self.run.set_outputs("export", made)
        return made

    def again(self, *overrides: str) -> Evaluated:
        """The same inputs under a changed recipe, in a Run of its own."""
        recipe = parse_recipe(self.recipe.model_dump_json(), overrides)
        run = Run.open_or_create(self.run.workspace, recipe)
        run.allowed_code = self.run.allowed_code
        inputs = {name: artifact for name, artifact in self.inputs.items() if name != "evaluation"}
        return Evaluated(run, recipe, inputs)


def evaluated(
    workspace: Path,
    model_dir: Path,
    adapter_dir: Path,
    *,
    right: str = "tuned",
    overrides: Sequence[str] = (),
    num_items: int = 8,
    num_texts: int = 0,
    name: str = "small",
) -> Evaluated:
    """Held-out chats whose expected answers are what one of the two models says greedily, and plain texts.

    right: tuned (a model that should ship), base (one that got worse) or none (neither is ever right).
    """
    settings = [
        f"model.base={model_dir}", "model.precision=fp32", "evaluate.max_new_tokens=12", "evaluate.batch_size=4",
        "evaluate.metrics=[exact_match]", f"name={name}",
    ]  # fmt: skip
    recipe = parse_recipe("data: {sources: rows.jsonl}", [*settings, *overrides])
    run = Run.open_or_create(workspace, recipe)
    run.record("run", "run/started", "small")
    with run.store.create("Adapter", f"a-{adapter_dir.name}", producer={}, notes=NOTES) as draft:
        for path in adapter_dir.glob("adapter_*"):
            (draft.path / path.name).write_bytes(path.read_bytes())
    trained = draft.artifact
    files_tokenizer = load_tokenizer_of(model_dir)
    with run.store.create("Dataset", f"d-{right}-{num_items}-{num_texts}", producer={}) as draft:
        expected = answers_to(model_dir, adapter_dir, files_tokenizer, prompts(num_items), right)
        fill(draft.path, files_tokenizer, prompts(num_items), expected, num_texts)
    assert trained is not None
    assert draft.artifact is not None
    run.set_outputs("prepare", {"dataset": draft.artifact})
    run.set_outputs("train", {"model": trained})
    return Evaluated(run, recipe, {"dataset": draft.artifact, "model": trained})


def load_tokenizer_of(model_dir: Path) -> Tokenizer:
    from tunesmith import hub

    return load_tokenizer(hub.resolve(str(model_dir), None), "auto")


def prompts(count: int) -> list[str]:
    words = ("quick", "brown", "fox", "lazy", "dog", "answers")
    return [" ".join([words[number % 6]] * (1 + number % 5)) + f" {number}" for number in range(count)]


def answers_to(
    model_dir: Path, adapter_dir: Path, tokenizer: Tokenizer, questions: Sequence[str], right: str
) -> list[str]:
    if right == "none":
        return ["never said"] * len(questions)
    model: nn.Module = load_model(model_dir, device=CPU)
    if right == "tuned":
        model = load_adapter(model, adapter_dir)
    items = [item(number, tokenizer, question) for number, question in enumerate(questions)]
    made = generate_greedy(model, tokenizer, items, max_new_tokens=12, batch_size=8)
    return [answer.text for answer in made]


def item(row: int, tokenizer: Tokenizer, question: str, expected: str = "") -> Item:
    ids = tokenizer.encode_prompt([Message("user", question)])
    return Item(row, "test", ({"role": "user", "content": question},), expected, ids)


def fill(
    folder: Path, tokenizer: Tokenizer, questions: Sequence[str], expected: Sequence[str], num_texts: int = 0
) -> Dataset:
    """Chats in the part "test", texts in the part "texts", one training row."""
    writer, items = DatasetWriter(folder), []
    for row, (question, answer) in enumerate(zip(questions, expected, strict=True)):
        prompt = tokenizer.encode_prompt([Message("user", question)])
        answer_ids = tokenizer.hf.encode(answer or " ", add_special_tokens=False)
        ids = np.array([*prompt, *answer_ids], np.int32)
        writer.add(ids, [[len(prompt), len(ids), 1.0]], row, "test")
        messages = [{"role": "user", "content": question}]
        items.append(entry(row, "test", messages=messages, expected=answer, prompt_ids=prompt))
    for row in range(len(questions), len(questions) + num_texts):
        ids = np.array(tokenizer.hf.encode(f"the lazy dog {row} and the fox", add_special_tokens=False), np.int32)
        writer.add(ids, [[0, len(ids), 1.0]], row, "test")
        items.append(entry(row, "texts"))
    last = len(questions) + num_texts
    writer.add(np.arange(10, 30, dtype=np.int32), [[5, 20, 1.0]], last, "train")
    writer.close(items=items, statistics=STATISTICS)
    return Dataset(folder)


def entry(row: int, part: str, **asked: object) -> dict[str, object]:
    plain = {"messages": None, "expected": None, "prompt_ids": None}
    return {"row": row, "part": part, "split": "test", "key": f"key-{row}", **plain, **asked}


def finished(
    workspace: Path, model_dir: Path, adapter_dir: Path, name: str, *overrides: str, items: int = 8
) -> Evaluated:
    """A Run up to its export."""
    small = evaluated(workspace, model_dir, adapter_dir, name=name, overrides=overrides, num_items=items)
    small.evaluate(f"e-{name}")
    small.export(f"x-{name}")
    return small


def prove_served(small: Evaluated, *overrides: str) -> dict[str, Any]:
    """parity.json of the stage serve, called as the runner does."""
    from tunesmith.stages.serve.run import run as stage

    again = small.again(*overrides) if overrides else small
    for name in ("train", "evaluate", "export"):
        again.run.set_outputs(name, small.run.outputs(name) or {})
    again.run.stage_key = f"s-{again.run.id}"
    inputs = {**(small.run.outputs("evaluate") or {}), **(small.run.outputs("export") or {})}
    made = stage(again.recipe, inputs, again.run)
    return json.loads((made["parity"].path / "parity.json").read_bytes())
