"""How a model may be served: adapters beside each other, quantised, compiled, by vLLM. Real engines, but for vLLM (a stand-in
that speaks its HTTP and knows its flags), real gates, the official client."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from held_out import (
    CPU,
    Evaluated,
    adapter,
    answers_to,
    evaluated,
    finished,
    load_tokenizer_of,
    prompts,
    prove_served,
    speaker,
)

from tunesmith.errors import GateError, ModelError, RecipeError, UsageError
from tunesmith.recipe.tree import Serve

openai = pytest.importorskip("openai")

STAND_INS = Path(__file__).parents[1] / "stand_ins"
QUESTIONS = 8


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    return speaker(tmp_path_factory.mktemp("served") / "speaker", tiny_model_dir)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[Path, Path]:
    """Two adapters that differ in rank, in scale, and in the layers they change."""
    folder = tmp_path_factory.mktemp("adapters")
    return (
        adapter(folder / "one", model_dir, 0.1),
        adapter(folder / "two", model_dir, 0.3, rank=4, alpha=16.0, targets=("q_proj", "down_proj")),
    )


@pytest.fixture(scope="module")
def second(workspace: Path, model_dir: Path, adapters: tuple[Path, Path]) -> Evaluated:
    return finished(workspace, model_dir, adapters[1], "second", items=QUESTIONS + 1)


@pytest.fixture(scope="module")
def first(workspace: Path, model_dir: Path, adapters: tuple[Path, Path], second: Evaluated) -> Evaluated:
    return finished(workspace, model_dir, adapters[0], "first", f"serve.adapters={{other: {second.run.id}}}")


# --------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def mixed(first: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The first run's endpoint: its own adapter, the second run's, and the base that both were trained on."""
    from tunesmith.stages.serve.endpoint import Endpoint
    from tunesmith.stages.serve.run import deployment_of

    deployment = deployment_of(first.run, ["serve.temperature=0.0"], port=0)
    with Endpoint(deployment, log_path=tmp_path_factory.mktemp("log") / "engine.log") as running:
        yield running


def test_requests_pick_an_adapter_and_a_batch_may_mix_them(
    mixed, first: Evaluated, second: Evaluated, model_dir: Path, adapters: tuple[Path, Path]
) -> None:
    tokenizer = load_tokenizer_of(model_dir)
    # The last one fills whole pages of the cache, which a prefix cache would hand on.
    asked = [*prompts(QUESTIONS), "the quick brown fox jumps over the lazy dog " * 8]
    expected = {
        "first": answers_to(model_dir, adapters[0], tokenizer, asked, "tuned"),
        "other": answers_to(model_dir, adapters[1], tokenizer, asked, "tuned"),
        "base": answers_to(model_dir, adapters[0], tokenizer, asked, "base"),
    }
    assert all(len({expected[name][n] for name in expected}) == 3 for n in range(len(asked))), "they must differ"
    with openai.OpenAI(base_url=mixed.url, api_key=mixed.token, max_retries=0) as client:
        cards = {card.id: card.kind for card in client.models.list()}
        assert cards == {"first": "adapter", "other": "adapter", "base": "base"}

        def answer(order: tuple[str, int]) -> str:
            name, number = order
            messages = [{"role": "user", "content": asked[number]}]
            reply = client.chat.completions.create(model=name, messages=messages, max_tokens=12)
            assert reply.model == name
            return reply.choices[0].message.content

        # The same prompt to all three side by side, twice over: what one has computed must never serve another.
        orders = [(name, number) for number in range(len(asked)) for name in expected] * 2
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(answer, orders))
        assert answers == [expected[name][number] for name, number in orders]
        assert [answer((name, QUESTIONS)) for name in expected] == [texts[QUESTIONS] for texts in expected.values()]
        with pytest.raises(openai.NotFoundError, match='"first", "other", "base"'):
            client.chat.completions.create(model="second", messages=[{"role": "user", "content": "x"}])


def test_a_chat_takes_another_adapter_of_the_endpoint(mixed) -> None:
    from io import StringIO

    from tunesmith.stages.serve.chat import chat

    typed, output = iter(["/model other", "/settings", "fox 2", "/exit"]), StringIO()
    chat(mixed.url, token=mixed.token, output=output, max_tokens=5, read_line=lambda _: next(typed))
    told = output.getvalue()
    assert "model        other (of first, other, base)" in told
    assert "temperature  0.0 (default)" in told
    assert "max-tokens   5" in told


