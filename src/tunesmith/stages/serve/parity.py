"""Does the endpoint answer as evaluation did? The same held-out prompts, greedy, through the client that users have.

fp32: the texts must be identical. Below fp32 another batch may round another way, so a first differing token counts as
equal where the model itself is undecided: both tokens lie within the tolerance of the highest logit (design decision 9).

A model that is served quantised is another model than the one evaluated. Its endpoint must answer as that quantised model
does when it is asked by evaluation's code (the same rule); how often those answers are evaluation's is stated, not judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openai import APIError, OpenAI

from tunesmith.errors import ModelError
from tunesmith.modeling.adapters import load_adapter
from tunesmith.modeling.load import load_model, pick_device, resolve_attention
from tunesmith.recipe.tree import Int8, Nf4
from tunesmith.scoring.agreement import distance_below_top, first_difference
from tunesmith.scoring.generation import generate_greedy
from tunesmith.scoring.items import Item
from tunesmith.stages.serve.deployment import Choice, Deployment
from tunesmith.stages.serve.gate import encode_turns

# Distance of one rounding step at 1.0. Logits of the last layer carry a few of them; a tie within two is undecided.
ROUNDING = {"bf16": 2.0**-7, "fp16": 2.0**-10}
ROUNDING_STEPS = 2.0
CONCURRENT = 16
SHOWN = 5


@dataclass(frozen=True)
class Question:
    """A held-out prompt and what evaluation's tuned model answered. ids: the answer's tokens without the stop token."""

    row: int
    part: str
    messages: list[dict[str, Any]]
    text: str
    ids: list[int]
    finish: str


@dataclass(frozen=True)
class Served:
    """What the endpoint answered."""

    text: str
    ids: list[int]
    finish: str


def load_questions(answers: Path, limit: int) -> list[Question]:
    """The first `limit` of evaluation's answers by the hash of part and row: a choice that spreads over all parts."""
    with answers.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    questions = [
        Question(row["row"], row["part"], row["messages"], row["tuned"], list(row["tuned_ids"]), row["finish"])
        for row in rows
    ]
    return sorted(questions, key=lambda item: hashlib.sha256(f"{item.part}:{item.row}".encode()).hexdigest())[:limit]


def ask_all(
    client: OpenAI,
    model: str,
    questions: Sequence[Question],
    max_tokens: int,
    *,
    on_answer: Callable[[int], None],
    check: Callable[[], None],
) -> list[Served]:
    """All questions, several at a time, answers in their order.

    on_answer: told the number answered so far. check: called often; what it raises ends the asking.
    Raises: ModelError SRV-006 when the endpoint refuses a prompt that evaluation answered.
    """
    if not questions:
        return []
    with ThreadPoolExecutor(min(CONCURRENT, len(questions))) as pool:
        waiting: dict[Future[Served], int] = {
            pool.submit(_ask, client, model, item, max_tokens): index for index, item in enumerate(questions)
        }
        answers: dict[int, Served] = {}
        try:
            while waiting:
                check()
                for future in wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    answers[waiting.pop(future)] = future.result()
                    on_answer(len(answers))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [answers[index] for index in range(len(questions))]


def _ask(client: OpenAI, model: str, question: Question, max_tokens: int) -> Served:
    messages: Any = [{"role": turn["role"], "content": turn["content"]} for turn in question.messages]
    try:
        reply = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=max_tokens, extra_body={"return_token_ids": True}
        )
    except APIError as problem:
        raise ModelError(
            "SRV-006",
            f"The endpoint did not answer a prompt that evaluation answered: {problem}",
            where=f"{question.part}, row {question.row}",
            expected="an answer",
            fix="read the engine's log in the run folder (serve-engine.log)",
        ) from problem
    choice = reply.choices[0]
    return Served(choice.message.content or "", (choice.model_extra or {})["token_ids"], choice.finish_reason)


Margin = Callable[[Question, Sequence[int], "int | None", "int | None"], tuple[float, float]]


