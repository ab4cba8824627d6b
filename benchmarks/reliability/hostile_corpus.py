"""What a stranger could hand over, made by code: models, tokenizers, templates, recipes, rows, adapters, artifacts.

A case makes its files in a folder of its own and then has tunesmith load them by the same doors as its commands do. Each
payload tries to write CANARY, or to read SECRET, and names the marker; the judge (hostile.py) looks for all three.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import pickle
import shutil
import sqlite3
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = "hostile_marker_3f9a"
SECRET_TEXT = "the-secret-of-another-folder-77c1"
CANARY, SECRET = "../outside/canary", "../outside/secret"  # from the case's folder

Make = Callable[[Path], Any]  # gets the case's folder, returns what `act` gets
Act = Callable[[Any, Path], Any]  # what was made, the workspace


@dataclass(frozen=True)
class Case:
    """answers: codes of which one has to come; "" where loading must go well and do no harm."""

    name: str
    make: Make
    act: Act
    answers: tuple[str, ...]


def case(name: str, make: Make, act: Act, *answers: str) -> Case:
    return Case(name, make, act, answers or ("",))


# ------------------------------------------------------------------------------------------------------------- loading


def load_model(folder: Path, workspace: Path) -> Any:
    """As prepare and train do: files, tokenizer, weights."""
    import torch

    from tunesmith import hub
    from tunesmith.modeling.load import load_model
    from tunesmith.text.example import Message
    from tunesmith.text.tokenizers import load_tokenizer

    files = hub.resolve(str(folder))
    tokenizer = load_tokenizer(files)
    tokenizer.encode_prompt([Message("user", "What is 1 + 1?" + "a" * 200)])
    model = load_model(files, device=torch.device("cpu"))
    return model(input_ids=torch.tensor([[5, 6, 7]])).logits


def load_tokenizer(folder: Path, workspace: Path) -> Any:
    from tunesmith import hub
    from tunesmith.text.example import Message
    from tunesmith.text.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(hub.resolve(str(folder), weights=False))
    for text in ("Tell me 12 things.", "a" * 3000 + "!", " " * 3000 + "x", "q" * 3000 + "!z"):
        ids = tokenizer.encode_prompt([Message("user", text)])
        assert len(ids) <= 4 * len(text) + 100, f"{len(ids)} ids of {len(text)} characters"
    return tokenizer


def render(source: str, workspace: Path) -> Any:
    from tunesmith.text.example import Message
    from tunesmith.text.templates import ChatTemplate

    class Nowhere:
        source = "hostile"

    path = workspace / "t.jinja"
    path.write_text(source)
    template = ChatTemplate.load(Nowhere, str(path), None)  # type: ignore[arg-type]
    return template.segments([Message("user", "a"), Message("assistant", "b")])


def read_recipe(text: str, workspace: Path) -> Any:
    from tunesmith.recipe import load_recipe

    path = workspace / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def run_recipe(text: str, workspace: Path) -> Any:
    from tunesmith import api

    path = workspace / "recipe.yaml"
    path.write_text(text)
    return api.run(path, workspace=workspace / "work", quiet=True)


def prepare_recipe(text: str, workspace: Path) -> Any:
    from tunesmith import api

    path = workspace / "recipe.yaml"
    path.write_text(text)
    return api.prepare(path, workspace=workspace / "work", quiet=True)


def read_rows(source: Any, workspace: Path) -> list[Any]:
    """All positions of a source, as prepare reads them; a row that is refused raises its code."""
    from tunesmith.stages.prepare.reading.files import files_of
    from tunesmith.stages.prepare.reading.reader import Bad, read_rows

    path, query = source if isinstance(source, tuple) else (str(source), None)
    rows = [row for file in files_of(path, query) for row in read_rows(file)]
    bad = next((row for row in rows if isinstance(row, Bad)), None)
    if bad is not None:
        from tunesmith.errors import DataError

        raise DataError(bad.code, bad.what)
    return [repr(row)[:100] for row in rows[:100]]


def prepare_rows(path: Path, workspace: Path) -> Any:
    """By `tunesmith prepare`, in this process."""
    from tunesmith import api

    recipe = workspace / "recipe.yaml"
    recipe.write_text(f"data: {{sources: {json.dumps(str(path))}, on_bad_row: quarantine, max_bad_share: 1}}\n")
    return api.prepare(recipe, workspace=workspace / "work", quiet=True)


def load_adapter(folder: Path, workspace: Path) -> Any:
    import torch

    from tunesmith import hub
    from tunesmith.modeling.adapters import load_adapter
    from tunesmith.modeling.load import load_model

    model = load_model(hub.resolve("builtin:tunesmith-tiny"), device=torch.device("cpu"))
    return load_adapter(model, folder)


def serve_adapter(folder: Path, workspace: Path) -> Any:
    import torch

    from tunesmith import hub
    from tunesmith.modeling.adapters import load_adapters
    from tunesmith.modeling.load import load_model

    model = load_model(hub.resolve("builtin:tunesmith-tiny"), device=torch.device("cpu"))
    return load_adapters(model, [folder])


# -------------------------------------------------------------------------------------------------------------- models


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"echo {MARKER} > {self.canary}",)


def payload(folder: Path) -> bytes:
    return pickle.dumps(Payload((folder / CANARY).resolve()))


def code(folder: Path) -> str:
    """Python that betrays itself when it runs."""
    return f"import os\n{MARKER} = 1\nopen({str((folder / CANARY).resolve())!r}, 'w').write('{MARKER}')\n"


def tiny(folder: Path) -> Path:
    """An honest model to be spoiled."""
    from tunesmith.hub.files import BUILTIN

    model = folder / "model"
    shutil.copytree(BUILTIN / "tunesmith-tiny", model)
    return model


def model_with(**changes: Any) -> Make:
    """config.json with other values."""

    def make(folder: Path) -> Path:
        model = tiny(folder)
        edit(model / "config.json", **changes)
        return model

    return make


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def model_files(spoil: Callable[[Path], Any]) -> Make:
    def make(folder: Path) -> Path:
        model = tiny(folder)
        spoil(model)
        return model

    return make


def pickled_weights(name: str, *, alone: bool = True, zipped: bool = False) -> Make:
    def spoil(model: Path) -> None:
        if alone:
            (model / "model.safetensors").unlink()
        data = payload(model.parent)
        if zipped:
            with zipfile.ZipFile(model / name, "w") as archive:
                archive.writestr("archive/data.pkl", data)
        else:
            (model / name).write_bytes(data)

    return model_files(spoil)


def remote_code(model: Path) -> None:
    for name in ("modeling_hostile", "configuration_hostile", "tokenization_hostile", "__init__", "setup", "conftest"):
        (model / f"{name}.py").write_text(code(model.parent))


def with_remote_code(**changes: Any) -> Make:
    def make(folder: Path) -> Path:
        model = model_with(**changes)(folder)
        remote_code(model)
        return model

    return make


def header(entries: Any, size: int | None = None, rest: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + rest


def weights(data: bytes) -> Make:
    return model_files(lambda model: (model / "model.safetensors").write_bytes(data))


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def index(names: Any) -> Make:
    def spoil(model: Path) -> None:
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    return model_files(spoil)


def link(name: str, target: Callable[[Path], Path] | str) -> Make:
    def spoil(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(target(model) if callable(target) else target)

    return model_files(spoil)


def secret_of(model: Path) -> Path:
    return (model.parent / SECRET).resolve()


def fifo(name: str) -> Make:
    def spoil(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)

    return model_files(spoil)


def text_file(name: str, text: str | bytes) -> Make:
    def spoil(model: Path) -> None:
        (model / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return model_files(spoil)


DEEP = "[" * 200_000 + "]" * 200_000


def outside_weights(folder: Path) -> Path:
    """Good weights that lie outside, linked into the folder."""
    model = tiny(folder)
    target = folder.parent / "outside" / "weights.safetensors"
    shutil.move(model / "model.safetensors", target)
    (model / "model.safetensors").symlink_to(target)
    return model


def hub_cache(folder: Path) -> Path:
    """The layout of huggingface_hub's cache, whose links to ../../blobs are no escape."""
    plain = tiny(folder)
    snapshot, blobs = folder / "models--a--b" / "snapshots" / ("0" * 40), folder / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        shutil.move(path, blobs / f"blob{number}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob{number}")
    return snapshot


