"""A stand-in for a Weights & Biases server: as much of its GraphQL, file stream and upload as the real client needs."""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class KeptRun:
    """What the server has of a run. history: rows in order. sessions: how often a client has begun."""

    name: str
    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    sessions: int = 0


class QuietServer(ThreadingHTTPServer):
    """A client that goes away in the middle is no error here."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


class WandbServer:
    """`url` answers on this machine's loopback while the block lasts; `runs` is what came in; authorised: what clients
    showed as their key."""

    def __init__(self) -> None:
        self.runs: dict[str, KeptRun] = {}
        self.authorised: set[str] = set()
        handler = type("Handler", (_Handler,), {"kept": self})
        self._server = QuietServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ------------------------------------------------------------------------------------------------- what is asked

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "RunResumeStatus" in query:
            return {"model": {**self._project(), "bucket": self._resume(variables["name"])}}
        if "UpsertBucket" in query:
            return {"upsertBucket": {"bucket": self._upsert(variables), "inserted": True}}
        if "CreateRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/upload/{variables['run']}/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "Viewer" in query:
            return {"viewer": {"id": "1", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _project(self) -> dict[str, Any]:
        return {"id": "p", "name": "project", "entity": {"id": "e", "name": "team"}}

    def _resume(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        return {
            **self._bucket(run), "summaryMetrics": json.dumps(run.summary), "logLineCount": 0, "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]",
            "tags": run.tags, "notes": None, "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip

    def _upsert(self, told: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(told["name"], KeptRun(told["name"]))
        run.sessions += told.get("displayName") is not None
        run.display_name = told.get("displayName") or run.display_name
        run.tags = told.get("tags") or run.tags
        if told.get("config"):
            run.config.update({name: entry["value"] for name, entry in json.loads(told["config"]).items()})
        return self._bucket(run)

    def _bucket(self, run: KeptRun) -> dict[str, Any]:
        config = json.dumps({name: {"value": value} for name, value in run.config.items()})
        return {
            "id": run.name, "name": run.name, "displayName": run.display_name, "description": None, "config": config,
            "sweepName": None, "project": self._project(), "historyLineCount": len(run.history),
        }  # fmt: skip

    def stream(self, name: str, told: dict[str, Any]) -> None:
        run = self.runs.setdefault(name, KeptRun(name))
        for file, chunk in (told.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if file.endswith(("jsonl", "summary.json")) else []
            if file == "wandb-history.jsonl":
                run.history[chunk["offset"] : chunk["offset"] + len(lines)] = lines
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        if told.get("complete"):
            run.exit_codes.append(told.get("exitcode"))


class _Handler(BaseHTTPRequestHandler):
    kept: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.headers.get("Authorization"):
            self.kept.authorised.add(self.headers["Authorization"])
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.kept.answer(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.kept.stream(self.path.split("/")[-2], json.loads(body))
        self._send(json.dumps(answer).encode())

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, _, run, name = self.path.split("/", 3)
        self.kept.runs.setdefault(run, KeptRun(run)).files[name] = body
        self._send(b"{}")

    def do_GET(self) -> None:
        self._send(b"{}")

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
