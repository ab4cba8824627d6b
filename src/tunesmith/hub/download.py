"""From the hub into its cache, by commit: the configuration alone, the small files, the weights. The only door to huggingface_hub.

What the cache holds is used as it is when the hub cannot be asked (HF_HUB_OFFLINE=1, no network, an expired token).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, FileError, ModelError, TunesmithError
from tunesmith.units import format_bytes

COMMIT = re.compile(r"^[0-9a-f]{40}$")
NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
BELOW = ["*/*"]  # other formats, the originals, ONNX: nothing that transformers reads lies in a folder below
ASK_TIMEOUT_S = 10.0
TOLD_EVERY_S = 1.0

Told = Callable[[int, int], None]  # bytes so far, bytes in all
_listener: ContextVar[Told | None] = ContextVar("tunesmith_downloads", default=None)
_listings: dict[tuple[str, str], dict[str, int]] = {}  # a commit never changes, so it is asked about once per process


@dataclass(frozen=True)
class Found:
    """A file of the hub in the cache, and the commit it belongs to."""

    path: Path
    commit: str


def is_hub_name(base: str) -> bool:
    """True for owner/name on the hub; a folder of that name comes first."""
    return bool(NAME.match(base)) and not Path(base).is_dir()


@contextlib.contextmanager
def telling(listener: Told) -> Iterator[None]:
    """Within the block every download tells the listener, about once a second, one call at a time, from threads of its own.

    What the listener raises ends the download.
    """
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def latest_commit(base: str, revision: str | None) -> str | None:
    """What a branch or tag stands for now; None where the hub cannot be asked."""
    try:
        from huggingface_hub import HfApi

        return HfApi().model_info(base, revision=revision, timeout=ASK_TIMEOUT_S).sha
    except Exception:  # this is asked out of courtesy, in order to tell; no answer is an answer
        return None


def fetch_config(base: str, revision: str | None) -> Found:
    """config.json and nothing else. revision: commit, tag or branch. Raises ModelError MDL-003, MDL-010 and on."""
    with _explained(base, revision):
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(base, "config.json", revision=revision, tqdm_class=_bar(0)))
    return Found(path, path.parent.name)


def fetch_small(base: str, commit: str) -> Path:
    """The snapshot's folder with everything but weights: tokenizer, templates, settings, the weights' index."""
    return _fetch(base, commit, SMALL_FILES, 0)


def fetch_weights(base: str, commit: str, folder: Path, names: frozenset[str]) -> None:
    """The named safetensors beside the small files of `folder`.

    Raises ModelError MDL-014 when the hub cannot be asked for what is missing, FileError MDL-016 when the disk is too small.
    """
    missing = sorted(name for name in names if not (folder / name).is_file())
    if not missing:
        return
    sizes = listing(base, commit)
    needed = sum((sizes or {}).get(name, 0) for name in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FileError(
            "MDL-016",
            f"the weights of {base} need {format_bytes(needed)}, and {format_bytes(free)} are free",
            where=str(folder),
            expected="room for the weights in the hub's cache",
            fix="free some space, or point HF_HOME at another disk",
        )
    _fetch(base, commit, missing, needed)
    missing = [name for name in missing if not (folder / name).is_file()]
    if missing and sizes is None:
        raise _unreachable(base, commit, f"the cache lacks {', '.join(missing)}")


def listing(base: str, commit: str) -> dict[str, int] | None:
    """Name -> bytes of each file of a commit; None where the hub cannot be asked."""
    if (base, commit) not in _listings:
        try:
            from huggingface_hub import HfApi

            told = HfApi().model_info(base, revision=commit, files_metadata=True, timeout=ASK_TIMEOUT_S)
        except Exception:  # whoever needs the answer says why there is none
            return None
        _listings[base, commit] = {file.rfilename: file.size or 0 for file in told.siblings or []}
    return _listings[base, commit]


def fetch_rows(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The snapshot's folder of a data set with the files that match. Raises DataError DAT-038."""
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns, tqdm_class=_bar(0))
        )
    except TunesmithError:  # of a listener
        raise
    except Exception as error:  # as for models: every one is an answer about this data set
        raise DataError(
            "DAT-038",
            f"hf://datasets/{name}{f'@{revision}' if revision else ''} cannot be fetched: {_reason(error)}",
            where="data.sources",
            expected="a data set that may be read, and a network",
            fix="check the name; for a private or gated one set HF_TOKEN; offline (HF_HUB_OFFLINE=1) only what was fetched before",
        ) from error


