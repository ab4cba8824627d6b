"""The story of the stage: start the endpoint, ask it what evaluation asked, compare, stop it; or keep it for users."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openai import OpenAI

from tunesmith.errors import ModelError, UsageError
from tunesmith.modeling.load import pick_device, resolve_precision
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.recipe.tree import Serve
from tunesmith.runs import durable
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact
from tunesmith.stages.serve import INFO
from tunesmith.stages.serve.deployment import (
    Choice,
    Deployment,
    obey_gate,
    of_artifacts,
    of_folder,
    of_run,
)
from tunesmith.stages.serve.endpoint import Endpoint, open_for
from tunesmith.stages.serve.parity import (
    ROUNDING,
    Question,
    Reference,
    Served,
    ask_all,
    compare,
    load_questions,
    quantised_agreement,
)

LOG = "serve-engine.log"
TOKEN = "serve.token"


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Prove the endpoint: `serve.parity_items` of evaluation's prompts, answered alike by the exported model as served.

    With `serve.adapters` each adapter that comes from a run is proven too, by the prompts of its own evaluation.
    Returns {"parity": Parity artifact}. Raises: GateError SRV-007, ModelError SRV-001/006/009, InterruptedRun.
    """
    evaluation = inputs["evaluation"].path
    obey_gate(evaluation)
    # The proof is about answers as evaluation made them, so the endpoint's own bound on length may not cut them; and it
    # stays on loopback whatever the recipe says, on a port of its own.
    serve = open_for(spec.serve, host="127.0.0.1", port=0)
    deployment = of_artifacts(run, serve, inputs["export"].path, evaluation)
    exams = exams_of(deployment, spec.serve.parity_items)
    serve = open_for(
        serve,
        max_new_tokens=max([serve.max_new_tokens, *(exam.max_tokens for exam in exams)]),
        queue=max([serve.queue, *(len(exam.questions) for exam in exams)]),
    )
    deployment = replace(deployment, serve=serve)

    started = time.monotonic()
    endpoint = Endpoint(
        deployment, log_path=run.path / LOG,
        on_phase=lambda phase: run.record("serve", "serve/phase", phase), should_stop=lambda: run.stopping,
    )  # fmt: skip
    with endpoint:
        if not endpoint.is_ready:
            run.leave("while the served model was being loaded")
        run.record("serve", "serve/start_seconds", time.monotonic() - started, unit="s")
        facts = record_facts(endpoint, run)
        started = time.monotonic()
        served = [ask(endpoint, exam, run) for exam in exams]
        seconds = time.monotonic() - started
    run.record("serve", "serve/answer_seconds", seconds, unit="s")

    # The engine is gone by now: a second copy of the model would not always fit beside it.
    evaluated_in = resolve_precision(spec.model.precision, pick_device())
    precision = lower_precision(deployment.precision, evaluated_in)
    found = [judge(deployment, exam, answers, precision, run) for exam, answers in zip(exams, served, strict=True)]
    parity, others = found[0], {exam.choice.name: one for exam, one in zip(exams[1:], found[1:], strict=True)}
    if others:
        parity["adapters"] = others
    parity["settings"] = {
        "precision": precision,
        "engine": endpoint.engine.spec.engine,
        "quantisation": serve.quantisation,
        "compile": serve.compile,
        "max_new_tokens": exams[0].max_tokens,
        "temperature": 0,
        "seconds": round(seconds, 3),
        **facts,
    }
    run.record("serve", "serve/parity_equal", parity["equal"], unit="answers")
    run.record("serve", "serve/parity_share", parity["share"], unit="share")
    for one in found:
        refuse_different(one)
    return {"parity": store_parity(run, parity, inputs)}


@dataclass(frozen=True)
class Exam:
    """What one model is asked for the proof, and what evaluation's model answered. max_tokens: evaluation's."""

    choice: Choice
    questions: list[Question]
    max_tokens: int