def models() -> Iterator[Case]:
    yield case("model/pickle .bin alone", pickled_weights("pytorch_model.bin"), load_model, "MDL-009")
    yield case("model/pickle .pt alone", pickled_weights("model.pt"), load_model, "MDL-009")
    yield case("model/zipped pickle alone", pickled_weights("pytorch_model.bin", zipped=True), load_model, "MDL-009")
    yield case("model/pickle beside safetensors", pickled_weights("pytorch_model.bin", alone=False), load_model, "")
    yield case("model/pickle named safetensors", pickled_weights("model.safetensors"), load_model, "MDL-103")
    yield case("model/training_args.bin", pickled_weights("training_args.bin", alone=False), load_model, "")
    auto = {"AutoConfig": "configuration_hostile.C", "AutoModelForCausalLM": "modeling_hostile.M"}
    yield case("model/auto_map", with_remote_code(auto_map=auto), load_model, "MDL-007")
    yield case("model/auto_map, own type", with_remote_code(auto_map=auto, model_type="hostile"), load_model, "MDL-007")
    yield case("model/unknown type", with_remote_code(model_type="hostile"), load_model, "MDL-103")
    yield case("model/nested auto_map", with_remote_code(text_config={"auto_map": auto}), load_model, "MDL-007")
    listed = [{"deep": [{"auto_map": auto}]}]
    yield case("model/auto_map in a list", with_remote_code(layers=listed), load_model, "MDL-007")
    yield case("model/nested trust", with_remote_code(vision_config={"trust_remote_code": True}), load_model, "MDL-007")
    for key in ("_attn_implementation_internal", "_attn_implementation", "attn_implementation"):
        yield case(f"model/{key}", with_remote_code(**{key: "stranger/kernels:code"}), load_model, "MDL-007")
    yield case("model/experts from the hub", model_with(experts_implementation="stranger/x"), load_model, "MDL-007")
    quantised = {"quant_method": "stranger", "modules_to_not_convert": ["(a+)+$"]}
    yield case(
        "model/unknown quantisation", model_with(quantization_config=quantised), load_model, "MDL-007", "MDL-103"
    )
    yield case("model/config is a list", text_file("config.json", "[]"), load_model, "MDL-006")
    yield case("model/config is deep", text_file("config.json", DEEP), load_model, "MDL-005")
    deep = '{"model_type": "llama", "a": ' + '{"a": ' * 900 + "1" + "}" * 901
    yield case("model/config is rather deep", text_file("config.json", deep), load_model, "MDL-005")
    yield case(
        "model/config of 40 MB", text_file("config.json", '{"a": "' + "x" * 40_000_000 + '"}'), load_model, "MDL-005"
    )
    yield case(
        "model/config with an endless number",
        text_file("config.json", '{"a": 1' + "0" * 9000 + "}"),
        load_model,
        "MDL-005",
    )
    for name, value in {
        "num_hidden_layers": 10**9, "hidden_size": 3 * 2**30, "vocab_size": 10**12, "intermediate_size": 10**11,
        "num_attention_heads": 10**8, "max_position_embeddings": 10**15, "head_dim": 10**9,
    }.items():  # fmt: skip
        yield case(f"model/{name} {value}", model_with(**{name: value}), load_model, "MDL-020")
    yield case(
        "model/wider than its weights",
        model_with(hidden_size=2**16, intermediate_size=2**18),
        load_model,
        "TXT-022",
        "MDL-109",
        "MDL-112",
    )
    yield case("model/deeper than its weights", model_with(num_hidden_layers=1000), load_model, "MDL-112", "MDL-104")
    yield case("model/negative sizes", model_with(num_hidden_layers=-5, hidden_size=-192), load_model, "MDL-020")
    yield case(
        "model/sizes that are texts",
        model_with(hidden_size=f"__import__('os').system('{MARKER}')"),
        load_model,
        "TXT-022",
        "MDL-020",
        "MDL-103",
    )
    yield case(
        "model/a GPT-2 of many positions",
        model_with(
            model_type="gpt_neo", max_position_embeddings=2**27, num_layers=2, attention_types=[[["global"], 2]]
        ),
        load_model,
        "TXT-022",
        "MDL-020",
        "MDL-103",
        "MDL-112",
        "MDL-104",
    )
    yield case("weights/header longer than the file", weights(header({}, 2**62)), load_model, "MDL-103")
    yield case("weights/header of 100 MB", weights(header(b" " * 1000, 100_000_000)), load_model, "MDL-103")
    yield case(
        "weights/shape of 10**18",
        weights(header({"a": entry([10**9, 10**9], 0, 4)}, rest=b"\0" * 4)),
        load_model,
        "MDL-103",
    )
    yield case("weights/shape that overflows", weights(header({"a": entry([2**63, 2], 0, 0)})), load_model, "MDL-103")
    yield case(
        "weights/offsets beyond the end",
        weights(header({"a": entry([4], 0, 2**40)}, rest=b"\0" * 16)),
        load_model,
        "MDL-103",
    )
    yield case(
        "weights/negative offsets", weights(header({"a": entry([4], -16, 0)}, rest=b"\0" * 16)), load_model, "MDL-103"
    )
    yield case(
        "weights/overlapping",
        weights(header({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, rest=b"\0" * 16)),
        load_model,
        "MDL-103",
        "MDL-104",
    )
    yield case(
        "weights/a hole",
        weights(header({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, rest=b"\0" * 12)),
        load_model,
        "MDL-103",
    )
    yield case("weights/deep header", weights(header(b'{"a": ' * 10_000 + b"1" + b"}" * 10_000)), load_model, "MDL-103")
    yield case("weights/metadata of an archive", weights(b"PK\x03\x04" + b"\0" * 64), load_model, "MDL-103")
    for name in (
        "../outside/secret.safetensors",
        "/etc/passwd",
        "a/../../b.safetensors",
        "..",
        "pytorch_model.bin",
        "a\0.safetensors",
    ):
        yield case(f"index/{name!r}", index({"a": name}), load_model, "MDL-008")
    yield case("index/is a list", index([1, 2]), load_model, "MDL-018")
    yield case("index/deep", text_file("model.safetensors.index.json", DEEP), load_model, "MDL-018")
    yield case("link/tokenizer to a secret", link("tokenizer.json", secret_of), load_model, "MDL-019")
    yield case("link/template to a secret", link("chat_template.jinja", secret_of), load_model, "MDL-019")
    yield case("link/vocabulary to a secret", link("notes.txt", secret_of), load_model, "MDL-019")
    yield case("link/config to a device", link("config.json", "/dev/zero"), load_model, "MDL-019")
    yield case("link/weights outside", outside_weights, load_model, "MDL-019")
    yield case("link/weights to a device", link("model.safetensors", "/dev/zero"), load_model, "MDL-019")
    yield case("link/a circle", link("tokenizer.json", "tokenizer.json"), load_model, "MDL-019")
    yield case("link/the hub's cache", hub_cache, load_model, "")
    for name in ("config.json", "tokenizer.json", "model.safetensors", "generation_config.json"):
        yield case(f"pipe/{name}", fifo(name), load_model, "MDL-019")
    yield case(
        "generation/auto_map",
        text_file("generation_config.json", json.dumps({"auto_map": auto})),
        load_model,
        "MDL-007",
    )
    yield case("generation/deep", text_file("generation_config.json", DEEP), load_model, "MDL-005")
    yield case(
        "generation/end tokens",
        text_file("generation_config.json", '{"eos_token_id": {"a": ["b"]}}'),
        load_model,
        "MDL-005",
        "TXT-022",
        "MDL-103",
    )


# ---------------------------------------------------------------------------------------------------------- tokenizers


def tokenizer_json(spoil: Callable[[dict[str, Any]], Any]) -> Make:
    def make(folder: Path) -> Path:
        model = tiny(folder)
        content = json.loads((model / "tokenizer.json").read_bytes())
        spoil(content)
        (model / "tokenizer.json").write_text(json.dumps(content))
        return model

    return make


def tokenizer_config(**changes: Any) -> Make:
    def spoil(model: Path) -> None:
        edit(model / "tokenizer_config.json", **changes)
        remote_code(model)

    return model_files(spoil)


def split(pattern: str) -> Make:
    entry = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return tokenizer_json(lambda made: made.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [entry, level]}))


