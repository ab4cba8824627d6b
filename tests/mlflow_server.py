"""A stand-in for an MLflow tracking server: the REST calls that MlflowClient makes for a run, kept in memory.

The full server is a package of its own (mlflow without "skinny"); the client that talks to this one is the real one.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from wandb_server import QuietServer

Mode = Literal["well", "hangs", "refuses"]


@dataclass
class KeptRun:
    id: str
    experiment: str
    name: str
    tags: dict[str, str]
    status: str = "RUNNING"
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        latest = {metric["key"]: metric for metric in self.metrics}
        info = {
            "run_id": self.id, "run_uuid": self.id, "run_name": self.name, "experiment_id": self.experiment, "status": self.status,
            "user_id": "me", "start_time": 0, "lifecycle_stage": "active", "artifact_uri": f"mlflow-artifacts:/{self.experiment}/{self.id}/artifacts",
        }  # fmt: skip
        data = {
            "metrics": list(latest.values()),
            "params": [{"key": k, "value": v} for k, v in self.params.items()],
            "tags": [{"key": k, "value": v} for k, v in self.tags.items()],
        }
        return {"info": info, "data": data, "inputs": {}, "outputs": {}}


class MlflowServer:
    """`url` answers while the block lasts. mode: "hangs" takes requests and never answers, "refuses" answers 503."""

    def __init__(self, mode: Mode = "well") -> None:
        self.mode: Mode = mode
        self.runs: dict[str, KeptRun] = {}
        self.experiments: dict[str, str] = {}
        self.asked: list[str] = []
        self.server = QuietServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"kept": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.ended = threading.Event()

    def __enter__(self) -> MlflowServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, told: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match path:
            case "experiments/get-by-name":
                name = told["experiment_name"]
                if name not in self.experiments:
                    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": name}
                return 200, {
                    "experiment": {"experiment_id": self.experiments[name], "name": name, "lifecycle_stage": "active"}
                }
            case "experiments/create":
                self.experiments[told["name"]] = str(len(self.experiments) + 1)
                return 200, {"experiment_id": self.experiments[told["name"]]}
            case "runs/search":
                wanted = told["filter"].split("'")[1]
                found = [run.to_json() for run in self.runs.values() if wanted in run.tags.values()]
                return 200, {"runs": found}
            case "runs/create":
                tags = {tag["key"]: tag["value"] for tag in told["tags"]}
                run = KeptRun(f"run{len(self.runs)}", told["experiment_id"], told["run_name"], tags)
                self.runs[run.id] = run
                return 200, {"run": run.to_json()}
        run = self.runs[told["run_id"]]
        match path:
            case "runs/get":
                return 200, {"run": run.to_json()}
            case "runs/update":
                run.status = told.get("status", run.status)
                return 200, {"run_info": run.to_json()["info"]}
            case "runs/log-batch":
                run.metrics += told.get("metrics", [])
                run.params |= {param["key"]: param["value"] for param in told.get("params", [])}
                return 200, {}
            case "runs/set-tag":
                run.tags[told["key"]] = told["value"]
                return 200, {}
            case "metrics/get-history":
                return 200, {"metrics": [m for m in run.metrics if m["key"] == told["metric_key"]]}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}


class _Handler(BaseHTTPRequestHandler):
    kept: MlflowServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        self.kept.asked.append(address.path)
        if self.kept.mode == "hangs":
            self.kept.ended.wait(120)
            return
        if self.kept.mode == "refuses":
            self._send(503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "closed"})
            return
        if self.command == "PUT":
            _, _, after = address.path.partition("/artifacts/")
            _, run, _, name = after.split("/", 3)
            self.kept.runs[run].files[name] = body
            self._send(200, {})
            return
        told = json.loads(body) if body else {key: values[0] for key, values in parse_qs(address.query).items()}
        self._send(*self.kept.answer(address.path.partition("/mlflow/")[2], told))

    do_GET = do_POST = do_PATCH = do_PUT = _handle

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def wait_until(true: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
