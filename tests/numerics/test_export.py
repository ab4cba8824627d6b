"""What is exported is what was trained: merged = adapter, files that users' own tools load, and a proof that can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from held_out import CPU, adapter, evaluated, item, load_tokenizer_of, prompts, speaker

from tunesmith.errors import FileError, GateError, ModelError, UsageError
from tunesmith.modeling.adapters import load_adapter, merge_adapter
from tunesmith.modeling.load import load_model
from tunesmith.runs.store import Artifact
from tunesmith.scoring.generation import generate_greedy
from tunesmith.stages.export import proof, rendering
from tunesmith.stages.export import run as export_stage
from tunesmith.stages.export.delivery import deliver

VARIANTS = {
    "default": {},
    "rank 1": {"rank": 1, "alpha": 4.0},
    "alpha below rank": {"rank": 32, "alpha": 8.0},
    "two targets": {"rank": 4, "targets": ("q_proj", "down_proj")},
    "with the head": {"rank": 4, "targets": ("v_proj", "lm_head")},
}


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its output layer is its own (not tied)."""
    return speaker(tmp_path_factory.mktemp("models") / "speaker", tiny_model_dir)


@pytest.fixture(scope="module")
def adapter_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tmp_path_factory.mktemp("adapters") / "one", model_dir)


