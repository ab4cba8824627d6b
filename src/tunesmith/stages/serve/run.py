"""The story of the stage: start the endpoint, ask it what evaluation asked, compare, stop it; or keep it for users."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from openai import OpenAI

from tunesmith.errors import GateError, ModelError, UsageError
from tunesmith.modeling.load import pick_device, resolve_precision
from tunesmith.recipe import Recipe
from tunesmith.recipe.tree import Serve
from tunesmith.runs import durable
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact
from tunesmith.stages.serve import INFO
from tunesmith.stages.serve.endpoint import Endpoint, open_for
from tunesmith.stages.serve.engine import stored_precision
from tunesmith.stages.serve.parity import ROUNDING, LogitMargin, Served, ask_all, compare, load_questions

LOG = "serve-engine.log"
TOKEN = "serve.token"


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Prove the endpoint: `serve.parity_items` of evaluation's prompts, answered alike by the exported model as served.

    Returns {"parity": Parity artifact}. Raises: GateError SRV-007, ModelError SRV-001/006/009, InterruptedRun.
    """
    evaluation = read_evaluation(inputs["evaluation"])
    obey_gate(evaluation)
    model = inputs["export"].path
    questions = load_questions(inputs["evaluation"].path / "answers.jsonl", spec.serve.parity_items)
    asked_tokens = spec.evaluate.max_new_tokens
    # The proof is about answers as evaluation made them, so the endpoint's own bound on length may not cut them; and it
    # stays on loopback whatever the recipe says, on a port of its own.
    serve = open_for(spec.serve, host="127.0.0.1", port=0, max_new_tokens=max(spec.serve.max_new_tokens, asked_tokens))
    serve = open_for(serve, queue=max(serve.queue, len(questions)))

    started = time.monotonic()
    endpoint = Endpoint(
        model, spec.name, serve, log_path=run.path / LOG,
        on_phase=lambda phase: run.record("serve", "serve/phase", phase), should_stop=lambda: run.stopping,
    )  # fmt: skip
    with endpoint:
        if not endpoint.is_ready:
            run.leave("while the served model was being loaded")
        run.record("serve", "serve/start_seconds", time.monotonic() - started, unit="s")
        started = time.monotonic()
        served = ask(endpoint, questions, asked_tokens, run)
        seconds = time.monotonic() - started
    run.record("serve", "serve/answer_seconds", seconds, unit="s")

    precision = lower_precision(stored_precision(model), resolve_precision(spec.model.precision, pick_device()))
    parity = compare(questions, served, precision, LogitMargin(model, precision))
    parity["settings"] = {
        "precision": precision,
        "max_new_tokens": asked_tokens,
        "temperature": 0,
        "seconds": round(seconds, 3),
    }
    run.record("serve", "serve/parity_equal", parity["equal"], unit="answers")
    run.record("serve", "serve/parity_share", parity["share"], unit="share")
    refuse_different(parity)
    return {"parity": store_parity(run, parity, inputs)}


def ask(endpoint: Endpoint, questions: list[Any], max_tokens: int, run: Run) -> list[Served]:
    """The endpoint's answers through the official client. A stop signal or a dead engine ends the asking."""

    def check() -> None:
        if run.stopping:
            run.leave("while the endpoint was being compared with evaluation")
        endpoint.engine.check()

    with OpenAI(base_url=endpoint.url, api_key=endpoint.token, max_retries=0, timeout=600) as client:
        return ask_all(
            client, endpoint.name, questions, max_tokens,
            on_answer=lambda count: run.record("serve", "serve/answers", count, unit="answers"), check=check,
        )  # fmt: skip


def read_evaluation(artifact: Artifact) -> dict[str, Any]:
    return json.loads((artifact.path / "evaluation.json").read_text(encoding="utf-8"))


def obey_gate(evaluation: Mapping[str, Any]) -> None:
    """Raises: GateError SRV-007 when evaluation says hold."""
    gate = evaluation["gate"]
    if gate["verdict"] != "ship":
        raise GateError(
            "SRV-007",
            f"The gate says do not ship: {gate['reason']}",
            where="gate",
            expected="a model that passes its gate",
            fix="better data or more training; or, to serve it all the same, --set gate.require=none",
        )


def lower_precision(one: str, other: str) -> str:
    """The coarser of two number formats; bf16 is the coarsest."""
    return max((one, other), key=lambda name: ROUNDING.get(name, 0.0))


def refuse_different(parity: Mapping[str, Any]) -> None:
    """Raises: ModelError SRV-009 naming the first answer that differs."""
    if parity["verdict"] != "different":
        return
    first = parity["differences"][0]
    raise ModelError(
        "SRV-009",
        f"The endpoint answers {parity['n'] - parity['equal']} of {parity['n']} prompts otherwise than evaluation. First: "
        f"evaluation {first['evaluation'][:200]!r}, endpoint {first['endpoint'][:200]!r}",
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
    on_ready: Callable[[Endpoint, Path | None], None] = lambda endpoint, token_file: None,
    on_phase: Callable[[str], None] = lambda phase: None,
    on_drain: Callable[[int], None] = lambda in_flight: None,
) -> None:
    """Serve the exported model of a Run, or a model folder, until Ctrl-C or SIGTERM; then finish what is in flight.

    host, port: instead of the recipe's. token: what clients must send; made when None, and then kept in a file in the
    run folder that only this user can read, for as long as the endpoint runs (on_ready gets its path).
    A second signal ends at once. Raises: GateError SRV-007, UsageError SRV-003/010, FileError SRV-004, ModelError SRV-001/002.
    """
    model, name, serve, folder = served_model(target)
    serve = open_for(serve, host=host, port=port)
    with stop_signals() as is_stopping, contextlib.ExitStack() as stack:
        log_path = (folder / LOG) if folder else Path(stack.enter_context(_scratch())) / LOG
        endpoint = stack.enter_context(
            Endpoint(model, name, serve, token=token, log_path=log_path, on_phase=on_phase, should_stop=is_stopping)
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


def served_model(target: Run | Path) -> tuple[Path, str, Serve, Path | None]:
    """Model folder, its name in requests, settings, and the run folder if there is one, for a Run or a model folder.

    Raises: GateError SRV-007, UsageError SRV-010 when there is nothing to serve.
    """
    if isinstance(target, Path):
        if not (target / "config.json").is_file():
            raise _nothing_to_serve(f"{target} is not a model folder: it has no config.json.")
        return target, target.resolve().name, Serve(), None
    evaluation, export = target.outputs("evaluate"), target.outputs("export")
    if evaluation:
        obey_gate(read_evaluation(evaluation["evaluation"]))
    if not export or "export" not in export:
        raise _nothing_to_serve(f"run {target.id} has no exported model.")
    if not evaluation:
        raise _nothing_to_serve(f"the evaluation of run {target.id} is gone, so nothing says that it may be served.")
    return export["export"].path, target.recipe.name, target.recipe.serve, target.path


def _nothing_to_serve(what: str) -> UsageError:
    return UsageError(
        "SRV-010", what, expected="a finished export (export.merged: true), or a folder with config.json and weights",
        fix="tunesmith run RECIPE, or tunesmith export RECIPE; both end with an exported model",
    )  # fmt: skip


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
