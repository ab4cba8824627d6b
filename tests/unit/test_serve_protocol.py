"""The gate's pieces that need no server: text streams, limits, defaults, hosts, the token file, the verdicts."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import GateError, ModelError, RecipeError, UsageError
from tunesmith.recipe.tree import Serve

pytest.importorskip("starlette")
from tunesmith.stages.serve.limits import Limits, Refusal
from tunesmith.stages.serve.protocol import Defaults, TextStream, parse

SAMPLED = Defaults(temperature=0.7, top_p=0.9, top_k=20)


def decode_bytes(ids: list[int]) -> str:
    """A tokenizer of bytes: one id is one byte, so characters arrive in pieces."""
    return bytes(ids).decode("utf-8", "replace")


def stream(ids: list[int], stops: tuple[str, ...] = (), step: int = 1) -> tuple[list[str], TextStream]:
    text = TextStream(decode_bytes, stops)
    pieces = [text.feed(ids[start : start + step]) for start in range(0, len(ids), step)]
    return [*pieces, text.finish(ids)], text


@given(text=st.text(), step=st.integers(1, 5))
def test_pieces_of_a_stream_make_the_whole_text(text: str, step: int) -> None:
    pieces, _ = stream(list(text.encode("utf-8", "surrogatepass")), step=step)
    assert "".join(pieces) == decode_bytes(list(text.encode("utf-8", "surrogatepass")))


@given(text=st.text("ab€", max_size=30), stop=st.text("ab€", min_size=1, max_size=3), step=st.integers(1, 4))
def test_a_stop_text_cuts_the_stream_where_it_cuts_the_whole_text(text: str, stop: str, step: int) -> None:
    pieces, made = stream(list(text.encode()), (stop,), step)
    assert "".join(pieces) == text.partition(stop)[0]
    assert made.is_stopped == (stop in text)


def test_no_piece_holds_half_a_character() -> None:
    pieces, _ = stream(list("a€b".encode()))
    assert [piece for piece in pieces if piece] == ["a", "€", "b"]


def test_bytes_that_never_become_a_character_come_out_at_the_end() -> None:
    pieces, _ = stream([97, 0xE2, 0x82])
    assert "".join(pieces) == "a\ufffd"


def test_answer_length_is_bounded_by_the_recipe_and_by_the_context() -> None:
    limits = Limits(context=100, max_new_tokens=50, body_bytes=1, queue=1)
    assert [limits.answer_tokens(*case) for case in ((10, None), (10, 7), (10, 51), (60, None), (99, 50))] == [
        50,
        7,
        50,
        40,
        1,
    ]
    with pytest.raises(Refusal, match="100 tokens; this model's context is 100"):
        limits.answer_tokens(100, 1)


def test_the_recipe_says_what_holds_where_a_request_says_nothing() -> None:
    assert Defaults.of(Serve(), 400) == Defaults(0.7, 0.95, 400)
    assert Defaults.of(Serve(temperature=0), 400) == Defaults(0.0, 0.95, 400)

    def asked(**changes: object) -> tuple[float, float, int, int | None]:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **changes}
        ask = parse(json.dumps(body).encode(), "chat", ["m"], 400, SAMPLED)
        return ask.temperature, ask.top_p, ask.top_k, ask.seed

    assert asked() == (0.7, 0.9, 20, None)
    assert asked(temperature=0) == (0, 0.9, 20, None)
    assert asked(temperature=1.5, top_p=0.5, top_k=3, seed=7) == (1.5, 0.5, 3, 7)
    assert asked(top_k=10**9)[2] == 400
    assert asked(temperature=1e-300)[0] == 0, "scores divided by it would be infinite, and end the engine"


def test_the_authors_of_a_model_folder_say_how_it_samples_unless_the_user_does() -> None:
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    assert Defaults.of(Serve(), 400, own) == Defaults(0.6, 0.9, 20)
    assert Defaults.of(Serve(), 400, {"do_sample": True}) == Defaults(1.0, 1.0, 400)
    assert Defaults.of(Serve(), 400, {"temperature": 0.6}) == Defaults(0.7, 0.95, 400), "it does not sample"
    assert Defaults.of(Serve(temperature=0.2), 400, own, {"temperature"}) == Defaults(0.2, 0.9, 20)


def test_a_model_that_is_not_there_is_refused_with_those_that_are() -> None:
    body = json.dumps({"model": "c", "messages": [{"role": "user", "content": "hi"}]}).encode()
    with pytest.raises(Refusal, match='serves "a", "b"') as refused:
        parse(body, "chat", ["a", "b"], 400, SAMPLED)
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {
        "model": "m",
        "messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}],
    }
    ask = parse(json.dumps(body).encode(), "chat", ["m"], 400, SAMPLED)
    assert ask.messages == ({"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"})


@pytest.mark.parametrize(
    ("host", "token", "is_refused"),
    [
        ("127.0.0.1", None, False), ("::1", None, False), ("localhost", None, False), ("127.9.9.9", None, False),
        ("0.0.0.0", None, True), ("0.0.0.0", "x" * 31, True), ("0.0.0.0", "x" * 32, False), ("example.org", None, True),
        ("::", None, True), ("2130706433", None, True),
    ],
)  # fmt: skip
def test_an_open_address_needs_a_long_token_of_the_users(host: str, token: str | None, is_refused: bool) -> None:
    from tunesmith.stages.serve.endpoint import check_host

    if not is_refused:
        return check_host(host, token)
    with pytest.raises(UsageError, match=r"SRV-003[\s\S]*32 characters"):
        check_host(host, token)


def test_the_token_file_is_for_this_user_alone_and_goes_at_the_end(tmp_path: Path) -> None:
    from tunesmith.stages.serve.run import token_kept

    (tmp_path / "serve.token").write_text("an old one that anybody could read")
    with token_kept(tmp_path / "serve.token", "secret") as path:
        assert path.read_text() == "secret\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_model_that_the_gate_holds_is_not_served(tmp_path: Path) -> None:
    from tunesmith.stages.serve.deployment import obey_gate

    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps({"gate": {"verdict": "ship", "reason": ""}}))
    obey_gate(tmp_path)
    evaluation.write_text(json.dumps({"gate": {"verdict": "hold", "reason": "no gain beyond its interval"}}))
    with pytest.raises(GateError, match=r"SRV-007.*no gain") as caught:
        obey_gate(tmp_path)
    assert caught.value.exit_status == 3


def test_below_fp32_answers_may_part_where_the_model_is_undecided_and_only_there() -> None:
    from tunesmith.stages.serve.parity import Question, Served, compare
    from tunesmith.stages.serve.run import lower_precision, refuse_different

    questions = [Question(row, "test", [], "yes", [1, 2, 3], "stop") for row in range(3)]
    served = [Served("yes", [1, 2, 3], "stop"), Served("yea", [1, 2, 4], "stop"), Served("ye", [1, 2], "stop")]
    looked_at: list[tuple] = []

    def margin(question: Question, prefix, ours, theirs) -> tuple[float, float]:
        looked_at.append((list(prefix), ours, theirs))
        return (0.1 if theirs == 4 else 0.1 + question.row), 0.2

    judged = compare(questions, served, "bf16", margin)
    assert looked_at == [([1, 2], 3, 4), ([1, 2], 3, None)]
    assert (judged["verdict"], judged["equal"], judged["identical"]) == ("different", 2, 1)
    assert judged["differences"][0]["row"] == 2, "what counts as different is shown first"
    with pytest.raises(ModelError, match=r"SRV-009 test, row 2: .*1 of 3"):
        refuse_different(judged)
    assert compare(questions[:2], served[:2], "bf16", margin)["verdict"] == "within tolerance"
    assert compare(questions[:2], served[:2], "fp32", margin)["verdict"] == "different"
    assert compare(questions[:1], served[:1], "fp32", margin)["verdict"] == "equal"
    assert [lower_precision("fp32", "bf16"), lower_precision("fp16", "fp32"), lower_precision("fp16", "bf16")] == [
        "bf16", "fp16", "bf16",
    ]  # fmt: skip


def test_the_asked_items_spread_over_the_parts_and_do_not_depend_on_the_order(tmp_path: Path) -> None:
    from tunesmith.stages.serve.parity import load_questions

    rows = [
        {"row": row, "part": part, "messages": [], "tuned": "x", "tuned_ids": [1], "finish": "stop"}
        for part in ("seen", "unseen")
        for row in range(100)
    ]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, rows)))
    first = load_questions(answers, 32)
    answers.write_text("\n".join(map(json.dumps, reversed(rows))))
    assert load_questions(answers, 32) == first
    assert {item.part for item in first} == {"seen", "unseen"}
    assert len(load_questions(answers, 1000)) == 200


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    from tunesmith.stages.serve.chat import printable

    assert printable("a\x1b[2Jb\n\tc\r") == "a\\x1b[2Jb\n\tc\\r"


def test_the_cpu_cache_holds_all_requests_or_as_many_as_its_bound_and_always_one_context() -> None:
    from tunesmith.stages.serve.engine import CACHE_BYTES_CPU, PAGE_TOKENS, cpu_cache

    small = SimpleNamespace(
        max_position_embeddings=512, num_attention_heads=4, num_key_value_heads=2, hidden_size=64, num_hidden_layers=2
    )
    assert cpu_cache(small, 4, 4)[0] == 4 * (512 // PAGE_TOKENS + 1)
    large = SimpleNamespace(
        **{**vars(small), "hidden_size": 4096, "num_hidden_layers": 32, "max_position_embeddings": 131_072}
    )
    blocks, batch_tokens = cpu_cache(large, 64, 4)
    assert blocks == 131_072 // PAGE_TOKENS + 1
    assert batch_tokens == 2048
    medium = SimpleNamespace(**{**vars(large), "max_position_embeddings": 2048})
    bytes_per_block = 2 * 32 * 2 * 1024 * 4 * PAGE_TOKENS
    assert cpu_cache(medium, 64, 4)[0] == CACHE_BYTES_CPU // bytes_per_block


def test_what_is_drawn_follows_from_seed_and_position_and_has_the_right_shares() -> None:
    import torch

    from tunesmith.stages.serve.sampling import Seeded

    seeded = Seeded("seed", -1)
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    scores_RV = probabilities.log().repeat(4000, 1)

    def draw(seed: int, positions: range) -> torch.Tensor:
        states = [
            SimpleNamespace(state=SimpleNamespace(logit_processor_kwargs={"seed": seed}, position_offset=position))
            for position in positions
        ]
        kept_RV = seeded(scores_RV[: len(states)], seeded.prepare_tensor_args(states))
        assert torch.isfinite(kept_RV).sum(-1).eq(1).all(), "one token is left, hence sampling cannot choose another"
        return kept_RV.argmax(-1)

    drawn = draw(3, range(4000))
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, probabilities, atol=0.03)
    assert torch.equal(draw(3, range(100, 200)), drawn[100:200]), "who else is in the batch does not matter"
    assert not torch.equal(draw(4, range(100)), drawn[:100])
    without = [SimpleNamespace(state=SimpleNamespace(logit_processor_kwargs={}, position_offset=1))]
    assert torch.equal(seeded(scores_RV[:1], seeded.prepare_tensor_args(without)), scores_RV[:1])


# ----------------------------------------------------------------------------------------------------------- engines


def machine(monkeypatch: pytest.MonkeyPatch, *packages: str, gpus: int = 0) -> None:
    from tunesmith.stages.serve import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: object() if name in packages else None)
    monkeypatch.setattr(checks.hardware, "detect", lambda: SimpleNamespace(gpus=("H200",) * gpus))


def test_vllm_serves_where_it_is_installed_and_a_gpu_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.stages.serve.checks import check_settings

    machine(monkeypatch, "vllm", "bitsandbytes", gpus=1)
    assert check_settings(Serve()) == "vllm"
    assert check_settings(Serve(engine="transformers")) == "transformers"
    assert check_settings(Serve(quantisation="int8")) == "transformers", "vLLM cannot"
    assert check_settings(Serve(quantisation="nf4", compile=True, adapters={"a": "b"})) == "vllm"
    machine(monkeypatch, "vllm")
    assert check_settings(Serve()) == "transformers"


@pytest.mark.parametrize(
    ("packages", "gpus", "settings", "code", "says"),
    [
        (("vllm",), 0, {"engine": "vllm"}, "SRV-013", "lacks a GPU"),
        ((), 1, {"engine": "vllm"}, "SRV-013", "lacks the package vllm"),
        (("vllm", "bitsandbytes"), 1, {"engine": "vllm", "quantisation": "int8"}, "SRV-015", "not to int8"),
        ((), 0, {"quantisation": "nf4"}, "SRV-015", "bitsandbytes is not installed"),
        ((), 0, {"compile": True, "adapters": {"a": "b"}}, "SRV-014", "do not go together"),
    ],
)
def test_what_this_machine_cannot_serve_is_refused_by_name_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, packages: tuple, gpus: int, settings: dict, code: str, says: str
) -> None:
    from tunesmith.recipe import Recipe
    from tunesmith.stages.serve.checks import check

    machine(monkeypatch, *packages, gpus=gpus)
    with pytest.raises(RecipeError, match=says) as refused:
        check(Recipe.model_validate({"data": {"sources": [{"path": "rows.jsonl"}]}, "serve": settings}))
    assert (refused.value.code, refused.value.exit_status) == (code, 64)


def test_the_command_line_of_vllm_says_all_that_the_recipe_says(tmp_path: Path) -> None:
    from tunesmith.stages.serve.engine_spec import EngineSpec

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 12, "rank_pattern": {"q_proj": 20}}')
    spec = EngineSpec(tmp_path, 4, 512, "bf16", "vllm", quantisation="nf4", adapters={"adapter0": adapter})
    command = spec.command("/tmp/engine.sock")
    told = " ".join(command[command.index("--uds") :])
    assert told == (
        f"--uds /tmp/engine.sock --model {tmp_path} --served-model-name model --dtype bfloat16 --max-model-len 512 "
        "--max-num-seqs 4 --generation-config vllm --enforce-eager --quantization bitsandbytes --enable-lora --max-loras 1 "
        f"--max-lora-rank 32 --lora-modules adapter0={adapter}"
    )
    assert "--enforce-eager" not in EngineSpec(tmp_path, 4, 512, "bf16", "vllm", compile=True).command("s")
    assert EngineSpec.from_json(spec.to_json()) == spec


# -------------------------------------------------------------------------------------------------------------- chat


def test_the_chat_shows_and_changes_how_answers_are_made() -> None:
    from tunesmith.stages.serve.chat import Conversation, Sampling, obey

    def card(name: str) -> SimpleNamespace:
        defaults = {"temperature": 0.7, "top_p": 0.95, "top_k": 400}
        return SimpleNamespace(id=name, model_extra={"defaults": defaults, "max_tokens": 512, "context": 2048})

    client = SimpleNamespace(models=SimpleNamespace(list=lambda: SimpleNamespace(data=[card("desk"), card("base")])))
    talk = Conversation(client, None, Sampling(top_p=0.5))  # type: ignore[arg-type]
    told = obey(talk, "/settings")
    assert "temperature  0.7 (default)" in told
    assert "top-p        0.5" in told
    assert "max-tokens   512 (default)" in told
    assert "desk (of desk, base)" in told
    obey(talk, "/temperature 0")
    obey(talk, "/max-tokens 20")
    obey(talk, "/top-p")
    assert talk.sampling.fields() == {"temperature": 0.0, "max_tokens": 20}
    assert "a number is expected" in obey(talk, "/seed many")
    assert obey(talk, "/model base") == "(now base)"
    assert "no model 'gpt'" in obey(talk, "/model gpt")
    assert talk.model == "base"
    assert "/temperature" in obey(talk, "/nonsense")