def test_an_adapter_of_another_base_or_one_that_the_gate_holds_is_refused(
    first: Evaluated,
    second: Evaluated,
    model_dir: Path,
    adapters: tuple[Path, Path],
    tiny_model_dir: Path,
    workspace: Path,
) -> None:
    from tunesmith.stages.serve.deployment import of_folder, of_run

    with pytest.raises(UsageError, match=r"SRV-016[\s\S]*'first'[\s\S]*was trained on"):
        of_folder(tiny_model_dir, Serve(adapters={"first": first.run.id}), workspace=workspace)
    with pytest.raises(UsageError, match=r"SRV-016[\s\S]*taken"):
        of_run(first.run, Serve(adapters={"first": second.run.id}))
    with pytest.raises(UsageError, match="RUN-008"):
        of_run(first.run, Serve(adapters={"third": "no-such-run"}))
    held = evaluated(workspace, model_dir, adapters[1], right="base", name="held", num_items=QUESTIONS)
    held.evaluate("e-held")
    with pytest.raises(GateError, match=r"SRV-007[\s\S]*the adapter 'held'"):
        of_run(first.run, Serve(adapters={"held": held.run.id}))
    # The documented way round: a run whose gate is switched off.
    free = held.again("gate.require=none")
    free.evaluate("e-free")
    free.export("x-free")
    assert list(of_run(first.run, Serve(adapters={"held": free.run.id})).choices) == ["first", "held", "base"]
    # A folder has no verdict, as a model folder has none.
    assert list(of_folder(model_dir, Serve(adapters={"one": str(adapters[0])})).choices) == ["speaker", "one"]


def test_adapters_that_are_more_than_low_rank_sums_are_refused(model_dir: Path, tmp_path: Path) -> None:
    from tunesmith.modeling.load import load_model
    from tunesmith.modeling.mixing import Mixture

    with pytest.raises(ModelError, match=r"MDL-125.*output layer"):
        Mixture(load_model(model_dir, device=CPU), [adapter(tmp_path / "a", model_dir, targets=("v_proj", "lm_head"))])
    folder = adapter(tmp_path / "b", model_dir)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ModelError, match=r"MDL-125.*use_dora: True"):
        Mixture(load_model(model_dir, device=CPU), [folder])


# -------------------------------------------------------------------------------------------- quantised, and compiled


def test_a_quantised_base_with_its_adapters_is_proven_beside_itself_and_says_how_far_it_is_from_evaluation(
    first: Evaluated,
) -> None:
    parity = prove_served(first, "serve.quantisation=nf4", "model.attention=eager")
    for found in (parity, parity["adapters"]["other"]):
        assert found["verdict"] == "equal"
        assert found["equal"] == found["n"] == found["quantised"]["answers"] >= QUESTIONS
        assert found["quantised"]["quantisation"] == "nf4"
        assert found["quantised"]["equal_answers"] < QUESTIONS, "4 bits change something in this model"
        assert "quantised (nf4)" in found["rule"]
    assert parity["settings"]["quantisation"] == "nf4"
    assert parity["settings"]["engine_facts"]["quantised"]["bits_per_weight"] < 5
    assert parity["settings"]["engine_facts"]["attention"] == "eager", "the engine obeys model.attention"


def test_a_compiled_model_is_proven_as_it_is_served_and_says_what_compiling_gained(second: Evaluated) -> None:
    parity = prove_served(second, "serve.compile=true")
    assert (parity["verdict"], parity["equal"]) == ("equal", QUESTIONS + 1)
    gain = parity["settings"]["engine_facts"]["compile"]
    assert gain["seconds"] > 0
    assert gain["before"] > 0
    assert gain["after"] > 0
    assert gain["before"] != gain["after"]


