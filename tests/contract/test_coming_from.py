"""docs/coming-from.md does not lie: other tools' code is run, our recipes are loaded, and both mean the same."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import re
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tunesmith.recipe import Recipe, code_named, load_recipe
from tunesmith.recipe.keys import all_keys, did_you_mean, sections

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "coming-from.md").read_text()

# The blocks of each section, in order: each is unpacked by a test below.
BLOCKS = {
    "TrainingArguments": "python sh yaml sh",
    "SFTConfig": "python yaml",
    "LoraConfig": "python yaml",
    "BitsAndBytesConfig": "python yaml",
    "DeepSpeed JSON": "json yaml yaml",
    "wandb.init": "python yaml",
    "EarlyStoppingCallback": "python yaml",
    "TrainerCallback": "python python yaml",
    "compute_metrics": "python python yaml",
    "generate": "python yaml",
    "Axolotl": "yml yaml",
    "LLaMA-Factory": "yml yaml",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: their names, our keys, and the keys that the remark speaks of."""

    theirs: list[str]
    ours: list[str]
    remark: list[str]
    words: tuple[str, str]


@cache
def parts() -> dict[str, str]:
    """Text of each section by its title."""
    _, *pieces = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    return {title: text for title, _, text in (piece.partition("\n") for piece in pieces)}


def blocks(title: str) -> list[str]:
    return [block for _, block in re.findall(r"^```(\w+)\n(.*?)^```", parts()[title], re.MULTILINE | re.DOTALL)]


def rows(title: str) -> list[Row]:
    found = []
    for line in re.findall(r"^\| `.*\|$", parts()[title], re.MULTILINE):
        theirs, ours, remark = (cell.strip() for cell in line.strip("|").split("|", 2))
        found.append(Row(*(re.findall(r"`([^`]+)`", cell) for cell in (theirs, ours, remark)), (ours, remark)))
    return found


def loaded(block: str, folder: Path) -> Recipe:
    """A block as a recipe in a folder of its own."""
    if "data" not in yaml.safe_load(block):
        block = "data: {sources: rows.jsonl}\n" + block
    path = folder / "recipe.yaml"
    path.write_text(block)
    return load_recipe(path)


def executed(source: str, **names: Any) -> dict[str, Any]:
    space = {"__name__": "theirs", **names}
    exec(compile(source, "coming-from.md", "exec"), space)
    return space


def written(source: str, name: str) -> dict[str, Any]:
    """The arguments of a call, as they stand in the text."""
    (call,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name
    )
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}


# ------------------------------------------------------------------------------------------------------- the whole page


def test_every_block_of_the_page_is_run_by_a_test_below() -> None:
    kinds = {title: " ".join(re.findall(r"^```(\w+)$", text, re.MULTILINE)) for title, text in parts().items()}
    assert kinds == BLOCKS
    assert "```" not in PAGE.partition("\n## ")[0]


def exists(name: str) -> bool:
    flags = {flag.split()[1] for flag in json.loads((ROOT / "tests/contract/snapshots/flags.json").read_text())}
    if name.startswith("--"):
        return name in flags
    return name in all_keys() or name in sections() or name in ("on_step", "on_validation", "on_save", "on_end")


@pytest.mark.parametrize("title", [title for title in BLOCKS if title != "DeepSpeed JSON"])
def test_every_key_of_ours_in_the_tables_exists_and_every_none_has_a_reason(title: str) -> None:
    assert rows(title)
    for row in rows(title):
        cell, why = row.words
        assert row.ours or (cell == "none" and why), row
        roots = tuple(
            f"{name}." for name in ("model", "adapter", "data", "train", "evaluate", "gate", "export", "serve", "track")
        )
        keys = [name for name in row.remark if name.startswith(roots) and re.fullmatch(r"[a-z_0-9.]+", name)]
        for name in (*row.ours, *keys):
            assert exists(name), f"{title}: {name} is no key"