def exams_of(deployment: Deployment, limit: int) -> list[Exam]:
    """One for each model that an evaluation is known of, the main one first."""
    return [
        Exam(choice, load_questions(choice.evaluation / "answers.jsonl", limit), choice.max_new_tokens)
        for choice in deployment.choices.values()
        if choice.evaluation is not None
    ]


def judge(deployment: Deployment, exam: Exam, served: list[Served], precision: str, run: Run) -> dict[str, Any]:
    """parity.json of one model."""
    reference = Reference(deployment, exam.choice, precision)
    kind = deployment.serve.quantisation
    if kind == "none":
        return compare(exam.questions, served, precision, reference.margin)

    def leave_if_asked() -> None:
        if run.stopping:
            run.leave("while the quantised model was being compared with its endpoint")

    expected = reference.answers(exam.questions, exam.max_tokens, leave_if_asked) if exam.questions else []
    agreement = quantised_agreement(kind, exam.questions, served)
    parity = compare(expected, served, precision, reference.margin)
    parity |= {
        "what": f"serve: endpoint vs the {kind} model, asked as in evaluation",
        "rule": f"quantised ({kind}), so its answers are not evaluation's: {agreement['equal_answers']} of "
        f"{agreement['answers']} are; beside the {kind} model itself, {parity['rule']}",
        "quantised": agreement,
    }
    run.record("serve", "serve/quantised_answer_share", agreement["answer_share"], unit="share")
    return parity


def record_facts(endpoint: Endpoint, run: Run) -> dict[str, Any]:
    """What the engine measured of itself, as events too."""
    facts = endpoint.engine.facts()
    if gain := facts.get("compile"):
        run.record("serve", "serve/compile_seconds", gain["seconds"], unit="s")
        run.record("serve", "serve/compile_gain", gain["after"] / gain["before"], unit="times")
    return {"engine_facts": facts} if facts else {}


def ask(endpoint: Endpoint, exam: Exam, run: Run) -> list[Served]:
    """The endpoint's answers through the official client. A stop signal or a dead engine ends the asking."""

    def check() -> None:
        if run.stopping:
            run.leave("while the endpoint was being compared with evaluation")
        endpoint.engine.check()

    with OpenAI(base_url=endpoint.url, api_key=endpoint.token, max_retries=0, timeout=600) as client:
        return ask_all(
            client, exam.choice.name, exam.questions, exam.max_tokens,
            on_answer=lambda count: run.record("serve", "serve/answers", count, unit="answers"), check=check,
        )  # fmt: skip


def lower_precision(one: str, other: str) -> str:
    """The coarser of two number formats; bf16 is the coarsest."""
    return max((one, other), key=lambda name: ROUNDING.get(name, 0.0))


def refuse_different(parity: Mapping[str, Any]) -> None:
    """Raises: ModelError SRV-009 naming the first answer that differs."""
    if parity["verdict"] != "different":
        return
    first = parity["differences"][0]
    kind = parity.get("quantised", {}).get("quantisation")
    asked = f"the {kind} model asked in this process" if kind else "evaluation"
    raise ModelError(
        "SRV-009",
        f"The endpoint answers {parity['n'] - parity['equal']} of {parity['n']} prompts otherwise than {asked}. First: "
        f"expected {first['evaluation'][:200]!r}, endpoint {first['endpoint'][:200]!r}",
        where=f"{first['part']}, row {first['row']}",
        expected=parity["rule"],
        fix="compare the template in the exported folder with the recipe's model.template; please report it if they agree",
    )