def replacing(pattern: dict[str, str], content: str, times: int = 1) -> Make:
    one = {"type": "Replace", "pattern": pattern, "content": content}
    return tokenizer_json(lambda made: made.update(normalizer={"type": "Sequence", "normalizers": [one] * times}))


def added(tokens: list[dict[str, Any]]) -> Make:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return tokenizer_json(lambda made: made["added_tokens"].extend({**plain, **token} for token in tokens))


def tokenizers() -> Iterator[Case]:
    yield case(
        "tokenizer/auto_map",
        tokenizer_config(auto_map={"AutoTokenizer": ["tokenization_hostile.T", None]}),
        load_tokenizer,
        "MDL-007",
    )
    yield case(
        "tokenizer/class of a module",
        tokenizer_config(tokenizer_class="tokenization_hostile.T"),
        load_tokenizer,
        "",
        "TXT-022",
    )
    yield case(
        "tokenizer/unknown class", tokenizer_config(tokenizer_class="HostileTokenizer"), load_tokenizer, "", "TXT-022"
    )
    yield case(
        "tokenizer/class with a path",
        tokenizer_config(tokenizer_class="../../outside/secret"),
        load_tokenizer,
        "",
        "TXT-022",
    )
    yield case("tokenizer/trust", tokenizer_config(trust_remote_code=True), load_tokenizer, "MDL-007")
    yield case(
        "tokenizer/chat template that escapes",
        tokenizer_config(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        load_tokenizer,
        "refused",
    )
    yield case(
        "tokenizer/chat template that is a list",
        tokenizer_config(chat_template=[{"name": "../../x", "template": "{{ 1 }}"}]),
        load_tokenizer,
        "TXT-020",
        "TXT-022",
    )
    yield case(
        "tokenizer/chat template that is a number",
        tokenizer_config(chat_template=7),
        load_tokenizer,
        "TXT-020",
        "TXT-022",
        "TXT-021",
    )
    yield case("tokenizer/deep config", text_file("tokenizer_config.json", DEEP), load_tokenizer, "MDL-005")
    yield case(
        "tokenizer/token that is an object",
        tokenizer_config(eos_token={"__type": "AddedToken", "content": {"a": 1}}),
        load_tokenizer,
        "TXT-022",
    )
    for name, pattern in {
        "(a+)+$": r"(a+)+$", "(a*)*b": r"(a*)*b", "(?:q|q)*z": r"(?:q|q|qq)*z", "((q+)?)+z": r"((?:q+)?)+z",
        "(.*q){20}": r"(.*q){20,}z", "backreference": r"(q+)\1+z",
    }.items():  # fmt: skip
        yield case(f"tokenizer/regex {name}", split(pattern), load_tokenizer, "TXT-025", "TXT-022")
    yield case("tokenizer/regex of 10 MB", split("a|" * 5_000_000 + "b"), load_tokenizer, "TXT-025", "TXT-022")
    yield case("tokenizer/broken regex", split("(((("), load_tokenizer, "TXT-022")
    yield case("tokenizer/replacing that grows", replacing({"String": "q"}, "q" * 10, 12), load_tokenizer, "TXT-025")
    yield case("tokenizer/replacing by a book", replacing({"String": "a"}, "b" * 10_000_000), load_tokenizer, "TXT-025")
    yield case("tokenizer/replacing a bomb", replacing({"Regex": "(q+)+z"}, "b"), load_tokenizer, "TXT-025")
    yield case(
        "tokenizer/100,000 added tokens",
        added([{"id": 5000 + n, "content": f"<x{n}>"} for n in range(100_000)]),
        load_tokenizer,
        "TXT-025",
    )
    yield case(
        "tokenizer/added token of 5 MB", added([{"id": 3000, "content": "x" * 5_000_000}]), load_tokenizer, "TXT-025"
    )
    yield case(
        "tokenizer/id beyond 32 bits",
        added([{"id": 2**32 - 1, "content": "<huge>"}]),
        load_tokenizer,
        "TXT-025",
        "TXT-022",
    )
    padding = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }
    yield case(
        "tokenizer/padding to 10**9", tokenizer_json(lambda made: made.update(padding=padding)), load_tokenizer, ""
    )
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    yield case("tokenizer/truncation to 3", tokenizer_json(lambda made: made.update(truncation=cut)), not_cut, "")
    yield case(
        "tokenizer/300 MB", text_file("tokenizer.json", '{"a": "' + "x" * 300_000_000 + '"}'), load_tokenizer, "TXT-025"
    )
    yield case("tokenizer/deep", text_file("tokenizer.json", DEEP), load_tokenizer, "TXT-025", "TXT-022")
    yield case(
        "tokenizer/sentencepiece of a stranger",
        text_file("tokenizer.model", b"\x0a" + b"\xff" * 100),
        load_tokenizer,
        "",
    )


def not_cut(folder: Path, workspace: Path) -> None:
    from tunesmith.text.example import Message

    tokenizer = load_tokenizer(folder, workspace)
    assert len(tokenizer.encode_prompt([Message("user", "Tell me twelve things about foxes.")])) > 6


