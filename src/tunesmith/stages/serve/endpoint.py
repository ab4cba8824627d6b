"""One running endpoint: the engine's process and the gate's thread, opened and closed together."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from tunesmith.errors import FileError, UsageError
from tunesmith.recipe.tree import Serve
from tunesmith.stages.serve.deployment import Deployment
from tunesmith.stages.serve.dialects import DIALECTS
from tunesmith.stages.serve.engine_process import EngineProcess
from tunesmith.stages.serve.gate import Gate, Served
from tunesmith.stages.serve.limits import DRAIN_SECONDS, MAX_CONNECTIONS, MAX_HEADER_BYTES, Limits, text_config
from tunesmith.stages.serve.protocol import Defaults

MIN_REMOTE_TOKEN = 32


class Endpoint:
    """An OpenAI-compatible endpoint for what is deployed; a context manager that is ready once entered.

    deployment: models, settings, host and port (0 takes a free one). token: what clients must send; made here when None.
    log_path: the engine's output. on_phase: told what the start is doing. should_stop: polled while waiting; the entered
    endpoint is then not ready.
    Raises: UsageError SRV-003 (open host without a long token), FileError SRV-004 (port taken), ModelError SRV-001, RecipeError
    SRV-013 to SRV-015 for what cannot serve here.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        token: str | None = None,
        log_path: Path,
        on_phase: Callable[[str], None] = lambda phase: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.serve, self.name = deployment.serve, deployment.name
        check_host(self.serve.host, token)
        self.token = token or secrets.token_urlsafe(32)
        self._deployment, self._engine_spec = deployment, deployment.engine_spec()
        self._log_path, self._on_phase, self._should_stop = log_path, on_phase, should_stop
        self._listener: socket.socket | None = None
        self._engine: EngineProcess | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.gate: Gate | None = None

    @property
    def port(self) -> int:
        assert self._listener is not None, "the port is known once the endpoint is entered"
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        host = f"[{self.serve.host}]" if ":" in self.serve.host else self.serve.host
        return f"http://{host}:{self.port}/v1"

    @property
    def is_ready(self) -> bool:
        return self.gate is not None and self.gate.is_ready

    @property
    def engine(self) -> EngineProcess:
        assert self._engine is not None, "the engine runs once the endpoint is entered"
        return self._engine

    def __enter__(self) -> Endpoint:
        self._listener = listen(self.serve.host, self.serve.port)
        try:
            self._engine = EngineProcess(self._engine_spec, self._log_path)
            self.gate = Gate(self._served(self._engine), self.token)
            self._start_gate(self.gate)
            self.gate.is_ready = self._engine.wait_ready(self._on_phase, self._should_stop)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def drain(self, seconds: float = DRAIN_SECONDS) -> int:
        """Take no new request and wait for those in flight; returns how many were still there when time was up."""
        assert self.gate is not None, "drain comes after enter"
        self.gate.is_draining = True
        deadline = time.monotonic() + seconds
        while self.gate.in_flight and time.monotonic() < deadline and self.engine.is_alive():
            time.sleep(0.02)
        return self.gate.in_flight

    def close(self) -> None:
        """Stop gate and engine, in this order. Safe to call twice."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)
        if self._engine is not None:
            self._engine.stop()
        if self._listener is not None:
            self._listener.close()

    def _served(self, engine: EngineProcess) -> Served:
        deployed = self._deployment
        vocabulary = text_config(deployed.files.config)["vocab_size"]
        defaults = Defaults.of(self.serve, vocabulary, dict(deployed.generation), deployed.asked)
        limits = Limits.of(self.serve, deployed.context)
        dialect = DIALECTS[self._engine_spec.engine]()
        return Served(
            deployed.choices, vocabulary, limits, defaults, engine.socket, engine.problem, dialect
        )  # fmt: skip

    def _start_gate(self, gate: Gate) -> None:
        config = uvicorn.Config(
            gate.application(),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=5,
            ws="none",
            http="h11",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()


def open_for(serve: Serve, **changes: Any) -> Serve:
    """The same settings with some changed; None leaves a setting as it is."""
    return serve.model_copy(update={name: value for name, value in changes.items() if value is not None})


def check_host(host: str, token: str | None) -> None:
    """Loopback needs nothing; any other address needs a long token that the user chose."""
    if is_loopback(host) or (token is not None and len(token) >= MIN_REMOTE_TOKEN):
        return
    given = "no token was given" if token is None else f"the token has {len(token)} characters"
    raise UsageError(
        "SRV-003",
        f"serve.host={host} can be reached from other machines, and {given}.",
        where="serve.host",
        expected=f"a token of at least {MIN_REMOTE_TOKEN} characters that you choose, or a loopback address",
        fix='--token "$(openssl rand -hex 32)", or --set serve.host=127.0.0.1',
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is loaded, so that a taken port costs no time. Raises: FileError SRV-004."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_CONNECTIONS)
            stack.pop_all()  # it stays open when all went well
    except OSError as problem:
        raise FileError(
            "SRV-004",
            f"Cannot listen on {host} port {port}: {problem.strerror or problem}.",
            where="serve.port",
            expected="an address of this machine and a free port",
            fix="--set serve.port=0 takes a free port",
        ) from None
    return listener