def arguments(title: str) -> set[str]:
    """What the real thing takes."""
    import transformers

    if title == "TrainingArguments":
        return {field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
    if title == "SFTConfig":
        return set(inspect.get_annotations(pytest.importorskip("trl").SFTConfig)) - {"_VALID_DICT_FIELDS"}
    if title == "LoraConfig":
        return set(inspect.get_annotations(__import__("peft").LoraConfig))
    if title == "wandb.init":
        return set(inspect.signature(pytest.importorskip("wandb").init).parameters)
    if title == "TrainerCallback":
        return {name for name in dir(transformers.TrainerCallback) if name.startswith("on_")}
    if title == "generate":
        return {name for name in vars(transformers.GenerationConfig()) if name[0] != "_"} - {"transformers_version"}
    found = {"BitsAndBytesConfig", "EarlyStoppingCallback"}
    real = getattr(transformers, title) if title in found else transformers.EvalPrediction
    return set(inspect.signature(real).parameters) - {"kwargs"}


LIBRARIES = {"SFTConfig": "trl", "LoraConfig": "peft", "wandb.init": "wandb"}


@pytest.mark.parametrize("title", [*BLOCKS][:4] + [*BLOCKS][5:10])
def test_the_tables_name_every_argument_of_the_version_that_the_page_is_about(title: str) -> None:
    library = LIBRARIES.get(title, "transformers")
    pytest.importorskip(library)
    (told,) = re.findall(rf"\b{library} (\d+\.\d+)\b", PAGE.partition("\n## ")[0])
    if not version(library).startswith(told + "."):
        pytest.skip(f"the page is about {library} {told}, and {version(library)} is installed")
    named = [name for row in rows(title) for name in row.theirs]
    assert sorted(named) == sorted(set(named)), "named twice"
    assert set(named) == arguments(title)


@pytest.mark.parametrize(
    "title", ["TrainingArguments", "SFTConfig", "LoraConfig", "BitsAndBytesConfig", "Axolotl", "LLaMA-Factory"]
)
def test_a_name_of_theirs_in_a_recipe_is_answered_with_the_key_of_the_table(title: str) -> None:
    for row in rows(title):
        keys = [*row.ours, *row.remark]
        if not any(key in all_keys() for key in row.ours):
            continue
        for name in set(row.theirs) - sections() - set(all_keys()):
            answer = did_you_mean(name)
            assert answer is None or any(key == answer or key.startswith(answer + ".") for key in keys), (
                f"{name}: the loader says {answer}, the page {keys}"
            )
            assert answer is not None or title in ("TrainingArguments", "SFTConfig", "LoraConfig"), name


# --------------------------------------------------------------------------------------------------------- transformers


# Newer versions of transformers call it activation_checkpointing as well; the page's users have either.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_training_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import transformers

    theirs, start, ours, command = blocks("TrainingArguments")
    # The page is for people with a GPU: here the same arguments are told that there is none.
    monkeypatch.setattr(transformers, "TrainingArguments", partial(transformers.TrainingArguments, use_cpu=True))
    args = executed(theirs)["args"]
    recipe = loaded(ours, tmp_path)
    train = recipe.train
    (processes,) = map(int, re.findall(r"--nproc-per-node (\d+)", start))
    assert train.processes == processes
    assert train.batch_size == args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    assert (train.epochs, train.learning_rate) == (args.num_train_epochs, args.learning_rate)
    assert train.max_grad_norm == args.max_grad_norm
    assert (train.gradient_checkpointing == "on", recipe.model.precision == "bf16") == (
        args.gradient_checkpointing,
        args.bf16,
    )
    assert (train.evaluate_every, train.save_every) == (args.eval_steps, args.save_steps)
    assert (train.keep_checkpoints, train.keep == "best") == (args.save_total_limit, args.load_best_model_at_end)
    assert (train.best_metric, recipe.seed) == (args.metric_for_best_model, args.seed)
    assert set(args.report_to) <= set(recipe.track.to)
    assert command.split()[-1] == args.output_dir
    assert_same_optimizer(args, train)
    assert_same_rates(args, train)


def assert_same_optimizer(args: Any, train: Any) -> None:
    from torch import nn
    from transformers import Trainer

    from tunesmith.stages.train.optimizer import make_optimizer

    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    model = nn.Linear(3, 3)
    made = make_optimizer(list(model.named_parameters()), train)
    assert type(made) is kind
    decays = {tuple(group["params"][0].shape): group["weight_decay"] for group in made.param_groups}
    assert decays == {(3, 3): args.weight_decay, (3,): 0.0}
    for group in made.param_groups:
        assert {name: group[name] for name in settings} == settings


def assert_same_rates(args: Any, train: Any, steps: int = 400) -> None:
    """As the table says: the same warm-up and curve, but that the first step has a rate."""
    import torch
    from transformers import get_scheduler

    from tunesmith.stages.train.schedule import num_warmup, rate_factor

    def rate(warmup: int) -> Any:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return get_scheduler(args.lr_scheduler_type, optimizer, warmup, steps).lr_lambdas[0]

    warmup = args.get_warmup_steps(steps)
    assert num_warmup(train.schedule, steps) == warmup == 20
    theirs = [rate(warmup)(call) for call in range(steps)]
    ours = [rate_factor(train.schedule, step, steps) for step in range(1, steps + 1)]
    assert (theirs[0], ours[0]) == (0, pytest.approx(1 / (warmup + 1)))
    assert max(theirs) == max(ours) == 1
    assert ours == pytest.approx(theirs, abs=1 / warmup)
    assert ours == pytest.approx([rate(warmup + 1)(call) for call in range(1, steps + 1)])


def test_sft_config(tmp_path: Path) -> None:
    theirs, ours = blocks("SFTConfig")
    asked, recipe = written(theirs, "SFTConfig"), loaded(ours, tmp_path)
    assert (recipe.data.max_tokens, recipe.train.learning_rate) == (asked["max_length"], asked["learning_rate"])
    assert (recipe.train.packing == "auto", recipe.data.learn == "all") == (
        asked["packing"],
        asked["assistant_only_loss"],
    )
    assert recipe.data.too_long == "truncate", "theirs cuts"
    assert recipe.adapter.type == "full", "no adapter is named"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # trl sets it
def test_sft_config_is_what_trl_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    trl = pytest.importorskip("trl")
    (theirs, _) = blocks("SFTConfig")
    monkeypatch.setattr(trl, "SFTConfig", partial(trl.SFTConfig, use_cpu=True, bf16=False))
    args = executed(theirs)["args"]
    assert {name: getattr(args, name) for name in written(theirs, "SFTConfig")} == written(theirs, "SFTConfig")
    assert args.truncation_mode == "keep_start"


def test_early_stopping_callback(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState

    from tunesmith.stages.train.checkpoint import TrainState
    from tunesmith.stages.train.guards import note_validation

    theirs, ours = blocks("EarlyStoppingCallback")
    train = loaded(ours, tmp_path).train
    args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=False)

    def stops_theirs(losses: list[float]) -> int | None:
        callback, state, control = executed(theirs)["callback"], TrainerState(), TrainerControl()
        for number, loss in enumerate(losses, 1):
            callback.on_evaluate(args, state, control, {"eval_loss": loss})  # then the trainer notes the best
            state.best_metric = loss if state.best_metric is None else min(loss, state.best_metric)
            if control.should_training_stop:
                return number
        return None

    def stops_ours(losses: list[float]) -> int | None:
        state = TrainState()
        for state.step, loss in enumerate(losses, 1):
            note_validation(state, {"loss": loss, "perplexity": 1.0}, train)
            if state.stopped_by:
                return state.step
        return None

    worsening, wavering = [1.0, 0.8, 0.7, 0.71, 0.72, 0.6], [1.0, 0.9, 0.95, 0.8, 0.85, 0.805, 0.5]
    assert stops_ours(worsening) == stops_theirs(worsening) == 5
    assert stops_ours(wavering) == stops_theirs(wavering) == 6
    drift = [1.0 - 0.007 * number for number in range(8)]  # each gain is too small, two of them are not
    assert (stops_theirs(drift), stops_ours(drift)) == (3, None)


def test_trainer_callback(tmp_path: Path) -> None:
    from transformers import TrainerControl

    from tunesmith.stages.train.callbacks import Callbacks, Facts

    theirs, source, ours = blocks("TrainerCallback")
    (tmp_path / source.split()[1]).write_text(source)
    recipe = loaded(ours, tmp_path)
    (name,) = code_named(recipe)
    callbacks = Callbacks(recipe.train.callbacks, {name: hashlib.sha256(source.encode()).hexdigest()})
    callback, control = executed(theirs)["StopBelow"](), TrainerControl()
    answers = []
    for step, loss in enumerate([0.9, 0.6, 0.4], 1):
        callback.on_log(None, None, control, logs={"loss": loss})
        answers.append((callbacks.tell(Facts("step", step, 3, {"loss": loss})) == name, control.should_training_stop))
    assert answers == [(False, False), (False, False), (True, True)]


def test_compute_metrics(tiny_model_dir: Path, tmp_path: Path) -> None:
    import numpy as np
    from transformers import AutoTokenizer, EvalPrediction

    from tunesmith.scoring.items import Item
    from tunesmith.scoring.metrics import load_metric, score

    theirs, source, ours = blocks("compute_metrics")
    (tmp_path / source.split()[1]).write_text(source)
    recipe = loaded(ours, tmp_path)
    (name,) = code_named(recipe)
    assert recipe.gate.metric == recipe.train.best_metric == recipe.evaluate.metrics[0] == name
    metric = load_metric(name, {name: hashlib.sha256(source.encode()).hexdigest()})

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    answers, expected = ["the quick fox", "a lazy dog", "over"], ["one fox", "the dog", "the fox jumps over it"]

    def ids(texts: list[str]) -> Any:
        encoded = [tokenizer(text)["input_ids"] for text in texts]
        longest = max(map(len, encoded))
        return np.array([[*row, *[-100] * (longest - len(row))] for row in encoded])

    found = executed(theirs, tokenizer=tokenizer)["compute_metrics"](EvalPrediction(ids(answers), ids(expected)))
    item = Item(0, "test", (), "", (1,))
    scores = [score(metric, right, answer, item) for right, answer in zip(expected, answers, strict=True)]
    assert scores == [1, 1, 0]
    assert found == {"last_word": pytest.approx(sum(scores) / 3)}


def test_generate(tiny_model_dir: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.scoring.generation import generate_greedy
    from tunesmith.scoring.items import Item

    theirs, ours = blocks("generate")
    config, recipe = executed(theirs)["config"], loaded(ours, tmp_path)
    assert recipe.evaluate.max_new_tokens == recipe.serve.max_new_tokens == config.max_new_tokens
    model, hf = (
        AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval(),
        AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    decoder = SimpleNamespace(pad_id=hf.pad_token_id, stop_ids={hf.eos_token_id}, decode=hf.decode)
    items = [Item(0, "test", (), "", hf(text)["input_ids"]) for text in ("the quick brown", "dog")]
    answers = generate_greedy(model, decoder, items, max_new_tokens=recipe.evaluate.max_new_tokens, batch_size=2)
    config.update(eos_token_id=hf.eos_token_id, pad_token_id=hf.pad_token_id)
    for item, answer in zip(items, answers, strict=True):
        prompt = torch.tensor([item.prompt_ids])
        made = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        assert made[0, prompt.shape[1] :].tolist()[: len(answer.ids)] == answer.ids
        assert answer.finish == "stop" or len(answer.ids) == config.max_new_tokens


# ------------------------------------------------------------------------------------------- peft, bitsandbytes, W&B


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
def test_lora_config(tiny_model_dir: Path, tmp_path: Path) -> None:
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    from tunesmith.modeling.adapters import attach_lora
    from tunesmith.modeling.dropout import StepContext

    theirs, ours = blocks("LoraConfig")
    config, adapter = executed(theirs)["config"], loaded(ours, tmp_path).adapter
    one, two = (AutoModelForCausalLM.from_pretrained(tiny_model_dir) for _ in range(2))
    made, wanted = attach_lora(two, adapter, 17, StepContext(17)), get_peft_model(one, config)
    described = [
        {
            name: (module.r["default"], module.scaling["default"])
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer)
        }
        for model in (made, wanted)
    ]
    assert described[0] == described[1]
    assert set(described[0].values()) == {(8, 4.0)}
    shapes = [{n: p.shape for n, p in model.named_parameters() if p.requires_grad} for model in (made, wanted)]
    assert shapes[0] == shapes[1] != {}
    assert adapter.dropout == config.lora_dropout


def test_bits_and_bytes_config(tmp_path: Path) -> None:
    import torch

    pytest.importorskip("bitsandbytes")
    from tunesmith.modeling.load import DTYPES
    from tunesmith.modeling.quantise import loading_settings

    theirs, ours = blocks("BitsAndBytesConfig")
    model = loaded(ours, tmp_path).model
    made = loading_settings(model.quantisation, DTYPES[model.precision], torch.device("cpu"))["quantization_config"]
    assert made.to_dict() == executed(theirs)["config"].to_dict()


def test_deepspeed_json(tmp_path: Path) -> None:
    from tunesmith.stages.train.engines.deepspeed_config import Facts, engine_config, read_config

    theirs, with_file, without = blocks("DeepSpeed JSON")
    (tmp_path / "ds.json").write_text(theirs)
    told = []
    for block in (with_file, without):
        recipe = loaded(block, tmp_path)
        facts = Facts(recipe.train, recipe.model.precision, recipe.train.processes, hidden_size=64)
        told.append(engine_config(read_config(recipe.train.engine), facts))
    (config, notes), (ours, nothing) = told
    assert config == ours, "the same settings without a file"
    assert nothing == []
    assert all(note.startswith("DeepSpeed: scheduler.") for note in notes)
    assert notes
    asked = json.loads(theirs)
    assert asked["zero_optimization"].items() <= config["zero_optimization"].items()
    assert (config["gradient_clipping"], config["bf16"]["enabled"]) == (asked["gradient_clipping"], True)


def test_wandb_init(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    from tunesmith.tracking.facts import RunFacts
    from tunesmith.tracking.wandb import make

    theirs, ours = blocks("wandb.init")
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(
        wandb, "init", lambda **asked: told.append(asked) or SimpleNamespace(dir=str(tmp_path / "files"))
    )
    executed(theirs)
    recipe = loaded(ours, tmp_path)
    make(recipe).open(RunFacts("id", "key", tmp_path, tmp_path, recipe, {}, 1))
    asked, made = told
    made["mode"] = made["settings"].mode
    assert {name: made[name] for name in asked} == asked
    assert "wandb" in recipe.track.to


# --------------------------------------------------------------------------------------------- files of other tools

SAME = {  # their key -> ours, where the value is written the same way
    "Axolotl": {
        "base_model": "model.base", "val_set_size": "data.split.validation", "sequence_len": "data.max_tokens",
        "lora_r": "adapter.rank", "lora_alpha": "adapter.alpha", "lora_dropout": "adapter.dropout",
        "lora_target_modules": "adapter.targets", "num_epochs": "train.epochs", "learning_rate": "train.learning_rate",
        "lr_scheduler": "train.schedule.type", "warmup_ratio": "train.schedule.warmup",
        "save_total_limit": "train.keep_checkpoints", "early_stopping_patience": "train.early_stopping.patience",
        "wandb_project": "track.wandb.project",
    },
    "LLaMA-Factory": {
        "model_name_or_path": "model.base", "finetuning_type": "adapter.type", "lora_rank": "adapter.rank",
        "cutoff_len": "data.max_tokens", "val_size": "data.split.validation", "learning_rate": "train.learning_rate",
        "num_train_epochs": "train.epochs", "lr_scheduler_type": "train.schedule.type",
        "warmup_ratio": "train.schedule.warmup",
    },
}  # fmt: skip
MEANS = {  # (their key, value) -> (ours, value), where it is written another way
    "Axolotl": {
        ("sample_packing", True): ("train.packing", "auto"), ("adapter", "qlora"): ("adapter.type", "lora"),
        ("load_in_4bit", True): ("model.quantisation.type", "nf4"), ("bf16", True): ("model.precision", "bf16"),
        ("optimizer", "adamw_bnb_8bit"): ("train.optimizer.type", "adamw_8bit"), ("train_on_inputs", False): ("data.learn", "all"),
        ("gradient_checkpointing", True): ("train.gradient_checkpointing", "on"),
    },
    "LLaMA-Factory": {
        ("bf16", True): ("model.precision", "bf16"), ("quantization_bit", 4): ("model.quantisation.type", "nf4"),
        ("double_quantization", True): ("model.quantisation.double_quantisation", True),
        ("flash_attn", "fa2"): ("model.attention", "flash_attention_2"), ("template", "qwen3"): ("model.template", "auto"),
        ("lora_target", "all"): ("adapter.targets", list(all_keys()["adapter.targets"].default)),
    },
}  # fmt: skip
OTHER = {
    "Axolotl": {"datasets", "micro_batch_size", "gradient_accumulation_steps", "output_dir"},
    "LLaMA-Factory": {"stage", "do_train", "dataset", "per_device_train_batch_size", "gradient_accumulation_steps", "output_dir"},
}  # fmt: skip


@pytest.mark.parametrize("title", SAME)
def test_a_file_of_another_tool(title: str, tmp_path: Path) -> None:
    theirs, ours = blocks(title)
    asked, recipe = yaml.safe_load(theirs), loaded(ours, tmp_path)
    assert set(asked) == {name for row in rows(title) for name in row.theirs}
    assert set(asked) == {*SAME[title], *(name for name, _ in MEANS[title]), *OTHER[title]}
    for name, key in SAME[title].items():
        assert recipe.value(key) == asked[name], key
    for (name, value), (key, meant) in MEANS[title].items():
        assert (asked[name], recipe.value(key)) == (value, meant), key
    micro = asked.get("micro_batch_size") or asked["per_device_train_batch_size"]
    assert recipe.train.batch_size == micro * asked["gradient_accumulation_steps"] * recipe.train.processes
    assert Path(recipe.data.sources[0].path).name == "rows.jsonl"
    if title == "LLaMA-Factory":
        assert recipe.adapter.alpha == 2 * asked["lora_rank"]