# ----------------------------------------------------------------------------------------------------------- templates

ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "attr by parts": "{% set u = '_' %}{{ ''|attr(u ~ u ~ 'class' ~ u ~ u) }}",
    "getitem": "{{ ''['__class__'] }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "format of a kept method": "{% set f = '{0.__class__.__init__.__globals__}'.format %}{{ f(namespace) }}",
    "map attribute": "{{ [cycler]|map(attribute='__init__.__globals__')|list }}",
    "groupby": "{{ [cycler]|groupby('__init__.__globals__.os.name')|list }}",
    "sum attribute": "{{ [cycler]|sum(attribute='__init__.__globals__') }}",
    "sort": "{{ [cycler, joiner]|sort(attribute='__class__.__mro__') }}",
    "selectattr": "{{ [cycler]|selectattr('__class__')|list }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner.__init__.__globals__.os.popen('id').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "namespace attribute": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "namespace init": "{{ namespace(__init__=1) }}",
    "namespace class": "{{ namespace.__init__.__globals__ }}",
    "dict fromkeys": "{{ dict.fromkeys.__func__.__globals__ }}",
    "dict class": "{{ dict.__class__.__base__ }}",
    "raise": "{{ raise_exception.__globals__ }}",
    "now": "{{ strftime_now.__globals__ }}",
    "message": "{{ messages.__class__.__init__.__globals__ }}",
    "append": "{{ messages.append(1) }}",
    "pop": "{{ messages.pop() }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "setdefault": "{{ messages[0].setdefault('a', 1) }}",
    "self": "{{ self.__init__.__globals__.__builtins__ }}",
    "self block": "{{ self._TemplateReference__context.environment }}",
    "context": "{{ caller.__globals__ }}",
    "macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "macro environment": "{% macro f() %}{% endmacro %}{{ f._environment.globals }}",
    "loop": "{% for a in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "loop internals": "{% for a in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "generator frame": "{{ ([1]|map('string')).gi_frame.f_globals }}",
    "generator code": "{{ ([1]|map('string')).gi_code }}",
    "undefined": "{{ nothing.__class__._fail_with_undefined_error.__globals__ }}",
    "environment": "{{ environment.from_string('x') }}",
    "weighed": "{{ environment.weighed.__self__ }}",
    "tojson": "{{ messages|tojson(default=1) }}",
    "include": "{% include '/etc/passwd' %}",
    "include a secret": "{% include '../outside/secret' %}",
    "import": "{% import 'os' as os %}{{ os.system('id') }}",
    "from import": "{% from 'os' import system %}{{ system('id') }}",
    "extends": "{% extends '/etc/passwd' %}",
    "do": "{% do messages.append(1) %}",
    "async": "{{ messages.__aiter__ }}",
    "traced": "{{ (messages[0].content ~ 'x').runs.__class__.__mro__ }}",
    "traced global": "{{ messages[0].content.join.__func__.__globals__ }}",
    "percent": "{{ '%(a)s' % {'a': ''.__class__} }}",
}  # fmt: skip
BOMBS = {
    "a loop of 10**9": "{% for a in range(10**9) %}{% endfor %}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "multiplication": "{{ 'x' * 10**12 }}",
    "a list": "{{ [0] * 10**10 }}",
    "a number": "{{ 10**10**10 }}",
    "a product": "{% set n = namespace(v=99) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}",
    "doubling": "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}",
    "doubling by addition": "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set n.v = n.v + n.v %}{% endfor %}",
    "doubling by format": "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set n.v = '{0}{0}'.format(n.v) %}{% endfor %}",
    "doubling by percent": "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set n.v = '%s%s' % (n.v, n.v) %}{% endfor %}",
    "doubling of lists": "{% set n = namespace(v=[1]) %}{% for i in range(60) %}{% set n.v = n.v + n.v %}{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "replace": "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
    "join": "{{ range(99999)|map('string')|join('x' * 1000000) }}",
    "center": "{{ 'x'|center(10**10) }}",
    "indent": "{{ 'x\n'|indent(10**9) }}",
    "wordwrap": "{{ ('x ' * 400000)|wordwrap(1) }}",
    "batch": "{{ range(99999)|batch(10**9, 'x')|list }}",
    "slice": "{{ range(99999)|slice(10**9)|list }}",
    "format width": "{{ '%10000000000d' % 1 }}",
    "brace width": "{{ '{:10000000000}'.format(1) }}",
    "nested width": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "zfill": "{{ 'x'.zfill(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "translate": "{{ ('x' * 500000).translate({120: 'y' * 1000000}) }}",
    "tojson indent": "{{ range(1000)|list|tojson(indent=10**7) }}",
    "nested lists": "{% set n = namespace(v=[1]) %}{% for i in range(60) %}{% set n.v = [n.v, n.v] %}{% endfor %}{{ n.v }}",
    "pprint": "{% set n = namespace(v=[1]) %}{% for i in range(90) %}{% set n.v = [n.v] %}{% endfor %}{{ n.v|pprint }}",
    "urlize": "{{ ('http://a.b/' * 60000)|urlize }}",
    "striptags": "{{ ('<' * 500000)|striptags }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "round": "{{ 1.5|round(10**9) }}",
    "unique": "{{ range(99999)|unique|list|length }}{% for i in range(999) %}{{ range(99999)|unique|list|length }}{% endfor %}",
    "product of a list": "{{ range(99999)|sum(start=[]) }}",
    "strftime": "{{ strftime_now('%c' * 300000) }}",
    "deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "folding": "{{ " + "('x' * 1000000)" + " ~ ('x' * 1000000)" * 500 + " }}",
    "2 MB of source": "{{ 1 }}" * 300_000,
}  # fmt: skip


def templates() -> Iterator[Case]:
    for name, source in ESCAPES.items():
        yield case(
            f"escape/{name}", lambda folder, source=source: source, render, "TXT-021", "TXT-023", "refused", "harmless"
        )
    for name, source in BOMBS.items():
        yield case(
            f"bomb/{name}", lambda folder, source=source: source, render, "TXT-023", "TXT-021", "refused", "harmless"
        )


# ------------------------------------------------------------------------------------------------------------- recipes


def recipe(text: str | Callable[[Path], str]) -> Make:
    return lambda folder: text if isinstance(text, str) else text(folder)


ROWS = "data: {sources: rows.jsonl}\n"
LAUGHS = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else 'ha'}]\n" for n in range(11))
MERGES = "".join(
    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}], a{n}: 1}}\n" if n else "m0: &m0 {a: 1}\n" for n in range(11)
)


def with_code(folder: Path, body: str) -> str:
    (folder / "hostile.py").write_text(code(folder))
    return body.replace("HERE", str(folder))