def store_parity(run: Run, parity: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> Artifact:
    producer = {
        "stage": INFO.name,
        "version": INFO.version,
        "recipe": run.recipe.serve,
        "inputs": {name: artifact.id for name, artifact in inputs.items()},
    }
    with run.store.create("Parity", run.stage_key, producer=producer) as draft:
        durable.write_json(draft.path / "parity.json", parity)
    assert draft.artifact is not None, "a draft that was left well has its artifact"
    return draft.artifact


# ------------------------------------------------------------------------------------------------------ kept for users


def keep(
    target: Run | Path,
    *,
    host: str | None = None,
    port: int | None = None,
    token: str | None = None,
    overrides: Sequence[str] = (),
    workspace: Path | None = None,
    on_ready: Callable[[Endpoint, Path | None], None] = lambda endpoint, token_file: None,
    on_phase: Callable[[str], None] = lambda phase: None,
    on_drain: Callable[[int], None] = lambda in_flight: None,
) -> None:
    """Serve the exported model of a Run, or a model folder, until Ctrl-C or SIGTERM; then finish what is in flight.

    host, port, overrides ("serve.key=value"): instead of the recipe's. workspace: where runs of `serve.adapters` are. token: what clients must send; made when None, and then kept in a file in the
    run folder that only this user can read, for as long as the endpoint runs (on_ready gets its path).
    A second signal ends at once. Raises: GateError SRV-007, UsageError SRV-003/010, FileError SRV-004, ModelError SRV-001/002.
    """
    deployment = deployment_of(target, overrides, workspace, host=host, port=port)
    folder = target.path if isinstance(target, Run) else None
    with stop_signals() as is_stopping, contextlib.ExitStack() as stack:
        log_path = (folder / LOG) if folder else Path(stack.enter_context(_scratch())) / LOG
        endpoint = stack.enter_context(
            Endpoint(deployment, token=token, log_path=log_path, on_phase=on_phase, should_stop=is_stopping)
        )
        if not endpoint.is_ready:
            return
        token_file = (
            stack.enter_context(token_kept(folder / TOKEN, endpoint.token)) if folder and token is None else None
        )
        on_ready(endpoint, token_file)
        while not is_stopping():
            endpoint.engine.check()
            time.sleep(0.1)
        on_drain(endpoint.gate.in_flight if endpoint.gate else 0)
        endpoint.drain()


def deployment_of(
    target: Run | Path, overrides: Sequence[str] = (), workspace: Path | None = None, **changes: Any
) -> Deployment:
    """What is served for a Run or a model folder. overrides: "serve.key=value" texts; changes: settings to replace.

    Raises: GateError SRV-007, UsageError SRV-010/016/017.
    """
    foreign = [text for text in overrides if not text.startswith("serve.")]
    if foreign:
        raise UsageError(
            "SRV-017",
            f"{foreign[0]} is no setting of the endpoint, and the model is made already",
            where="--set",
            expected="keys of serve, such as serve.temperature=0.2",
            fix="tunesmith run RECIPE --set KEY=VALUE makes another model",
        )
    own = {} if isinstance(target, Path) else {"serve": target.recipe.serve.model_dump(mode="json")}
    recipe = parse_recipe(json.dumps({"data": {"sources": ["none"]}, **own}), tuple(overrides))
    serve = open_for(recipe.serve, **changes)
    if isinstance(target, Run):
        return of_run(target, serve)
    asked = frozenset(name for name in Serve.model_fields if recipe.origin(f"serve.{name}") != "default")
    return of_folder(target, serve, workspace=workspace, asked=asked)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM set a flag, the second one of either ends the process at once; the old handlers come back."""
    stopping = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield stopping.is_set
        return

    def handle(signum: int, _frame: object) -> None:
        if stopping.is_set():
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        stopping.set()

    before = {signum: signal.signal(signum, handle) for signum in signals}
    try:
        yield stopping.is_set
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def token_kept(path: Path, token: str) -> Iterator[Path]:
    """The token in a file that only this user can read, removed at the end."""
    path.unlink(missing_ok=True)  # an old file would keep its own permissions
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _scratch() -> contextlib.AbstractContextManager[str]:
    import tempfile

    return tempfile.TemporaryDirectory(prefix="tunesmith-serve-", ignore_cleanup_errors=True)