def compare(questions: Sequence[Question], served: Sequence[Served], precision: str, margin: Margin) -> dict[str, Any]:
    """parity.json: how many answers are equal and by which rule.

    precision: the lower of evaluation's and the export's. margin(question, prefix ids, id, id) -> (distance, tolerance):
    how far the farther of two next tokens (None: stop) lies below the highest logit after the prefix, and how far it may.
    """
    differences, undecided = [], 0
    for question, answer in zip(questions, served, strict=True):
        if answer.text == question.text:
            continue
        entry = {
            "row": question.row, "part": question.part, "evaluation": question.text, "endpoint": answer.text,
        }  # fmt: skip
        if precision in ROUNDING:
            prefix, ours, theirs = first_difference(question.ids, answer.ids)
            distance, tolerance = margin(question, prefix, ours, theirs)
            entry |= {"token": len(prefix), "margin": distance, "tolerance": tolerance}
            if distance <= tolerance:
                undecided += 1
                entry["counts_as"] = "equal"
        differences.append(entry)
    different = len(differences) - undecided
    equal = len(questions) - different
    differences.sort(key=lambda entry: "counts_as" in entry)
    return {
        "what": "serve: endpoint vs evaluation",
        "n": len(questions),
        "equal": equal,
        "identical": len(questions) - len(differences),
        "share": equal / len(questions) if questions else None,
        "max_abs_logit_difference": None,
        "tolerance": ROUNDING_STEPS * ROUNDING[precision] if precision in ROUNDING else 0.0,
        "rule": rule(precision),
        "verdict": verdict(len(questions), different, len(differences)),
        "differences": differences[:SHOWN],
    }


def verdict(asked: int, different: int, not_identical: int) -> str:
    if not asked:
        return "not compared"  # nothing was held out, and the recipe's gate does not mind
    return "different" if different else "within tolerance" if not_identical else "equal"


def rule(precision: str) -> str:
    if precision not in ROUNDING:
        return "fp32: greedy answers identical as text"
    return (
        f"{precision}: greedy answers identical, or at the first differing token both tokens within "
        f"{ROUNDING_STEPS:.0f} rounding steps ({ROUNDING_STEPS * ROUNDING[precision]:.4g} of the largest logit) of the top"
    )


class Reference:
    """The served model asked in this process, by evaluation's own code; loaded on first use, since most runs need none."""

    def __init__(self, deployment: Deployment, choice: Choice, precision: str) -> None:
        self._deployment, self._choice, self._precision = deployment, choice, precision
        self._model: Any = None

    def margin(
        self, question: Question, prefix: Sequence[int], one: int | None, other: int | None
    ) -> tuple[float, float]:
        """How far the farther of two next tokens lies below the highest logit, and how far it may."""
        tokenizer = self._choice.tokenizer
        prompt = encode_turns(tokenizer, tuple(question.messages))
        distance, largest = distance_below_top(self._loaded(), [*prompt, *prefix], (one, other), tokenizer.stop_ids)
        return distance, ROUNDING_STEPS * ROUNDING[self._precision] * largest

    def answers(self, questions: Sequence[Question], max_new_tokens: int, check: Callable[[], None]) -> list[Question]:
        """The same questions with this model's answers in place of evaluation's."""
        tokenizer = self._choice.tokenizer
        items = [
            Item(question.row, question.part, (), "", tuple(encode_turns(tokenizer, tuple(question.messages))))
            for question in questions
        ]
        made = generate_greedy(
            self._loaded(), tokenizer, items, max_new_tokens=max_new_tokens, batch_size=CONCURRENT, on_step=check
        )
        return [
            replace(question, text=answer.text, ids=answer.ids, finish=answer.finish)
            for question, answer in zip(questions, made, strict=True)
        ]

    def _loaded(self) -> Any:
        if self._model is None:
            deployed = self._deployment
            model = load_model(
                deployed.files,
                dtype=deployed.precision,
                attention=resolve_attention(deployed.attention, pick_device(), deployed.precision),
                quantisation={"none": None, "nf4": Nf4(), "int8": Int8()}[deployed.serve.quantisation],
            )
            adapter = self._choice.adapter
            self._model = load_adapter(model, deployed.adapters[adapter]) if adapter else model
        return self._model


def quantised_agreement(kind: str, evaluated: Sequence[Question], served: Sequence[Served]) -> dict[str, Any]:
    """What quantising changed: how many of the endpoint's answers are evaluation's, character by character."""
    equal = sum(one.text == other.text for one, other in zip(evaluated, served, strict=True))
    return {
        "quantisation": kind,
        "what": f"the model is served in {kind}; its answers beside those of the unquantised model in evaluation",
        "answers": len(evaluated),
        "equal_answers": equal,
        "answer_share": equal / len(evaluated) if evaluated else None,
    }
