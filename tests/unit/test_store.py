"""The artifact store: what it holds verifies, what is damaged is not used, a lost race loses nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from tunesmith.errors import FileError
from tunesmith.runs import durable
from tunesmith.runs.store import Artifact, Store, fingerprint, sealed

PRODUCER = {"stage": "train", "version": 1, "recipe": {"seed": 17}, "inputs": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


def make(store: Store, id: str = "abc", text: str = "weights") -> Artifact:
    with store.create("Model", id, producer=PRODUCER, notes={"steps": 3}) as draft:
        (draft.path / "inner").mkdir()
        (draft.path / "inner" / "model.safetensors").write_text(text)
        (draft.path / "config.json").write_text("{}")
        draft.notes["best"] = 2
    assert draft.artifact is not None
    return draft.artifact


def test_an_artifact_is_found_with_its_manifest(store: Store) -> None:
    made = make(store)
    found = store.find("Model", "abc", verify="hash")
    assert found == made
    assert found.path == store.root / "model" / "abc"
    assert list(found.manifest["files"]) == ["config.json", "inner/model.safetensors"]
    assert found.manifest["producer"] == PRODUCER
    assert found.notes == {"steps": 3, "best": 2}
    assert store.find("Model", "other") is None
    assert store.find("Adapter", "abc") is None


def test_a_draft_that_fails_leaves_nothing(store: Store) -> None:
    def make_half() -> None:
        with store.create("Model", "abc", producer=PRODUCER) as draft:
            (draft.path / "half").write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        make_half()
    assert store.find("Model", "abc") is None
    assert list((store.root / "model").iterdir()) == []


DAMAGES = {
    "flipped": (lambda path: path.write_text("weighty"), "has other bytes than the manifest says"),
    "cut": (lambda path: path.write_text("wei"), "has 3 bytes, the manifest says 7"),
    "deleted": (lambda path: path.unlink(), "is missing"),
    "link": (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "is no plain file"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is no plain file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_artifact_not_used(store: Store, damage: str) -> None:
    artifact = make(store)
    told: list[str] = []
    store.on_damage = told.append
    act, words = DAMAGES[damage]
    act(artifact.path / "inner" / "model.safetensors")
    assert store.find("Model", "abc", verify="cheap") is None
    assert len(told) == 1
    assert "model.safetensors" in told[0]
    assert words in told[0]
    with pytest.raises(FileError, match=rf"RUN-005 .*model\.safetensors {words}"):
        store.verify(artifact)
    assert make(store).manifest["files"] == artifact.manifest["files"], "it can be made anew over the damaged one"
    assert store.find("Model", "abc", verify="hash") is not None


def test_a_manifest_vouches_for_each_of_its_bytes(store: Store) -> None:
    path = make(store).path / "manifest.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert store.find("Model", "abc") is None, f"byte {place}"
    path.write_bytes(data[:-1])
    assert store.find("Model", "abc") is None, "without its last newline"
    path.write_bytes(data)
    assert store.find("Model", "abc") is not None


@pytest.mark.parametrize("stand_in", ["pipe", "link", "folder", "other"])
def test_what_stands_in_for_a_manifest_is_named_and_not_waited_for(store: Store, stand_in: str) -> None:
    path = make(store).path / "manifest.json"
    told: list[str] = []
    store.on_damage = told.append
    away = path.rename(store.root / "away")
    if stand_in == "pipe":
        os.mkfifo(path)
    elif stand_in == "link":
        path.symlink_to(away)
    elif stand_in == "folder":
        path.mkdir()
    else:
        path.write_bytes(sealed({**json.loads(away.read_bytes()), "id": "other"}))
    assert store.find("Model", "abc") is None
    assert "manifest.json" in told[0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "Model"}', "[" * 5000])
def test_a_damaged_manifest_is_named(store: Store, text: str) -> None:
    artifact = make(store)
    (artifact.path / "manifest.json").write_text(text)
    told: list[str] = []
    store.on_damage = told.append
    assert store.find("Model", "abc") is None
    assert "manifest.json" in told[0]


def test_an_artifact_of_another_schema_is_not_used(store: Store) -> None:
    artifact = make(store)
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    (artifact.path / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    told: list[str] = []
    store.on_damage = told.append
    assert store.find("Model", "abc") is None
    assert "schema 99" in told[0]


def test_of_two_that_make_the_same_the_first_stays(store: Store) -> None:
    with store.create("Model", "abc", producer=PRODUCER) as slow:
        (slow.path / "file").write_text("slow")
        fast = make(store)
    assert slow.artifact == fast
    assert [path.name for path in (store.root / "model").iterdir()] == ["abc"]


def test_a_link_in_a_draft_is_refused(store: Store) -> None:
    with (
        pytest.raises(FileError, match="RUN-006 shortcut is a link"),
        store.create("Model", "abc", producer=PRODUCER) as draft,
    ):
        (draft.path / "shortcut").symlink_to("/etc/hostname")
    assert store.find("Model", "abc") is None


def test_what_a_dead_process_left_half_made_is_swept_by_the_next(store: Store) -> None:
    (store.root / "model" / ".tmp-abc-1234").mkdir(parents=True)
    make(store, "other")
    assert [path.name for path in (store.root / "model").iterdir()] == ["other"]


def test_a_full_disk_while_publishing_leaves_no_artifact(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(durable.Disk):
        def write(self, path: Path, data: bytes) -> None:
            raise OSError(28, "injected", str(path))

    monkeypatch.setattr(durable, "disk", Full())
    with pytest.raises(FileError, match="RUN-002 the disk is full"):
        make(store)
    monkeypatch.undo()
    assert store.find("Model", "abc") is None
    assert make(store)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "RUN-002 the disk is full"),
        (RuntimeError("I/O error: Input/output error (os error 5)"), "RUN-003 .*Input/output error"),
        (OSError("2220 requested and 2016 written"), "RUN-002 the disk is full"),
        (OSError(errno.EFBIG, "File too large", "/data/weights"), "RUN-003 /data/weights: File too large"),
    ],
)
def test_a_disk_that_fails_while_a_stage_writes_is_explained(store: Store, error: Exception, words: str) -> None:
    """The stage writes with numpy or safetensors, which know nothing of our errors."""

    def make_half() -> None:
        with store.create("Model", "abc", producer=PRODUCER):
            raise error

    with pytest.raises(FileError, match=words):
        make_half()
    assert list((store.root / "model").iterdir()) == []


def test_other_errors_of_a_stage_pass_as_they_are(store: Store) -> None:
    def make_half() -> None:
        with store.create("Model", "abc", producer=PRODUCER):
            raise FileNotFoundError(errno.ENOENT, "No such file", "rows.jsonl")

    with pytest.raises(FileNotFoundError, match=r"rows\.jsonl"):
        make_half()


def test_fingerprints_depend_on_content_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    assert fingerprint({"a": {3, 1, 2}}) == fingerprint({"a": [1, 2, 3]})
    assert len(fingerprint(None)) == 20
