"""What preparation depends on besides the recipe. Light: the runner asks before anything heavy loads."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import hub
from tunesmith.stages.prepare.reading.files import files_of

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.runs.run import Run


def externals(spec: Recipe, run: Run) -> dict[str, Any]:
    """The source files' bytes, the tokenizer's files, the template file's bytes; weights of models that judge rows."""
    scores = spec.data.quality.type in ("perplexity", "difficulty")
    files = hub.resolve(spec.model.base, spec.model.revision, weights=scores)
    template = Path(spec.model.template)
    return {
        "sources": source_hashes(spec),
        "against": [[_hash(path) for path in files_of(named)] for named in against(spec)],
        "tokenizer": tokenizer_hash(files),
        "template": _hash(template) if template.suffix == ".jinja" and template.is_file() else None,
        **({"base": files.fingerprint} if scores else {}),
        **({"pii_model": pii_model_hash(spec)} if spec.data.filters.pii.model else {}),
    }


def against(spec: Recipe) -> tuple[str, ...]:
    """Files that must not be trained on."""
    return spec.data.leaks.against if spec.data.leaks.type == "drop" else ()


def source_hashes(spec: Recipe) -> list[list[str]]:
    """sha256 of each file of each source. Raises DataError DAT-001 when a source has none."""
    return [[_hash(path) for path in files] for files in source_files(spec)]


def source_files(spec: Recipe) -> list[list[Path]]:
    """The files of each source. Raises DataError DAT-001 when a source has none."""
    return [files_of(source.path, source.query) for source in spec.data.sources]


def tokenizer_hash(files: hub.ModelFiles) -> str:
    """Hash of everything that decides ids: tokenizer files, templates, stop tokens."""
    digest = hashlib.sha256()
    for path in sorted(files.path.glob("*")):
        named = (
            "token" in path.name or path.suffix in (".jinja", ".txt", ".model") or path.name == "generation_config.json"
        )
        if path.is_file() and named:
            digest.update(path.name.encode() + bytes.fromhex(_hash(path)))
    return digest.hexdigest()[:20]


def pii_model_hash(spec: Recipe) -> list[list[str]]:
    """[name, sha256] of each file of the model that marks personal data; empty without one, or where its folder is not there."""
    if spec.data.filters.pii.model is None:
        return []
    folder = Path(spec.data.filters.pii.model).expanduser()
    return [[path.name, _hash(path)] for path in sorted(folder.glob("*")) if path.is_file()]


def _hash(path: Path) -> str:
    """The runner asks and the stage asks: a file that has not changed meanwhile is read once."""
    state = path.stat()
    return _hash_once(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=10_000)
def _hash_once(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