def test_a_machine_that_cannot_compile_says_so_by_name(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.stages.serve.engine_process import EngineProcess
    from tunesmith.stages.serve.engine_spec import EngineSpec

    monkeypatch.setenv("CXX", str(tmp_path / "no compiler"))
    engine = EngineProcess(EngineSpec(model_dir, 2, 512, "fp32", compile=True), tmp_path / "engine.log")
    with pytest.raises(ModelError, match=r"SRV-018 serve\.compile: the model cannot be compiled: .*no C\+\+ compiler"):
        engine.wait_ready(lambda phase: None)
    engine.stop()


# ------------------------------------------------------------------------------------------------------------- vLLM


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU and vLLM, as far as we look; the folder where the stand-in notes what it is told."""
    from tunesmith.stages.serve import checks

    monkeypatch.syspath_prepend(str(STAND_INS))
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_INS), *([inherited] if inherited else [])]))
    monkeypatch.setenv("VLLM_STAND_IN", str(tmp_path))
    monkeypatch.setattr(checks.hardware, "detect", lambda: SimpleNamespace(gpus=("a GPU",)))
    return tmp_path


def test_vllm_is_spoken_to_in_token_ids_behind_the_same_gate(
    vllm: Path, first: Evaluated, model_dir: Path, tmp_path: Path
) -> None:
    from tunesmith.stages.serve.endpoint import Endpoint
    from tunesmith.stages.serve.run import Exam, ask, deployment_of, judge

    deployment = deployment_of(first.run, port=0)
    with Endpoint(deployment, log_path=tmp_path / "log" / "engine.log") as endpoint:
        started = json.loads((vllm / "started.json").read_text())
        assert started["uds"] == endpoint.engine.socket
        assert (started["model"], started["dtype"], started["max_model_len"]) == (str(model_dir), "float32", 512)
        assert [module.partition("=")[0] for module in started["lora_modules"]] == ["adapter0", "adapter1"]
        tokenizer = deployment.choices["first"].tokenizer
        stop = sorted(tokenizer.stop_ids)
        with openai.OpenAI(base_url=endpoint.url, api_key=endpoint.token, max_retries=0) as client:
            asked = {"messages": [{"role": "user", "content": "the fox"}], "extra_body": {"return_token_ids": True}}
            reply = client.chat.completions.create(model="first", seed=3, top_p=0, **asked)
            told = json.loads((vllm / "asked.jsonl").read_text().splitlines()[-1])
            assert told["model"] == "adapter0"
            assert (told["temperature"], told["seed"], told["stop_token_ids"]) == (0.7, 3, stop)
            assert told["prompt"][-1] == tokenizer.hf.convert_tokens_to_ids("<|assistant|>"), "laid out by the gate"
            assert reply.choices[0].token_ids == [token for token in reversed(told["prompt"]) if token not in stop]
            assert reply.choices[0].finish_reason == "stop"
            cut = client.chat.completions.create(model="base", max_tokens=2, stream=False, **asked)
            assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)
            assert json.loads((vllm / "asked.jsonl").read_text().splitlines()[-1])["model"] == "model"
            stream = client.completions.create(model="other", prompt=[20, 21, 22], stream=True)
            assert "".join(chunk.choices[0].text for chunk in stream) == tokenizer.decode([23, 22, 21])
            with pytest.raises(openai.InternalServerError, match="out of blocks"):
                client.completions.create(model="base", prompt=[7, 7, 7])
        with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=endpoint.url, api_key="x") as stranger:
            stranger.models.list()

        # The same proof: true to what evaluation said, and caught when it is not.
        from tunesmith.stages.serve.parity import Question, load_questions

        questions = load_questions(deployment.choices["first"].evaluation / "answers.jsonl", 3)

        def said(question: Question) -> Question:
            prompt = tokenizer.encode_prompt([_message(turn) for turn in question.messages])
            ids = [token for token in reversed(prompt) if token not in stop]
            return replace(question, ids=ids, text=tokenizer.decode(ids))

        honest = Exam(deployment.choices["first"], [said(question) for question in questions], 200)
        assert judge(deployment, honest, ask(endpoint, honest, first.run), "fp32", first.run)["verdict"] == "equal"
        other = Exam(deployment.choices["first"], questions, 200)
        assert judge(deployment, other, ask(endpoint, other, first.run), "fp32", first.run)["verdict"] == "different"

        # It ends with us, though it knows nothing of us.
        os.kill(endpoint.engine.pid, signal.SIGTERM)
        endpoint.engine._process.wait(timeout=10)
    assert not _is_running(started["pid"])


def _message(turn: dict):
    from tunesmith.text.example import Message

    return Message(turn["role"], turn["content"])


def _is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_vllm_on_a_machine_without_a_gpu_is_refused_by_name(second: Evaluated) -> None:
    from tunesmith.stages.serve.run import deployment_of

    with pytest.raises(RecipeError, match=r"SRV-013 serve\.engine: .*a GPU"):
        deployment_of(second.run, ["serve.engine=vllm"]).engine_spec()
    with pytest.raises(UsageError, match=r"SRV-017[\s\S]*train\.epochs"):
        deployment_of(second.run, ["train.epochs=3"])
