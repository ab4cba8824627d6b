"""Models of the hub through the real client against a server of our own: what is fetched, what is pinned, what is answered."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer, connect

from tunesmith import hub
from tunesmith.errors import InterruptedRun, ModelError, TunesmithError
from tunesmith.hub import download, hashes

NAME = "acme/tiny"


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that look like a model's; nothing loads them here."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 8}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("# a card")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    return folder


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture(autouse=True)
def at_this_hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, server.url, tmp_path)


def go_offline(monkeypatch: pytest.MonkeyPatch, how: str, tmp_path: Path) -> None:
    from huggingface_hub import constants

    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(download, "_listings", {})
    else:
        with socket.socket() as free:  # a port where nobody listens
            free.bind(("127.0.0.1", 0))
            connect(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path)


# ------------------------------------------------------------------------------------------------- what is fetched


def test_a_plan_fetches_the_configuration_and_nothing_else(server: HubServer, small_model: Path) -> None:
    commit = server.publish(NAME, small_model)
    found = hub.resolve_config(NAME)
    assert (found.commit, found.config["model_type"]) == (commit, "llama")
    assert found.bytes_to_fetch == (small_model / "model.safetensors").stat().st_size
    assert server.fetched("") == [f"GET /{NAME}/resolve/main/config.json"]


def test_preparing_fetches_small_files_and_training_the_weights_once(server: HubServer, small_model: Path) -> None:
    commit = server.publish(NAME, small_model)
    files = hub.resolve(NAME, commit, weights=False)
    assert (files.path / "tokenizer.json").is_file()
    assert (files.path / "chat_template.jinja").is_file()
    assert not server.fetched(".safetensors")
    whole = hub.resolve(NAME, commit)
    assert (whole.path / "model.safetensors").read_bytes() == (small_model / "model.safetensors").read_bytes()
    asked = len(server.requests)
    assert hub.resolve(NAME, commit).fingerprint == whole.fingerprint
    assert server.fetched(".safetensors") == [f"GET /{NAME}/resolve/{commit}/model.safetensors"]
    assert len(server.requests) == asked, "a commit that is in the cache needs no network"
    assert hub.resolve_config(NAME, commit).bytes_to_fetch == 0


def test_only_the_shards_that_make_the_model_are_fetched_and_counted(server: HubServer) -> None:
    """Repositories hold the same weights several times: consolidated, original, for other programs."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    extra = ("consolidated.safetensors", "original/model.safetensors", "onnx/config.json", "model.gguf")
    files = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: name.encode() for name in index["weight_map"].values()},
        **{name: b"not wanted" for name in extra},
    }
    commit = server.publish(NAME, files)
    assert hub.resolve_config(NAME).bytes_to_fetch == sum(len(name) for name in index["weight_map"].values())
    found = hub.resolve(NAME, commit)
    assert found.weights_bytes == sum(len(name) for name in index["weight_map"].values())
    assert not [line for line in server.requests for name in extra if line.endswith(name)]


def test_a_model_is_the_same_from_the_hub_and_from_a_folder(server: HubServer, small_model: Path) -> None:
    server.publish(NAME, small_model)
    assert hub.resolve(NAME).fingerprint == hub.resolve(str(small_model)).fingerprint


