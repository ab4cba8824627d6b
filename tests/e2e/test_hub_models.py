"""A base model by its name on the hub, end to end: planned, prepared, trained by one commit, and again without a network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

from tunesmith import api

NAME = "acme/tiny"
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[HubServer]:
    with HubServer() as running:
        running.publish(NAME, tiny_model_dir)
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over a few chats, the cache, the workspace."""
    folder = tmp_path_factory.mktemp("hub-run")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(40):
            asked = f"Please repeat the number {number} and then say the word done, thank you."
            file.write(json.dumps({"prompt": asked, "completion": f"{number} done"}) + "\n")
    (folder / "recipe.yaml").write_text(
        f"name: hub\nmodel: {{base: {NAME}}}\nadapter: {{type: lora, rank: 2, targets: [q_proj]}}\n"
        "data: {sources: rows.jsonl, max_tokens: 256, split: {validation: 0.1, test: 0.1}}\n"
        "train: {max_steps: 2, batch_size: 2, threads: 1, micro_batch: 1}\ntrack: [console]\n"
    )
    return folder


@pytest.fixture(scope="module")
def call(server: HubServer, folder: Path, environment: dict[str, str]) -> Call:
    """`tunesmith ARGS` in a process that knows our server as the hub."""
    online = {**environment, "HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}

    def run(*arguments: object, **changed: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith", *map(str, arguments)], cwd=folder, env={**online, **changed},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def test_plan_and_prepare_fetch_no_weights(server: HubServer, folder: Path, call: Call) -> None:
    assert json.loads(call("plan", "recipe.yaml", "--json").stdout)["figures"]["peak_memory"]["value"] > 0
    assert [line.rsplit("/")[-1] for line in server.fetched("")] == ["config.json"]
    facts = json.loads(call("prepare", "recipe.yaml", "--json").stdout)
    assert facts["stages"] == {"prepare": {"status": "done", "seconds": facts["stages"]["prepare"]["seconds"]}}
    assert facts["base_model"] == {"base": NAME, "revision": None, "commit": server.repos[NAME].branches["main"]}
    assert not server.fetched(".safetensors")
    assert server.fetched("tokenizer.json")


def test_a_run_that_goes_on_keeps_its_commit_and_says_that_the_branch_has_moved(
    server: HubServer, folder: Path, tiny_model_dir: Path, call: Call
) -> None:
    if not (folder / "tunesmith-work").exists():
        call("prepare", "recipe.yaml")
    (pinned,) = set(server.repos[NAME].commits)
    files = {path.name: path.read_bytes() for path in tiny_model_dir.iterdir()}
    moved = server.publish(NAME, {**files, "README.md": b"another model"})
    told = call("train", "recipe.yaml")
    assert f"main of {NAME} has moved to {moved[:12]} since; this run stays with {pinned[:12]}" in told.stdout
    assert re.search(r"model   .* of .* fetched", told.stderr), "a long download shows that it moves"
    assert {line.split("/resolve/")[1] for line in server.fetched(".safetensors")} == {f"{pinned}/model.safetensors"}
    (run,) = api.runs(workspace=folder / "tunesmith-work")
    assert [e.value["total"] for e in run.events() if e.name == "run/base_model_bytes"][-1] == len(
        files["model.safetensors"]
    )
    config = json.loads((run.outputs("train")["model"].path / "adapter_config.json").read_text())  # type: ignore[index]
    assert config["base_model_name_or_path"] == NAME
    assert run.recipe.model.revision is None, "what was asked for is kept as it was asked"


def test_without_a_network_the_same_command_still_knows_that_all_is_done(folder: Path, call: Call) -> None:
    if not (folder / "tunesmith-work").exists():
        call("train", "recipe.yaml")
    assert "nothing to do" in call("train", "recipe.yaml", HF_HUB_OFFLINE="1").stdout
    assert "nothing to do" in call("train", "recipe.yaml", HF_ENDPOINT="http://127.0.0.1:9").stdout