def recipes() -> Iterator[Case]:
    for tag in (
        "!!python/object/apply:os.system ['touch CANARY']", "!!python/object:os.system {}", "!!python/name:os.system",
        "!!python/module:hostile_payload", "!!python/object/new:os.system ['x']", "!!python/tuple [1]", "!include /etc/passwd",
        "!ENV ${HOME}", "!!binary aGVsbG8=", "!!set {a: null}", "!!timestamp 2020-01-01",
    ):  # fmt: skip
        yield case(f"yaml/{tag.split()[0]}", recipe(f"{ROWS}name: {tag}\n"), read_recipe, "RCP-004", "RCP-003", "")
    yield case("yaml/billion laughs", recipe(ROWS + LAUGHS), read_recipe, "RCP-004")
    yield case("yaml/billion merges", recipe(ROWS + MERGES), read_recipe, "RCP-004")
    yield case("yaml/itself", recipe("data: &a {sources: *a}\n"), read_recipe, "RCP-004", "RCP-003")
    yield case("yaml/deep", recipe("a: " + "[" * 100_000), read_recipe, "RCP-004")
    yield case("yaml/rather deep", recipe("a: " + "[" * 400 + "]" * 400), read_recipe, "RCP-004", "RCP-003")
    yield case("yaml/2 MB", recipe(ROWS + "# " + "x" * 2_000_000), read_recipe, "RCP-001")
    yield case("yaml/a huge number", recipe(f"{ROWS}seed: 1{'0' * 5000}\n"), read_recipe, "RCP-004", "RCP-003")
    yield case("yaml/a huge hexadecimal", recipe(f"{ROWS}seed: 0x{'f' * 100_000}\n"), read_recipe, "RCP-004", "RCP-003")
    yield case("yaml/a huge base 60", recipe(f"{ROWS}seed: 1{':59' * 100_000}\n"), read_recipe, "RCP-004", "RCP-003")
    yield case("yaml/numbers as keys", recipe(f"{ROWS}1: 2\nnull: 3\n"), read_recipe, "RCP-003", "RCP-004")
    yield case("yaml/a list as a key", recipe(f"{ROWS}? [a, b]\n: c\n"), read_recipe, "RCP-004", "RCP-003")
    yield case("yaml/several documents", recipe(f"{ROWS}---\n{ROWS}"), read_recipe, "RCP-004")
    yield case(
        "yaml/100,000 keys",
        recipe(ROWS + "".join(f"k{n}: 1\n" for n in range(90_000))),
        read_recipe,
        "RCP-003",
        "RCP-004",
        "RCP-001",
    )
    for name in ("../../x", "/tmp/x", "a/b", "..", ".", "a\\\\b", "x\\0y", "-rf", "${HOME}", "$(id)", "`id`", "%2e%2e"):
        yield case(f"name/{name}", recipe(f'{ROWS}name: "{name}"\n'), read_recipe, "RCP-003", "RCP-004")
    for key, body in {
        "a metric": "evaluate: {metrics: [HERE/hostile.py:f]}",
        "a metric without .py": "evaluate: {metrics: [HERE/hostile:f]}",
        "a metric of a module": "evaluate: {metrics: ['os:system']}",
        "a metric with a blank": "evaluate: {metrics: ['HERE/hostile.py :f']}",
        "a callback": "train: {callbacks: [HERE/hostile.py:f]}",
        "a callback without .py": "train: {callbacks: [HERE/hostile:f]}",
        "a callback that is dotted": "train: {callbacks: [hostile_payload.f]}",
        "a metric of validation": "train: {validation: {metrics: [HERE/hostile.py:f]}}",
        "a best metric": "train: {best_metric: HERE/hostile.py:f}",
        "an early stop": "train: {early_stopping: {metric: HERE/hostile.py:f}}",
        "a gate": "gate: {metric: HERE/hostile.py:f}",
    }.items():
        make = recipe(lambda folder, body=body: with_code(folder, f"{with_rows(folder)}{body}\n"))
        yield case(f"code/{key}", make, run_recipe, "CLI-005", "RCP-003", "EVL-003", "TRN-051", "TRN-050")
    for key, value in {
        "where: a file": "data: {sources: rows.jsonl, filters: {where: [\"file('/etc/passwd') = ''\"]}}",
        "where: a download": "data: {sources: rows.jsonl, filters: {where: [\"url_download('http://127.0.0.1:9/') is null\"]}}",
        "where: a statement": 'data: {sources: rows.jsonl, filters: {where: ["1 = 1; DROP TABLE x"]}}',
    }.items():
        yield case(
            f"expression/{key}",
            recipe(lambda folder, value=value: in_place(folder, value)),
            prepare_recipe,
            "DAT-060",
            "",
        )
    for key, value in {
        "template that is a device": "model: {template: /dev/zero}", "template that is a folder": "model: {template: /etc}",
        "template that is not there": "model: {template: ../../nothing}",
    }.items():  # fmt: skip
        yield case(
            f"template/{key}",
            recipe(lambda folder, value=value: f"{with_rows(folder)}{value}\n"),
            run_recipe,
            "TXT-021",
        )
    yield case(
        "model/builtin:..",
        recipe(lambda folder: f"{with_rows(folder)}model: {{base: 'builtin:../../../x'}}\n"),
        run_recipe,
        "MDL-002",
    )
    yield case(
        "model/../..",
        recipe(lambda folder: f"{with_rows(folder)}model: {{base: '..\\..'}}\n".replace("\\", "/")),
        run_recipe,
        "MDL-005",
        "MDL-001",
        "MDL-004",
    )


def with_rows(folder: Path) -> str:
    rows = [
        {"prompt": f"Say the number {n} and then stop.", "completion": f"The number that was asked for is {n}."}
        for n in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data: {{sources: {json.dumps(str(folder / 'rows.jsonl'))}}}\n"


def in_place(folder: Path, text: str) -> str:
    with_rows(folder)
    return text.replace("rows.jsonl", str(folder / "rows.jsonl")) + "\n"


# ---------------------------------------------------------------------------------------------------------------- rows


def file(name: str, data: bytes | Callable[[Path], Any]) -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(data):
            data(path)
        else:
            path.write_bytes(data)
        return path

    return make


def write_gzip_bomb(path: Path) -> None:
    block = gzip.compress(b"\n" * 2**24, 9)
    path.write_bytes(block * 128)  # 2 GiB of blank lines in 2 MB


def write_bzip2_bomb(path: Path) -> None:
    path.write_bytes(bz2.compress(b"\n" * 2**26) * 64)


def write_zstd_bomb(path: Path) -> None:
    import pyarrow as pa

    block = pa.compress(b"\n" * 2**24, "zstd", asbytes=True)
    path.write_bytes(block * 256)


def write_parquet(columns: Any, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = columns() if callable(columns) else pa.table(columns)
        pq.write_table(table, path, **options)

    return write


def wide_texts() -> Any:
    """100,000 rows of one text of 1 MB: a few kilobytes as a dictionary."""
    import pyarrow as pa

    words = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 1_000_000]))
    return pa.table({"text": words})


def extension(pickled: bytes) -> Callable[[], Any]:
    """A column that says it is Arrow's old Python type, whose metadata is a pickle (CVE-2023-47248)."""

    def make() -> Any:
        import pyarrow as pa

        told = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
        return pa.table([pa.array(["a", "b"])], pa.schema([pa.field("text", pa.string(), metadata=told)]))

    return make


def write_arrow(columns: Any, codec: str | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa

        table = columns() if callable(columns) else pa.table(columns)
        options = pa.ipc.IpcWriteOptions(compression=codec)
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema, options=options) as writer:
            writer.write_table(table)

    return write


def zeros(rows: int) -> Callable[[], Any]:
    def make() -> Any:
        import pyarrow as pa

        buffer = pa.py_buffer(bytes(rows * 8))
        return pa.table({"a": pa.Array.from_buffers(pa.int64(), rows, [None, buffer])})

    return make


def linked(name: str, target: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "rows").mkdir()
        (folder / "rows" / "good.jsonl").write_text('{"text": "a good row"}\n')
        goal = (folder / SECRET).resolve() if target == "secret" else Path(target)
        (folder / "rows" / name).symlink_to(goal)
        return folder / "rows"

    return make


def database(query: str, *, url: str = "sqlite:///{}") -> Make:
    def make(folder: Path) -> tuple[str, str]:
        path = folder / "rows.db"
        with sqlite3.connect(path) as connection:
            connection.execute("create table rows (text)")
            connection.execute("insert into rows values ('a row')")
        return url.format(path), query.replace("CANARY", str((folder / CANARY).resolve()))

    return make


def hub_rows(url: str) -> Make:
    """A data set that lies in the hub's cache already, so that no network is needed to try the name."""

    def make(folder: Path) -> str:
        return url

    return make


