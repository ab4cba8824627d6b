"""What a stranger's folder may hold, looked at before any library reads it. Light.

Files are regular and lie in the folder (a link out of it would have a secret read, and copied into what is exported); JSON is
small and shallow; nothing in it names code; sizes in config.json are such that building the model cannot fill the machine.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

MAX_JSON_BYTES = 16 * 2**20  # of a configuration; the largest in use, with a quantisation for each layer, take 1 MB
MAX_INDEX_BYTES = 64 * 2**20  # of the weights' index; DeepSeek-V3's has 9 MB
MAX_DEPTH = 64
SMALL = (".json", ".jinja", ".model", ".txt")
LEGAL = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)[\w.-]*")
SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
ALLOWED_ATTENTION = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
ALLOWED_EXPERTS = {None, "eager", "batched_mm", "grouped_mm"}
IMPLEMENTATIONS = {
    "attn_implementation": ALLOWED_ATTENTION,
    "_attn_implementation": ALLOWED_ATTENTION,
    "experts_implementation": ALLOWED_EXPERTS,
    "_experts_implementation": ALLOWED_EXPERTS,
}
# Those of transformers; another word may have it look for a package or fetch a kernel.
QUANTISATIONS = {
    "aqlm", "auto-round", "awq", "bitnet", "bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "compressed-tensors",
    "eetq", "fbgemm_fp8", "fp8", "fp_quant", "gptq", "higgs", "hqq", "mxfp4", "quanto", "quark", "spqr", "torchao", "vptq",
}  # fmt: skip
# Keys of config.json -> the most that is believed: several times what any published model has.
BOUNDS = (
    (re.compile(r"(num|n)_(hidden_|decoder_|encoder_)?layers?|n_layer|num_blocks|num_nextn_predict_layers"), 1024),
    (re.compile(r"(num|n)_.*(experts?|heads?)(_per_tok)?|n_head"), 2**16),
    (
        re.compile(r".*vocab_size|.*hidden_size|.*intermediate_size|n_embd|d_model|n_inner|d_ff|ffn_dim|.*head_dim"),
        2**24,
    ),
    (re.compile(r"max_position_embeddings|n_positions|n_ctx|max_sequence_length|max_seq_len"), 2**28),
)


def refuse_odd_files(path: Path) -> None:
    """Raises ModelError MDL-019 for a link out of the folder, a pipe, a device; of files that would be read or copied."""
    home = path.resolve()
    # huggingface_hub keeps a snapshot's files as links to ../../blobs beside it.
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else None
    for entry in sorted(path.iterdir()):
        if entry.suffix != ".safetensors" and not is_carried(entry.name):
            continue
        target = Path(os.path.realpath(entry))
        if entry.is_symlink() and not target.is_relative_to(home) and not (blobs and target.parent == blobs):
            raise _odd(entry, f"is a link out of the folder, to {target}")
        try:
            mode = target.stat().st_mode
        except OSError as error:
            raise _odd(entry, f"cannot be read: {error.strerror}") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise _odd(entry, "is a pipe, a device or a socket")


def is_carried(name: str) -> bool:
    """Whether a file of this name goes where the model goes: settings, tokenizer, templates, licences; no code."""
    return name.endswith(SMALL) or bool(LEGAL.fullmatch(name) and not name.endswith((".py", ".so")))


def _odd(entry: Path, why: str) -> ModelError:
    return ModelError(
        "MDL-019",
        f"{entry} {why}",
        where="model.base",
        expected="regular files, in the folder of the model",
        fix="put a copy in the link's place (cp -L), or name the folder that the link leads to; remove what is no file",
    )


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """Raises OSError, or ValueError for what is no JSON, too large or too deep."""
    size = path.stat().st_size
    if size > most_bytes:
        raise ValueError(f"{size:,} bytes, at most {most_bytes:,} are read")
    try:
        content = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if _is_deep(content):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return content


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True


def refuse_code(path: Path) -> None:
    """Raises ModelError MDL-007 where a settings file of the folder asks for code, MDL-005 where one cannot be read."""
    for name in SETTINGS:
        if not (path / name).is_file():
            continue
        try:
            content = read_json(path / name)
        except (OSError, ValueError) as error:
            raise unreadable(path, name, error) from error
        _refuse_words(content, path / name)
        if name == "config.json":
            _refuse_sizes(content, path / name)


def unreadable(path: Path, name: str, error: Exception) -> ModelError:
    return ModelError(
        "MDL-005",
        f"{path} has no readable {name} ({error})",
        where="model.base",
        expected="a folder as save_pretrained writes it",
        fix="point model.base at the folder that holds config.json; fetch a damaged file again",
    )


def _refuse_words(content: Any, path: Path) -> None:
    for place, name, value in walk(content):
        named = IMPLEMENTATIONS.get(name)
        dangerous = (
            name == "auto_map"
            or (name == "trust_remote_code" and value)
            or name in ("_attn_implementation_internal", "custom_pipelines", "custom_generate")
            or (named is not None and (not isinstance(value, (str, type(None))) or value not in named))
            or (name == "quant_method" and (not isinstance(value, str) or value not in QUANTISATIONS))
        )
        if dangerous:
            raise ModelError(
                "MDL-007",
                f"{path} asks for code: {place} = {str(value)[:200]!r}",
                where="model.base",
                expected="a model that transformers itself implements",
                fix="use a revision of the model without remote code",
            )


def _refuse_sizes(content: Any, path: Path) -> None:
    """Raises ModelError MDL-020 for a size that no model has: building it would take all time or memory."""
    for place, name, value in walk(content):
        bound = next((most for pattern, most in BOUNDS if pattern.fullmatch(name)), None)
        if (
            bound is None
            or value is None
            or (isinstance(value, int) and 0 <= value <= bound)
            or isinstance(value, (dict, list))
        ):
            continue
        raise ModelError(
            "MDL-020",
            f"{path}: {place} is {str(value)[:80]}",
            where="model.base",
            expected=f"a whole number from 0 to {bound:,}",
            fix="fetch config.json again; it does not describe a model",
        )


def walk(node: Any, place: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path of a key, the key, its value) of all keys of a JSON document, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{place}{name}", name, value
            yield from walk(value, f"{place}{name}.")
    elif isinstance(node, list):
        for item in node:
            yield from walk(item, place)