def _fetch(base: str, commit: str, patterns: list[str], total: int) -> Path:
    with _explained(base, commit):
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                base, revision=commit, allow_patterns=patterns, ignore_patterns=BELOW, tqdm_class=_bar(total)
            )
        )


# ---------------------------------------------------------------------------------------------------------- progress


def _bar(total: int) -> type:
    """A progress bar for huggingface_hub that draws nothing and tells the listener. total: bytes, 0 when not known."""
    from tqdm.std import tqdm

    listener, lock, last = _listener.get(), threading.Lock(), [0.0]

    class Bar(tqdm):
        monitor_interval = 0  # no thread of its own

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False, "file": _Nowhere(), "mininterval": 0})

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            # Bars that count files pass by; of two that count bytes, on the net and on the disk, both come to the total.
            if listener is not None and self.unit == "B" and total:
                with lock:
                    if time.monotonic() - last[0] >= TOLD_EVERY_S or self.n >= total:
                        last[0] = time.monotonic()
                        listener(min(int(self.n), total), total)
            return drawn

    return Bar


class _Nowhere:
    """A stream that forgets."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------------------ errors


@contextlib.contextmanager
def _explained(base: str, revision: str | None) -> Iterator[None]:
    """What huggingface_hub raises, in our words."""
    try:
        yield
    except TunesmithError:  # of a listener
        raise
    except ImportError as error:
        raise ModelError(
            "MDL-003",
            f"{base} is on the hub and huggingface_hub cannot be imported: {error}",
            where="model.base",
            expected="the hub extra",
            fix="pip install 'tunesmith[hub]', or give a folder",
        ) from error
    except Exception as error:  # a dozen kinds, of two HTTP libraries; every one is an answer about this model
        raise _explanation(error, base, revision) from error


def _explanation(error: Exception, base: str, revision: str | None) -> ModelError:
    from huggingface_hub import errors

    at = f"@{revision}" if revision else ""
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            "MDL-011",
            f"{base} is gated: its owner wants to know who fetches it",
            where="model.base",
            expected="a token of an account that has accepted its terms",
            fix=f"accept the terms on the model's page ({_page(base)}), then set HF_TOKEN or run `hf auth login`",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            "MDL-010",
            f"the hub has no model {base}, or only for those who may see it",
            where="model.base",
            expected="the name of a model, owner/name",
            fix=f"check the name at {_page(base)}; for a private one set HF_TOKEN or run `hf auth login`",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            "MDL-012",
            f"{base} has no revision {revision!r}",
            where="model.revision",
            expected="a branch, a tag or a commit of the model",
            fix="leave model.revision out for the main branch; a run whose commit is gone needs a new model.revision",
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _unreachable(base, revision, _reason(error.__cause__ or error))
    if isinstance(error, errors.EntryNotFoundError):
        return ModelError(
            "MDL-013",
            f"{base}{at} has no config.json",
            where="model.base",
            expected="a model as transformers saves it",
            fix="an adapter or a GGUF file is no base: name the model it was made from",
        )
    if getattr(getattr(error, "response", None), "status_code", None) == 401:
        return ModelError(
            "MDL-017",
            "the hub refuses your token",
            where="model.base",
            expected="a valid token, or none",
            fix="set HF_TOKEN to a new one, or run `hf auth login`",
        )
    return ModelError(
        "MDL-004",
        f"{base}{at} could not be fetched: {_reason(error)}",
        where="model.base",
        expected="a download that comes to its end",
        fix="run the same command again: whole files are kept; or give the folder of a downloaded copy",
    )


def _unreachable(base: str, revision: str | None, why: str) -> ModelError:
    return ModelError(
        "MDL-014",
        f"the hub cannot be asked for {base}{f'@{revision}' if revision else ''}, and no whole copy is in its cache: {why}",
        where="model.base",
        expected="a network, or a model that was fetched before",
        fix=f"check the network and HF_HUB_OFFLINE; or fetch it elsewhere (hf download {base}) and give the folder",
    )


def _page(base: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{base}"


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
