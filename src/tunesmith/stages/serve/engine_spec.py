"""What an engine is started with, and by which command line. Light: the gate's side of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

VLLM = "vllm.entrypoints.openai.api_server"
VLLM_MODEL = "model"  # the base's name between gate and vLLM; clients never see it
VLLM_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

EngineName = Literal["transformers", "vllm"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class EngineSpec:
    """model: folder of weights and config. requests: in flight at most. context: tokens, prompt and answer together.

    adapters: key between gate and engine -> folder; a request without a key is answered by the model alone.
    """

    model: Path
    requests: int
    context: int
    precision: str
    engine: EngineName = "transformers"
    attention: str = "auto"
    quantisation: Literal["none", "nf4", "int8"] = "none"
    compile: bool = False
    adapters: Mapping[str, Path] = field(default_factory=dict)

    def command(self, socket: str) -> list[str]:
        """The engine's command line; it listens on the unix socket."""
        if self.engine == "transformers":
            return [sys.executable, "-m", "tunesmith.stages.serve.engine", socket, self.to_json()]
        supervised = [sys.executable, "-m", "tunesmith.stages.serve.supervisor", sys.executable, "-m", VLLM]
        return [*supervised, "--uds", socket, *self.vllm_arguments()]

    def vllm_arguments(self) -> list[str]:
        arguments = [
            "--model", str(self.model), "--served-model-name", VLLM_MODEL, "--dtype", VLLM_DTYPES[self.precision],
            "--max-model-len", str(self.context), "--max-num-seqs", str(self.requests),
            # The gate says what holds where a request says nothing, never the folder.
            "--generation-config", "vllm",
        ]  # fmt: skip
        if not self.compile:
            arguments.append("--enforce-eager")
        if self.quantisation != "none":
            arguments += ["--quantization", "bitsandbytes"]
        if self.adapters:
            rank = max(lora_rank(folder) for folder in self.adapters.values())
            # vLLM takes these ranks only
            allowed = next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= min(rank, 512))
            arguments += ["--enable-lora", "--max-loras", str(len(self.adapters)), "--max-lora-rank", str(allowed)]
            arguments += ["--lora-modules", *(f"{key}={folder}" for key, folder in self.adapters.items())]
        return arguments

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> EngineSpec:
        plain: dict[str, Any] = json.loads(text)
        adapters = {key: Path(folder) for key, folder in plain["adapters"].items()}
        return cls(**{**plain, "model": Path(plain["model"]), "adapters": adapters})


def lora_rank(folder: Path) -> int:
    """The largest rank in an adapter as PEFT writes it."""
    config = json.loads((folder / "adapter_config.json").read_bytes())
    return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 1)


def stored_precision(folder: Path) -> str:
    """fp32, bf16 or fp16, as config.json says the weights are; fp32 where it says nothing."""
    config = json.loads((folder / "config.json").read_text())
    stored = config.get("dtype") or config.get("torch_dtype") or "float32"
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(stored, "fp32")
