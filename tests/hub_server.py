"""A stand-in for the model hub on a local port: enough of its HTTP for the real huggingface_hub client.

    with HubServer() as hub:
        hub.publish("acme/tiny", folder)        -> commit; main points at it
        hub.url                                  what HF_ENDPOINT is set to
        hub.requests                             ["GET /acme/tiny/resolve/main/config.json", ...]

Files that end in .safetensors are served as LFS files: named by their sha256, sized in the listing, resumable.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in"


@dataclass
class Repo:
    """commits: commit -> name -> content. branches: name -> commit. access: open, private, gated."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    access: str = "open"


class HubServer:
    """Behaves as told: `break_downloads` how large files go wrong; `repos[name].access` who may see them."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.break_downloads = ""  # "", "cut once", "wrong bytes"
        self.num_cut = 0

    def publish(self, name: str, files: Path | Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit of a model, and the branch moved to it."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
        repo = self.repos.setdefault(name, Repo())
        told = json.dumps([[key, hashlib.sha256(value).hexdigest()] for key, value in sorted(files.items())])
        commit = hashlib.sha1(f"{len(repo.commits)}{told}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        return commit

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fetched(self, suffix: str) -> list[str]:
        """GET requests for files whose name ends so."""
        return [
            line for line in self.requests if line.startswith("GET") and "/resolve/" in line and line.endswith(suffix)
        ]


def connect(monkeypatch: Any, url: str, folder: Path) -> None:
    """The client of this process asks the server at `url`, with a cache below `folder`. It reads its environment when it is
    imported, so its constants are set."""
    from huggingface_hub import constants

    from tunesmith.hub import download, hashes

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(download, "_listings", {})
    monkeypatch.setattr(hashes, "_known", {})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        split = urlsplit(self.path)
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        self.hub.requests.append(f"{self.command} {split.path}")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._api("/".join(parts[2:4]), parts[4:], "blobs" in parse_qs(split.query))
        elif parts[:2] == ["api", "datasets"] and len(parts) >= 4:  # published as "datasets/owner/name"
            self._api("/".join(parts[1:4]), parts[4:], "blobs" in parse_qs(split.query))
        elif len(parts) >= 6 and parts[0] == "datasets" and parts[3] == "resolve":
            self._file("/".join(parts[:3]), parts[4], "/".join(parts[5:]))
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse(404, "")

    def _repo(self, name: str) -> Repo | None:
        """The repository when it is there and may be seen; else it has been answered."""
        repo = self.hub.repos.get(name)
        given = self.headers.get("Authorization", "")
        if given and given != f"Bearer {TOKEN}":
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.access == "private" and not given):
            self._refuse(401, "RepoNotFound")  # the hub does not say whether it exists
        elif repo.access == "gated" and not given:
            self._refuse(401, "GatedRepo")
        else:
            return repo
        return None

    def _api(self, name: str, rest: list[str], with_sizes: bool) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return self._refuse(404, "RevisionNotFound")
        files = repo.commits[commit]
        if rest[:1] == ["tree"]:
            return self._json([{"type": "file", "path": path, **_facts(path, files[path])} for path in sorted(files)])
        siblings = [{"rfilename": path, **({"size": len(files[path])} if with_sizes else {})} for path in sorted(files)]
        self._json({"id": name, "sha": commit, "private": repo.access == "private", "tags": [], "siblings": siblings})

    def _file(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return self._refuse(404, "RevisionNotFound")
        content = repo.commits[commit].get(path)
        if content is None:
            return self._refuse(404, "EntryNotFound", commit=commit)
        facts = _facts(path, content)
        large, broken = "lfs" in facts, self.hub.break_downloads
        if large and broken == "wrong bytes":
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{facts["lfs"]["oid"] if large else facts["oid"]}"')
        self.send_header("Accept-Ranges", "bytes")
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if large and broken == "cut once" and self.hub.num_cut == 0:
            self.hub.num_cut += 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str = "", commit: str = "") -> None:
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message), ("X-Repo-Commit", commit)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _facts(path: str, content: bytes) -> dict:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    facts: dict = {"size": len(content), "oid": oid}
    if path.endswith(".safetensors"):
        facts["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return facts