@pytest.mark.parametrize(
    ("variant", "tied"), [*((name, False) for name in VARIANTS), ("default", True)], ids=lambda value: str(value)
)
def test_merged_is_the_adapter_in_logits_and_greedy_answers(
    model_dir: Path, tiny_model_dir: Path, tmp_path: Path, variant: str, tied: bool
) -> None:
    base = speaker(tmp_path / "tied", tiny_model_dir, tied=True) if tied else model_dir
    folder = adapter(tmp_path / "adapter", base, **VARIANTS[variant])
    beside = load_adapter(load_model(base, device=CPU), folder)
    merged = merge_adapter(load_adapter(load_model(base, device=CPU), folder))
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        one, two, plain = (m(input_ids=ids).logits for m in (beside, merged, load_model(base, device=CPU)))
    torch.testing.assert_close(two, one, atol=proof.tolerance("fp32", float(one.abs().max())), rtol=0)
    assert (one - plain).abs().max() > 0.5, "the adapter does something"
    tokenizer = load_tokenizer_of(base)
    items = [item(number, tokenizer, question) for number, question in enumerate(prompts(6))]
    answers = [generate_greedy(m, tokenizer, items, max_new_tokens=16, batch_size=6) for m in (beside, merged)]
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def exported(model_dir: Path, adapter_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    small = evaluated(tmp_path_factory.mktemp("work"), model_dir, adapter_dir)
    small.evaluate()
    return small.export()


def test_the_folder_loads_with_transformers_and_answers_as_evaluated(exported: dict[str, Artifact]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = exported["export"].path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.do_sample is False
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    chat = [{"role": "user", "content": prompts(1)[0]}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
    parity = json.loads((exported["parity"].path / "parity.json").read_text())
    assert (parity["verdict"], parity["n"], parity["equal"], parity["identical"]) == ("equal", 8, 8, 8)
    assert parity["rendering"] == {"prompts": 8, "same_ids": 8}
    assert parity["merge"] is None, "in fp32 the files themselves are the proof of the merge"
    assert 0 < parity["max_abs_logit_difference"] < parity["tolerance"]
    assert parity["moved_share"] < 1e-4
    assert tokenizer.decode(made, skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
def test_the_adapter_loads_with_peft(exported: dict[str, Artifact], model_dir: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model_dir)
    tuned = PeftModel.from_pretrained(base, exported["adapter"].path)
    merged = AutoModelForCausalLM.from_pretrained(exported["export"].path)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        torch.testing.assert_close(tuned(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-3, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(exported["adapter"].path).chat_template


def test_the_template_in_the_exported_tokenizer_renders_the_same(
    exported: dict[str, Artifact], model_dir: Path
) -> None:
    from transformers import AutoTokenizer

    from tunesmith.text.example import Message

    ours, theirs = load_tokenizer_of(model_dir), AutoTokenizer.from_pretrained(exported["export"].path)
    chat = [("system", "Be short."), ("user", "fox <|end|> dog\n"), ("assistant", " yes"), ("user", "and?")]
    expected = ours.template.render([Message(*turn) for turn in chat], add_generation_prompt=True)
    plain = [{"role": role, "content": content} for role, content in chat]
    assert theirs.apply_chat_template(plain, add_generation_prompt=True, tokenize=False) == expected


def test_a_named_template_is_written_into_the_exported_tokenizer(
    model_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    settings = ["model.template=instruction", "gate.require=none"]
    small = evaluated(tmp_path, model_dir, adapter_dir, overrides=settings, num_items=3)
    small.evaluate()
    tokenizer = AutoTokenizer.from_pretrained(small.export()["export"].path)
    chat = [{"role": "user", "content": "fox?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "### Instruction:\nfox?\n\n### Response:\n"


@pytest.mark.parametrize(
    ("trained", "exported"), [("fp32", "bf16"), ("bf16", "bf16"), ("bf16", "fp32")], ids=lambda name: name
)
def test_below_fp32_the_merge_is_proven_in_fp32_and_the_files_within_the_tolerance(
    model_dir: Path, adapter_dir: Path, tmp_path: Path, trained: str, exported: str
) -> None:
    settings = [
        f"model.precision={trained}",
        f"export.dtype={exported}",
        "gate.require=none",
        "evaluate.max_new_tokens=6",
    ]
    small = evaluated(tmp_path, model_dir, adapter_dir, overrides=settings)
    small.evaluate()
    made = small.export()
    parity = json.loads((made["parity"].path / "parity.json").read_text())
    assert parity["precision"] == "bf16"
    assert parity["merge"]["precision"] == "fp32"
    assert parity["merge"]["steps"] < parity["merge"]["limit"]
    assert parity["max_abs_logit_difference"] <= parity["tolerance"]
    assert parity["verdict"] in ("equal", "within tolerance")
    assert parity["equal"] == parity["n"] == 8
    assert (
        json.loads((made["export"].path / "config.json").read_text())["dtype"]
        == {"bf16": "bfloat16", "fp32": "float32"}[exported]
    )


# ------------------------------------------------------------------------------------------------- proofs that must fail


def spoiled_scale(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 0.97
    return merge_adapter(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_wrong_merge_is_refused_and_nothing_is_exported(
    model_dir: Path, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    settings = [f"model.precision={precision}", "gate.require=none"]
    small = evaluated(tmp_path, model_dir, adapter_dir, overrides=settings, num_items=3)
    small.evaluate()
    monkeypatch.setattr(export_stage, "merge_adapter", spoiled_scale)
    with pytest.raises(
        ModelError, match=r"EXP-003 the (merged|exported) model's logits differ .* on row \d+(?s:.*)fp32: 256"
    ):
        small.export()
    assert not list((tmp_path / "artifacts" / "model").glob("[!.]*"))


def test_another_greedy_answer_is_refused_in_fp32_and_judged_by_the_margin_below(
    model_dir: Path, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = evaluated(tmp_path, model_dir, adapter_dir, num_items=3, overrides=["gate.require=none"])
    path = small.evaluate().path / "answers.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first = lines[0]["tuned_ids"][2]
    lines[0]["tuned_ids"][2] = first + 1  # as if the trained model had said so
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ModelError, match=r"EXP-006 test, row 0: the exported model answers 1 of 3 .* at its token 2"):
        small.export()
    monkeypatch.setitem(proof.STEPS, "bf16", 1e6)  # every token is a tie
    loose = prove_again(small, model_dir, adapter_dir, "bf16")
    assert (loose["verdict"], loose["equal"], loose["identical"]) == ("within tolerance", 3, 2)
    assert loose["differences"][0]["counts_as_equal"]
    monkeypatch.setitem(proof.STEPS, "bf16", 1e-3)
    monkeypatch.setattr(proof, "_compare_logits", lambda *_: {})
    with pytest.raises(ModelError, match="EXP-006"):
        prove_again(small, model_dir, adapter_dir, "bf16")


def prove_again(small: object, model_dir: Path, adapter_dir: Path, precision: str) -> dict:
    from tunesmith.runs.dataset import Dataset
    from tunesmith.scoring.items import load_held_out

    dataset = Dataset(small.inputs["dataset"].path)  # type: ignore[attr-defined]
    asked = proof.load_asked(small.inputs["evaluation"], load_held_out(dataset))  # type: ignore[attr-defined]
    trained = load_adapter(load_model(model_dir, device=CPU), adapter_dir)
    merged = merge_adapter(load_adapter(load_model(model_dir, device=CPU), adapter_dir))
    return proof.prove(
        trained, merged, dataset, load_tokenizer_of(model_dir), asked, precision=precision, max_new_tokens=12,
        batch_size=4, check=lambda: None,
    )  # fmt: skip


def test_a_template_that_renders_otherwise_is_refused(
    model_dir: Path, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = evaluated(tmp_path, model_dir, adapter_dir, num_items=3, overrides=["gate.require=none"])
    small.evaluate()
    inner = rendering.load_tokenizer

    def other(files: object, template: str = "auto") -> object:
        made = inner(files, template)  # type: ignore[arg-type]
        made.hf.chat_template = "{{ messages[0].content }}"
        return made

    monkeypatch.setattr(rendering, "load_tokenizer", other)
    with pytest.raises(ModelError, match=r"EXP-007 test, row 0: the exported tokenizer renders a prompt otherwise"):
        small.export()


# ------------------------------------------------------------------------------------------- the gate, and handing out


def test_a_held_model_is_neither_exported_nor_handed_out_nor_served(
    model_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    from tunesmith.stages.serve.run import deployment_of

    small = evaluated(tmp_path / "work", model_dir, adapter_dir, right="base")
    evaluation = small.evaluate()
    assert evaluation.notes["gate"] == "hold"
    with pytest.raises(
        GateError, match=r"EXP-001 gate: the gate says hold: the gain in exact_match is -1\.000"
    ) as held:
        small.export()
    assert held.value.exit_status == 3
    # An export of an earlier judgement may still lie there: the gate that holds now counts.
    with small.run.store.create("Model", "old", producer={}) as draft:
        (draft.path / "config.json").write_text("{}")
    assert draft.artifact is not None
    small.run.set_outputs("export", {"export": draft.artifact})
    with pytest.raises(GateError, match="EXP-001"):
        deliver(small.run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(GateError, match="SRV-007"):
        deployment_of(small.run)
    # Without a judgement nothing goes out either.
    (evaluation.path / "evaluation.json").unlink()
    with pytest.raises(UsageError, match=r"EXP-004 .*no evaluation that says it may ship"):
        deliver(small.run, tmp_path / "out")
    with pytest.raises(UsageError, match=r"SRV-010 .*nothing says that it may be served"):
        deployment_of(small.run)


def test_a_delivered_folder_is_whole_names_no_machine_and_replaces_nothing(
    model_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    small = evaluated(tmp_path / "work", model_dir, adapter_dir)
    small.evaluate()
    with pytest.raises(UsageError, match=r"EXP-004 .*exported no merged model"):
        deliver(small.run, tmp_path / "out")
    small.export()
    folder = deliver(small.run, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(folder)
    assert not (folder / "manifest.json").exists()
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), f"{path.name} names a folder of this machine"
    with pytest.raises(FileError, match=r"EXP-005 .*is not empty"):
        deliver(small.run, folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match=r"EXP-005 .*is no folder"):
        deliver(small.run, tmp_path / "file")


def test_sampling_settings_of_the_base_do_not_change_what_was_evaluated(
    tiny_model_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    base = speaker(tmp_path / "base", tiny_model_dir)
    settings = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "repetition_penalty": 1.3,
        "eos_token_id": 4,
    }
    (base / "generation_config.json").write_text(json.dumps(settings))
    small = evaluated(tmp_path / "work", base, adapter_dir, num_items=3, overrides=["gate.require=none"])
    small.evaluate()
    written = json.loads((small.export()["export"].path / "generation_config.json").read_text())
    assert written["do_sample"] is False
    assert not {"temperature", "top_k", "top_p", "repetition_penalty"} & set(written)
    assert written["eos_token_id"] == 4