def rows() -> Iterator[Case]:
    for name in ("rows.pkl", "rows.pt", "rows.npy", "rows.npz", "rows.joblib", "rows.py", "rows.h5"):
        yield case(
            f"rows/{name}", file(name, lambda path: path.write_bytes(payload(path.parent))), read_rows, "DAT-002"
        )
    yield case(
        "rows/pickle named jsonl",
        file("rows.jsonl", lambda path: path.write_bytes(payload(path.parent))),
        read_rows,
        "DAT-013",
        "DAT-014",
        "DAT-018",
        "DAT-016",
        "DAT-005",
    )
    yield case(
        "rows/pickle named parquet",
        file("rows.parquet", lambda path: path.write_bytes(payload(path.parent))),
        read_rows,
        "DAT-006",
        "DAT-004",
    )
    yield case(
        "rows/pickle named arrow",
        file("rows.arrow", lambda path: path.write_bytes(payload(path.parent))),
        read_rows,
        "DAT-037",
    )
    yield case("rows/zip named jsonl", file("rows.jsonl", b"PK\x03\x04" + b"../../x" * 10), read_rows, "DAT-004")
    yield case("rows/a zip", file("rows.zip", b"PK\x03\x04" + b"../../x" * 10), read_rows, "DAT-002")
    yield case("rows/a tar.gz", file("rows.tar.gz", gzip.compress(b"../x" * 999)), read_rows, "DAT-002")
    yield case("rows/gzip bomb", file("rows.jsonl.gz", write_gzip_bomb), read_rows, "DAT-028")
    yield case("rows/bzip2 bomb", file("rows.jsonl.bz2", write_bzip2_bomb), read_rows, "DAT-028")
    yield case("rows/zstd bomb", file("rows.jsonl.zst", write_zstd_bomb), read_rows, "DAT-028")
    yield case(
        "rows/gzip bomb in a document",
        file(
            "rows.json.gz",
            lambda path: path.write_bytes(gzip.compress(b"[" + b" " * 2**24, 9) + gzip.compress(b" " * 2**24, 9) * 160),
        ),
        read_rows,
        "DAT-028",
        "DAT-040",
    )
    yield case("rows/deep line", file("rows.jsonl", DEEP.encode()), read_rows, "DAT-012", "DAT-018", "DAT-016")
    yield case(
        "rows/deep object",
        file("rows.jsonl", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        read_rows,
        "DAT-012",
        "DAT-018",
        "DAT-016",
    )
    yield case("rows/deep document", file("rows.json", b"[" * 3_000_000), read_rows, "DAT-012", "DAT-018", "DAT-016")
    yield case(
        "rows/wide line",
        file("rows.jsonl", b"{" + b",".join(b'"k%d":0' % n for n in range(500_000)) + b"}\n"),
        read_rows,
        "",
    )
    yield case("rows/long line", file("rows.jsonl", b'{"text": "' + b"x" * 30_000_000 + b'"}\n'), read_rows, "DAT-011")
    yield case(
        "rows/long number", file("rows.jsonl", b'{"a": 1' + b"0" * 1_000_000 + b"}\n"), read_rows, "DAT-026", "DAT-018"
    )
    yield case(
        "rows/wide table",
        file("rows.csv", b",".join(b"c%d" % n for n in range(200_000)) + b"\n" + b"," * 199_999 + b"\n"),
        read_rows,
        "",
    )
    yield case("rows/open quote", file("rows.csv", b'a,b\n"' + b"x\n" * 6_000_000), read_rows, "DAT-021", "DAT-011")
    yield case(
        "rows/odd extension in Parquet",
        file("rows.parquet", lambda path: write_parquet(extension(payload(path.parent)))(path)),
        read_rows,
        "",
        "DAT-006",
    )
    yield case(
        "rows/odd extension in Arrow",
        file("rows.arrow", lambda path: write_arrow(extension(payload(path.parent)))(path)),
        read_rows,
        "",
        "DAT-037",
    )
    yield case(
        "rows/pandas metadata",
        file(
            "rows.parquet",
            write_parquet(
                lambda: (
                    __import__("pyarrow")
                    .table({"text": ["a"]})
                    .replace_schema_metadata(
                        {b"pandas": b'{"index_columns": ["__import__(\'os\')"]}', b"ARROW:schema": b"////" * 100}
                    )
                )
            ),
        ),
        read_rows,
        "",
        "DAT-006",
    )
    yield case("rows/Parquet of wide texts", file("rows.parquet", write_parquet(wide_texts)), read_rows, "DAT-042")
    yield case(
        "rows/Parquet of 10**8 nulls",
        file(
            "rows.parquet",
            write_parquet(
                lambda: __import__("pyarrow").table({"text": __import__("pyarrow").nulls(10**8, "string")}),
                row_group_size=10**8,
            ),
        ),
        read_rows,
        "DAT-042",
    )
    yield case("rows/Arrow of wide texts", file("rows.arrow", write_arrow(wide_texts)), read_rows, "DAT-037")
    yield case(
        "rows/Arrow that unpacks to a gigabyte",
        file("rows.arrow", write_arrow(zeros(200_000_000), "zstd")),
        read_rows,
        "DAT-037",
    )
    yield case(
        "rows/damaged Arrow", file("rows.arrow", b"ARROW1\0\0" + b"\xff" * 200 + b"ARROW1"), read_rows, "DAT-037"
    )
    yield case("rows/link to a secret", linked("more.txt", "secret"), read_rows, "DAT-043")
    yield case("rows/link to a file of the system", linked("more.txt", "/etc/passwd"), read_rows, "DAT-043")
    yield case("rows/link to a device", linked("more.jsonl", "/dev/zero"), read_rows, "", "DAT-043", "DAT-003")
    yield case(
        "rows/a glob with links", lambda folder: linked("more.txt", "secret")(folder) / "*.txt", read_rows, "DAT-043"
    )
    yield case("rows/a pipe", file("rows.jsonl", lambda path: os.mkfifo(path)), read_rows, "DAT-003", "DAT-001")
    yield case("rows/odd names", odd_names, read_rows, "")
    for path in ("..", "../../../../etc", "/etc/passwd", "a/../../../x.txt", "~/x.jsonl"):
        yield case(f"hub/traversal {path}", hub_rows(f"hf://datasets/a/b@{'0' * 40}/{path}"), read_rows, "DAT-044")
    for url in ("hf://datasets/../..", "hf://datasets/a/..", "hf://models/a/b", "hf://datasets/a/b@../x/y"):
        yield case(f"hub/name {url}", hub_rows(url), read_rows, "DAT-041", "DAT-044", "DAT-038")
    for query in (
        "VACUUM INTO 'CANARY'", "ATTACH DATABASE 'CANARY' AS x", "INSERT INTO rows VALUES (1)", "DROP TABLE rows",
        "PRAGMA writable_schema = 1", "SELECT load_extension('/tmp/x.so')", "CREATE TABLE y (a)", "SELECT 1; DROP TABLE rows",
        "WITH x AS (SELECT 1) INSERT INTO rows SELECT * FROM x", "DELETE FROM rows RETURNING text",
        "COPY rows TO PROGRAM 'id'", "SELECT writefile('CANARY', 'x')", "PRAGMA journal_mode = WAL",
    ):  # fmt: skip
        yield case(f"query/{query[:30]}", database(query), read_rows, "DAT-039")
    yield case("query/honest", database("SELECT text FROM rows"), read_rows, "")
    for url in (
        "hostile_payload://x",
        "sqlite+hostile_payload:///{}",
        "sqlite:///{}?plugin=hostile_payload",
        "file:///{}",
        "sqlite:///file:{}?mode=rwc&uri=true",
    ):
        yield case(f"database/{url}", database("SELECT 1 AS text", url=url), read_rows, "DAT-039", "")


def odd_names(folder: Path) -> Path:
    (folder / "rows").mkdir()
    for name in (
        "; touch canary.jsonl",
        "$(touch canary).jsonl",
        "`id`.jsonl",
        "a\nb.jsonl",
        "-rf.jsonl",
        "..jsonl",
        "[x].jsonl",
        "%2e%2e%2f.jsonl",
    ):
        (folder / "rows" / name).write_text('{"text": "a row"}\n')
    return folder / "rows"


# ------------------------------------------------------------------------------------------------------------ adapters


def adapter(
    config: dict[str, Any] | None = None, *, file: str = "adapter_model.safetensors", spoil: Any = None
) -> Make:
    """Rank 4 beside the queries of the packaged model, but for what is spoiled."""

    def make(folder: Path) -> Path:
        import torch
        from safetensors.torch import save_file

        made = folder / "adapter"
        made.mkdir()
        told = {
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "builtin:tunesmith-tiny", "inference_mode": True,
        }  # fmt: skip
        (made / "adapter_config.json").write_text(json.dumps({**told, **(config or {})}))
        place = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        tensors = {}
        for layer in range(5):
            tensors[place.format(layer, "A")] = torch.ones(4, 192)
            tensors[place.format(layer, "B")] = torch.zeros(192, 4)
        if file == "adapter_model.safetensors":
            save_file(tensors, made / file)
        elif file:
            (made / file).write_bytes(payload(folder))
        if spoil is not None:
            spoil(made)
        return made

    return make


def adapters() -> Iterator[Case]:
    for word, act in (("adapter", load_adapter), ("served adapter", serve_adapter)):
        yield case(f"{word}/honest", adapter(), act, "")
        yield case(f"{word}/pickle alone", adapter(file="adapter_model.bin"), act, "MDL-113")
        yield case(f"{word}/no weights", adapter(file=""), act, "MDL-113")
        yield case(
            f"{word}/auto_map",
            adapter({"auto_map": {"AutoModel": "hostile_payload.M"}}, spoil=remote_code),
            act,
            "MDL-113",
        )
        yield case(
            f"{word}/auto_mapping",
            adapter(
                {"auto_mapping": {"base_model_class": "M", "parent_library": "hostile_payload"}}, spoil=remote_code
            ),
            act,
            "MDL-113",
        )
        yield case(f"{word}/base by traversal", adapter({"base_model_name_or_path": "../outside/secret"}), act, "")
        yield case(
            f"{word}/megatron",
            adapter({"megatron_config": {"a": 1}, "megatron_core": "hostile_payload.core"}),
            act,
            "MDL-113",
        )
        yield case(f"{word}/other kind", adapter({"peft_type": "PROMPT_TUNING"}), act, "MDL-113", "MDL-125")
        yield case(f"{word}/unknown kind", adapter({"peft_type": "__import__('os')"}), act, "MDL-113", "MDL-125")
        yield case(
            f"{word}/layers copied", adapter({"layer_replication": [[0, 5]] * 10_000}), act, "MDL-113", "MDL-125"
        )
        yield case(f"{word}/rank of 10**9", adapter({"r": 10**9}), act, "MDL-113")
        yield case(f"{word}/rank that is a text", adapter({"r": "4; import os"}), act, "MDL-113")
        yield case(
            f"{word}/pattern that backtracks",
            adapter({"target_modules": "(.*.*.*.*.*.*)*z"}),
            act,
            "MDL-113",
            "MDL-125",
        )
        yield case(f"{word}/pattern of ranks", adapter({"rank_pattern": {"(.*.*.*.*.*)*z": 8}}), act, "MDL-113")
        yield case(
            f"{word}/deep", adapter(spoil=lambda made: (made / "adapter_config.json").write_text(DEEP)), act, "MDL-113"
        )
        yield case(
            f"{word}/a list",
            adapter(spoil=lambda made: (made / "adapter_config.json").write_text("[1]")),
            act,
            "MDL-113",
        )
        yield case(
            f"{word}/lying weights",
            adapter(
                spoil=lambda made: (made / "adapter_model.safetensors").write_bytes(
                    header({"a": entry([10**9, 10**9], 0, 4)}, rest=b"\0" * 4)
                )
            ),
            act,
            "MDL-107",
        )
        yield case(
            f"{word}/link to a secret",
            adapter(spoil=lambda made: relink(made / "adapter_model.safetensors", made.parent / SECRET)),
            act,
            "MDL-113",
        )
        yield case(
            f"{word}/pipe", adapter(spoil=lambda made: repipe(made / "adapter_model.safetensors")), act, "MDL-113"
        )


def relink(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target.resolve())


def repipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


# ----------------------------------------------------------------------------------------------------------- artifacts


def dataset(spoil: Callable[[Path], Any]) -> Make:
    def make(folder: Path) -> Path:
        from small_training import fill_dataset

        made = folder / "dataset"
        made.mkdir()
        fill_dataset(made)
        spoil(made)
        return made

    return make


def open_dataset(folder: Path, workspace: Path) -> Any:
    """Every array, as training reads it."""
    from tunesmith.runs.dataset import Dataset

    found = Dataset(folder)
    (
        found.row(0),
        found.learned_weights(),
        found.largest_id(),
        found.split("train"),
        found.statistics,
        found.items(),
        found.samples,
    )
    return [found.sequence(example) for example in range(min(found.num_examples, 100))], found.lengths().sum()


def array(name: str, make: Callable[[Any], Any], **options: Any) -> Make:
    def spoil(folder: Path) -> None:
        import numpy as np

        np.save(folder / f"{name}.npy", make(np), **options)

    return dataset(spoil)


def npy(name: str, told: str, data: bytes = b"") -> Make:
    """An array whose header says what it likes."""

    def spoil(folder: Path) -> None:
        text = told.encode().ljust(117) + b"\n"
        (folder / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)

    return dataset(spoil)


def stored(spoil: Callable[[Path, dict[str, Any]], Any]) -> Make:
    """A workspace with one artifact, spoiled behind its manifest's back or by it."""

    def make(folder: Path) -> Path:
        from tunesmith.runs.store import Store

        store = Store(folder / "artifacts")
        with store.create("Adapter", "abc", producer={"stage": "train"}) as draft:
            (draft.path / "data.bin").write_bytes(b"x" * 100)
        path = folder / "artifacts" / "adapter" / "abc"
        manifest = json.loads((path / "manifest.json").read_bytes())
        spoil(path, manifest)
        if not (path / "manifest.json").is_symlink():
            (path / "manifest.json").write_bytes(resealed(manifest))
        return folder / "artifacts"

    return make


def find_artifact(root: Path, workspace: Path) -> Any:
    from tunesmith.runs.store import Store

    told: list[str] = []
    store = Store(root)
    store.on_damage = told.append
    found = store.find("Adapter", "abc", verify="hash")
    assert found is None, "the artifact was taken for sound"
    return "found damaged" if told else None


def outside_file(name: str) -> Make:
    def spoil(path: Path, manifest: dict[str, Any]) -> None:
        told = name if name else str((path.parents[2] / SECRET).resolve())
        manifest["files"] = {told: {"size": len(SECRET_TEXT), "sha256": "0" * 64}}

    return stored(spoil)


def resealed(manifest: dict[str, Any]) -> bytes:
    """Its own hash is no secret: a stranger can make it anew."""
    from tunesmith.runs.store import sealed

    return sealed({name: value for name, value in manifest.items() if name != "sha256"})


def linked_artifact(path: Path, manifest: dict[str, Any]) -> None:
    (path / "data.bin").unlink()
    (path / "data.bin").symlink_to((path.parents[2] / SECRET).resolve())


def linked_folder(path: Path, manifest: dict[str, Any]) -> None:
    (path / "sub").symlink_to((path.parents[2] / SECRET).resolve().parent)
    manifest["files"] = {"sub/secret": {"size": len(SECRET_TEXT), "sha256": "0" * 64}}


def run_folder(**files: Any) -> Make:
    """A workspace of a stranger with one Run whose files say what they like."""

    def make(folder: Path) -> Path:
        from tunesmith.recipe import parse_recipe
        from tunesmith.runs.run import Run

        recipe = parse_recipe(with_rows(folder), folder=folder)
        run = Run.open_or_create(folder / "work", recipe)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (run.path / f"{name}.json").write_text(text)
        return run.path

    return make


def open_run(path: Path, workspace: Path) -> Any:
    """As `tunesmith report` and `tunesmith serve` do."""
    from tunesmith import api

    run = api.open_run(path)
    return run.recipe, run.outputs("prepare"), run.outputs("train"), run.allowed_code, run.environment, run.parent


def checkpoint(spoil: Callable[[Path], Any]) -> Make:
    """A checkpoint that its manifest calls sound: whoever spoiled it hashed it too."""

    def make(folder: Path) -> Any:
        import torch
        from small_training import small_training

        from tunesmith.hub.files import BUILTIN
        from tunesmith.runs import durable
        from tunesmith.stages.train.checkpoint import KIND, Checkpoints, TrainState

        small = small_training(folder / "workspace" / "work", BUILTIN / "tunesmith-tiny")
        checkpoints = Checkpoints(small.run, 2)
        checkpoints.save(TrainState(step=1), {"a": torch.ones(2)}, {"b": torch.ones(2)})
        path = small.run.store.folder(KIND, f"{small.run.stage_key}/step-00000001")
        spoil(path)
        manifest = json.loads((path / "manifest.json").read_bytes())
        for name in manifest["files"]:
            manifest["files"][name] = {"size": (path / name).stat().st_size, "sha256": durable.hash_file(path / name)}
        (path / "manifest.json").write_bytes(resealed(manifest))
        return checkpoints

    return make


def latest_checkpoint(checkpoints: Any, workspace: Path) -> Any:
    found = checkpoints.latest()
    assert found is None, "the checkpoint was taken for sound"


def artifacts() -> Iterator[Case]:
    yield case("dataset/honest", dataset(lambda folder: None), open_dataset, "")
    for name in ("tokens", "sequences", "spans", "splits", "keys"):
        yield case(
            f"dataset/{name} is a pickle",
            dataset(lambda folder, name=name: (folder / f"{name}.npy").write_bytes(payload(folder.parent))),
            open_dataset,
            "RUN-007",
        )
        yield case(
            f"dataset/{name} of objects",
            array(name, lambda np: np.array([Payload(Path("x"))], object), allow_pickle=True),
            open_dataset,
            "RUN-007",
        )
        yield case(f"dataset/{name} of texts", array(name, lambda np: np.array(["a", "b"])), open_dataset, "RUN-007")
        yield case(
            f"dataset/{name} of 10**15",
            npy(name, "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }"),
            open_dataset,
            "RUN-007",
        )
    yield case(
        "dataset/header that is code",
        npy("tokens", f"{{'descr': '<i8', 'fortran_order': __import__('os').system('{MARKER}'), 'shape': (1,), }}"),
        open_dataset,
        "RUN-007",
    )
    yield case(
        "dataset/fields with a title",
        npy("tokens", "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }", b"\0" * 8),
        open_dataset,
        "RUN-007",
    )
    yield case(
        "dataset/offsets beyond the end",
        array("sequences", lambda np: np.array([0, 10**12], np.int64)),
        open_dataset,
        "RUN-007",
    )
    yield case(
        "dataset/offsets that go back",
        array("examples", lambda np: np.array([5, 0, -3], np.int64)),
        open_dataset,
        "RUN-007",
    )
    yield case("dataset/negative ids", dataset(lambda folder: rewrite_tokens(folder, -7)), open_dataset, "RUN-007")
    yield case(
        "dataset/counts that lie",
        dataset(lambda folder: edit(folder / "dataset.json", examples=10**12)),
        open_dataset,
        "RUN-007",
    )
    yield case(
        "dataset/deep", dataset(lambda folder: (folder / "dataset.json").write_text(DEEP)), open_dataset, "RUN-007"
    )
    yield case(
        "dataset/a list", dataset(lambda folder: (folder / "dataset.json").write_text("[1]")), open_dataset, "RUN-007"
    )
    for name in ("../../../outside/secret", "", "a/../../../../outside/secret", "..", "."):
        yield case(f"manifest/{name or 'absolute'}", outside_file(name), find_artifact, "")
    yield case("manifest/link to a secret", stored(linked_artifact), find_artifact, "")
    yield case("manifest/folder that is a link", stored(linked_folder), find_artifact, "")
    yield case(
        "manifest/files that are a list",
        stored(lambda path, manifest: manifest.update(files=[1, 2])),
        find_artifact,
        "",
    )
    yield case(
        "manifest/entries that are texts",
        stored(lambda path, manifest: manifest.update(files={"data.bin": "x"})),
        find_artifact,
        "",
    )
    yield case("manifest/deep", stored(lambda path, manifest: relink_text(path / "manifest.json")), find_artifact, "")
    yield case(
        "run/outputs by traversal",
        run_folder(outputs={"train": {"model": {"kind": "Adapter", "id": "../../../outside"}}}),
        open_run,
        "RUN-009",
    )
    yield case(
        "run/outputs of no kind",
        run_folder(outputs={"train": {"model": {"kind": "../x", "id": "abc"}}}),
        open_run,
        "RUN-009",
    )
    yield case("run/outputs that are a list", run_folder(outputs=[1, 2]), open_run, "RUN-009")
    yield case("run/recipe that is none", run_folder(recipe={"name": "../../x", "hostile": 1}), open_run, "RUN-009")
    yield case("run/recipe that is deep", run_folder(recipe=DEEP), open_run, "RUN-009")
    yield case("run/allowed code", run_folder(allowed_code={"/x/hostile.py:f": "0" * 64}), open_run, "")
    yield case(
        "checkpoint/unknown keys",
        checkpoint(lambda path: edit(path / "state.json", __class__="os")),
        latest_checkpoint,
        "TRN-008",
    )
    yield case(
        "checkpoint/state that is a list",
        checkpoint(lambda path: (path / "state.json").write_text("[1]")),
        latest_checkpoint,
        "TRN-008",
    )
    yield case(
        "checkpoint/deep state",
        checkpoint(lambda path: (path / "state.json").write_text(DEEP)),
        latest_checkpoint,
        "TRN-008",
    )
    yield case(
        "checkpoint/pickled weights",
        checkpoint(lambda path: (path / "model.safetensors").write_bytes(payload(path.parents[5]))),
        latest_checkpoint,
        "TRN-008",
    )
    yield case(
        "checkpoint/lying weights",
        checkpoint(
            lambda path: (path / "optimizer.safetensors").write_bytes(
                header({"a": entry([10**9, 10**9], 0, 4)}, rest=b"\0" * 4)
            )
        ),
        latest_checkpoint,
        "TRN-008",
    )


def rewrite_tokens(folder: Path, value: int) -> None:
    import numpy as np

    tokens = np.load(folder / "tokens.npy", allow_pickle=False)
    tokens[3] = value
    np.save(folder / "tokens.npy", tokens, allow_pickle=False)


def relink_text(path: Path) -> None:
    target = path.with_name("deep.txt")
    target.write_text(DEEP)
    path.unlink()
    path.symlink_to(target.name)


def all_cases() -> list[Case]:
    return [*models(), *tokenizers(), *templates(), *recipes(), *rows(), *adapters(), *artifacts()]
