"""What the recipe asks of serving that this machine cannot do: said before anything is read. Light."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tunesmith.errors import RecipeError
from tunesmith.planner import hardware
from tunesmith.stages.serve.engine_spec import EngineName

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.recipe.tree import Serve


def check(spec: Recipe) -> None:
    """Raises: RecipeError SRV-013 to SRV-015."""
    check_settings(spec.serve)


def check_settings(serve: Serve) -> EngineName:
    """The engine that serves. Raises: RecipeError SRV-013 (vLLM), SRV-014 (compile), SRV-015 (quantisation)."""
    engine = choose_engine(serve)
    if serve.compile and serve.adapters and engine == "transformers":
        raise RecipeError(
            "SRV-014",
            "serve.compile and serve.adapters do not go together: which adapter a token belongs to changes with each step",
            where="serve.compile",
            expected="either of them, or engine vllm, which has both",
            fix="--set serve.compile=false",
        )
    if serve.quantisation != "none" and find_spec("bitsandbytes") is None:
        raise RecipeError(
            "SRV-015",
            f"serve.quantisation is {serve.quantisation}, and bitsandbytes is not installed",
            where="serve.quantisation",
            expected="the extra qlora",
            fix="pip install 'tunesmith[qlora]', or --set serve.quantisation=none",
        )
    if serve.quantisation == "int8" and engine == "vllm":
        raise RecipeError(
            "SRV-015",
            "vLLM quantises to nf4 while it loads, and not to int8",
            where="serve.quantisation",
            expected="nf4 with vllm, or engine transformers",
            fix="--set serve.engine=transformers",
        )
    return engine


def choose_engine(serve: Serve) -> EngineName:
    """transformers or vllm. Raises: RecipeError SRV-013 where vllm is asked for and cannot serve."""
    if serve.engine == "transformers":
        return "transformers"
    lacks = [
        *(["the package vllm"] if find_spec("vllm") is None else []),
        *(["a GPU"] if not hardware.detect().gpus else []),
    ]
    if serve.engine == "auto":
        return "transformers" if lacks or serve.quantisation == "int8" else "vllm"
    if lacks:
        raise RecipeError(
            "SRV-013",
            f"serve.engine is vllm, and this machine lacks {' and '.join(lacks)}",
            where="serve.engine",
            expected="vllm installed beside tunesmith, and a CUDA device",
            fix="--set serve.engine=auto takes transformers where vllm cannot serve",
        )
    return "vllm"