def test_a_download_tells_how_far_it_is_and_ends_when_its_listener_says_so(
    server: HubServer, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TOLD_EVERY_S", 0.0)
    size = (small_model / "model.safetensors").stat().st_size
    told: list[tuple[int, int]] = []
    server.publish(NAME, small_model)
    with hub.telling(lambda done, total: told.append((done, total))):
        hub.resolve(NAME)
    assert told[-1] == (size, size)
    assert all(total == size for _, total in told)

    def leave(done: int, total: int) -> None:
        raise InterruptedRun(2, "stopped while the base model was fetched")

    server.publish(
        "acme/other", {**{p.name: p.read_bytes() for p in small_model.iterdir()}, "model.safetensors": b"2" * 9999}
    )
    with hub.telling(leave), pytest.raises(InterruptedRun, match="stopped while"):
        hub.resolve("acme/other")
    assert hub.resolve("acme/other").weights_bytes == 9999, "the next command fetches it"


# --------------------------------------------------------------------------------------------- branches and commits


def test_a_commit_stays_and_a_branch_moves(server: HubServer, small_model: Path) -> None:
    old = server.publish(NAME, small_model)
    assert hub.resolve(NAME, "main").commit == old
    new = server.publish(NAME, {**{p.name: p.read_bytes() for p in small_model.iterdir()}, "model.safetensors": b"new"})
    assert hub.resolve(NAME, old).weights_bytes != 3
    assert hub.resolve(NAME, "main").commit == new
    assert hub.resolve(NAME, "main").weights_bytes == 3
    assert hub.latest_commit(NAME, None) == new
    assert hub.resolve(NAME, old).fingerprint != hub.resolve(NAME, new).fingerprint


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no network"])
def test_offline_what_was_fetched_before_is_used(
    server: HubServer, small_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    commit = server.publish(NAME, small_model)
    before = hub.resolve(NAME).fingerprint
    go_offline(monkeypatch, how, tmp_path)
    assert hub.resolve_config(NAME).commit == commit
    assert hub.resolve(NAME).fingerprint == before
    assert hub.resolve(NAME, commit).fingerprint == before
    assert hub.latest_commit(NAME, None) is None


def test_offline_what_was_never_fetched_is_answered(
    server: HubServer, small_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.publish(NAME, small_model)
    hub.resolve_config(NAME)  # the configuration alone is there
    go_offline(monkeypatch, "HF_HUB_OFFLINE", tmp_path)
    assert hub.resolve_config(NAME).bytes_to_fetch is None
    with pytest.raises(ModelError, match=r"(?s)MDL-014 .*the cache lacks model\.safetensors.*HF_HUB_OFFLINE"):
        hub.resolve(NAME)
    with pytest.raises(ModelError, match=r"MDL-014 .*the hub cannot be asked for acme/none"):
        hub.resolve_config("acme/none")


# ----------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("access", "revision", "told"),
    [
        ("absent", None, r"MDL-010 model\.base: the hub has no model acme/tiny"),
        ("private", None, r"(?s)MDL-010 .*HF_TOKEN"),
        ("gated", None, r"(?s)MDL-011 .*accept the terms on the model's page \(http"),
        ("open", "v9", r"MDL-012 model\.revision: acme/tiny has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_next_move(
    server: HubServer, small_model: Path, access: str, revision: str | None, told: str
) -> None:
    if access != "absent":
        server.publish(NAME, small_model)
        server.repos[NAME].access = access
    for call in (hub.resolve_config, hub.resolve):
        with pytest.raises(ModelError, match=told) as caught:
            call(NAME, revision)
        assert caught.value.exit_status == 66


def test_a_token_opens_and_a_bad_one_is_named(
    server: HubServer, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(NAME, small_model)
    server.repos[NAME].access = "gated"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.resolve(NAME).weights_bytes > 0
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelError, match=r"MDL-017 .*refuses your token") as caught:
        hub.resolve_config("acme/other")
    assert "hf_wrong" not in str(caught.value)


def test_what_is_no_base_model_is_refused_before_weights_are_fetched(server: HubServer) -> None:
    server.publish("acme/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1"})
    with pytest.raises(ModelError, match=r"MDL-013 .*acme/adapter has no config\.json"):
        hub.resolve_config("acme/adapter")
    server.publish("acme/pickle", {"config.json": b'{"model_type": "llama"}', "pytorch_model.bin": b"1"})
    for call in (hub.resolve_config, hub.resolve):
        with pytest.raises(ModelError, match=r"MDL-009 .*only pytorch_model\.bin \(pickle"):
            call("acme/pickle")
    code = {"config.json": b'{"model_type": "x", "auto_map": {"AutoModel": "x.X"}}', "model.safetensors": b"1"}
    server.publish("acme/code", code)
    with pytest.raises(ModelError, match=r"MDL-007 .*asks for code: auto_map"):
        hub.resolve_config("acme/code")
    assert not server.fetched(".safetensors")
    assert not server.fetched(".bin")


def test_a_download_that_breaks_off_goes_on_and_wrong_bytes_are_found(server: HubServer, small_model: Path) -> None:
    server.publish(NAME, small_model)
    server.break_downloads = "cut once"
    whole = hub.resolve(NAME)
    assert server.num_cut == 1
    assert (whole.path / "model.safetensors").read_bytes() == (small_model / "model.safetensors").read_bytes()

    server.break_downloads = "wrong bytes"
    server.publish(
        "acme/other", {**{p.name: p.read_bytes() for p in small_model.iterdir()}, "model.safetensors": b"2" * 99}
    )
    with pytest.raises(
        ModelError, match=r"(?s)MDL-015 .*model\.safetensors of the hub's cache is damaged.*rm '"
    ) as caught:
        _ = hub.resolve("acme/other").fingerprint
    server.break_downloads = ""
    move = caught.value.problems[0].fix
    for path in move.split("'")[1:4:2]:
        Path(path).unlink()
    assert len(hub.resolve("acme/other").fingerprint) == 20, "what the message says mends it"


def test_a_disk_that_cannot_hold_the_weights_is_refused_before_they_are_fetched(
    server: HubServer, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(NAME, small_model)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(TunesmithError, match=r"MDL-016 .*need 250 KiB, and 1000 B are free") as caught:
        hub.resolve(NAME)
    assert caught.value.exit_status == 74
    assert not server.fetched(".safetensors")


# -------------------------------------------------------------------------------------------------------------- hashes


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read for their hash."""
    read: list[str] = []
    digest = hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda path: read.append(path.name) or digest(path))
    return read


def test_a_file_is_read_once_and_an_edit_is_seen(
    tmp_path: Path, read_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED_S", -1.0)  # nothing is too young
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 1000)
    first = hashes.file_sha256(path)
    assert hashes.file_sha256(path) == first
    assert read_files == ["weights"]
    kept = path.stat()
    path.write_bytes(b"b" * 1000)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # somebody hides the edit: same size, same time
    assert hashes.file_sha256(path) != first
    assert read_files == ["weights", "weights"]


def test_what_was_written_just_now_is_read_again(tmp_path: Path, read_files: list[str]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a")
    hashes.file_sha256(path)
    hashes.file_sha256(path)
    assert read_files == ["weights", "weights"]


def test_large_files_are_remembered_for_the_next_process_and_small_ones_are_not(
    tmp_path: Path, read_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED_S", -1.0)
    monkeypatch.setattr(hashes, "LARGE_BYTES", 100)
    for name, size in (("large", 100), ("small", 99)):
        (tmp_path / name).write_bytes(b"x" * size)
    found = [hashes.file_sha256(tmp_path / name) for name in ("large", "small")]
    monkeypatch.setattr(hashes, "_known", {})  # the next process
    assert [hashes.file_sha256(tmp_path / name) for name in ("large", "small")] == found
    assert read_files == ["large", "small", "small"]
    (note,) = (tmp_path / "cache").rglob("*.json")
    monkeypatch.setattr(hashes, "_known", {})
    note.write_text('{"torn')
    assert hashes.file_sha256(tmp_path / "large") == found[0]
    assert read_files[-1] == "large"
