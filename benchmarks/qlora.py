"""What a quantised base costs and changes: bits per weight, dependence on grouping, distance to the exported model.

    python benchmarks/qlora.py --workspace FOLDER   goes on in FOLDER after a stop; default: a new temporary one

The distances are those of trained adapters: the quickstart's rows, 120 steps on the plain, the nf4 and the int8 base, each
judged as it is exported (merged into the unquantised base) and, for the quantised ones, on the base that training saw.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record
import torch

from tunesmith import api, hub
from tunesmith.modeling import quantise
from tunesmith.modeling.load import load_model
from tunesmith.recipe.tree import Int8, Nf4
from tunesmith.runs.run import Run

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
BASE = hub.resolve("builtin:tunesmith-tiny", None)


def bits() -> dict[str, Any]:
    """Bits per quantised weight with all scales, as the tensors lie in memory."""
    kinds = {"nf4": Nf4(), "nf4 without double quantisation": Nf4(double_quantisation=False), "int8": Int8()}
    return {
        name: quantise.facts(load_model(BASE, device=CPU, quantisation=kind))["bits_per_weight"]
        for name, kind in kinds.items()
    }


@torch.no_grad()
def grouping() -> dict[str, float]:
    """Largest change of a row's logits when other rows lie beside it, over 16 rows of random tokens.

    "llm.int8" is bitsandbytes' own layer in evaluation, with its threshold of 6 for outliers.
    """
    import bitsandbytes as bnb

    draw = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, 512, (16, 64), generator=draw)
    found = {}
    for name in ("none", "nf4", "int8", "llm.int8"):
        kind = {"nf4": Nf4(), "none": None}.get(name, Int8())
        model = load_model(BASE, device=CPU, quantisation=kind)
        if name == "llm.int8":
            for _, layer in quantise.quantised_layers(model):
                layer.__class__ = bnb.nn.Linear8bitLt
                layer.state.threshold = 6.0
        together_BTV = model(input_ids=ids_BT, use_cache=False).logits
        alone_BTV = torch.cat([model(input_ids=ids_BT[[row]], use_cache=False).logits for row in range(len(ids_BT))])
        found[name] = float((together_BTV - alone_BTV).abs().max())
    return found


def trainings(workspace: Path, overrides: list[str]) -> dict[str, Any]:
    """The quickstart on each base."""
    data = workspace / "data"
    subprocess.run([sys.executable, ROOT / "examples/quickstart/make_data.py", data], check=True, capture_output=True)
    recipe = workspace / "recipe.yaml"
    recipe.write_text((ROOT / "examples/quickstart/recipe.yaml").read_text())

    def run(quantisation: str, *more: str) -> Run:
        settings = [f"model.quantisation={quantisation}", "gate.require=none", *overrides, *more]
        return api.run(recipe, overrides=settings, workspace=workspace / "work", until="export").run

    found = {}
    for quantisation in ("none", "nf4", "int8"):
        exported = run(quantisation)
        found[quantisation] = {"exported": scores(exported)}
        if quantisation != "none":
            found[quantisation]["on the quantised base"] = scores(run(quantisation, "export.merged=false"))
            distance = artifact_json(exported, "export", "parity", "parity.json")["quantised_base"]
            found[quantisation]["distance"] = {
                name: value for name, value in distance.items() if not isinstance(value, str)
            }
        print(quantisation, json.dumps(found[quantisation], indent=1), flush=True)
    return found


def scores(run: Run) -> dict[str, Any]:
    evaluation = artifact_json(run, "evaluate", "evaluation", "evaluation.json")
    return {
        "base_weights": evaluation["settings"]["base_weights"],
        "perplexity": evaluation["overall"]["metrics"]["perplexity"]["tuned"]["value"],
        **{
            part: {"n": told["n"], "exact_match": told["metrics"]["exact_match"]["tuned"]["value"]}
            for part, told in evaluation["parts"].items()
        },
    }


def artifact_json(run: Run, stage: str, name: str, file: str) -> Any:
    outputs = run.outputs(stage)
    assert outputs
    return json.loads((outputs[name].path / file).read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", type=Path, help="a folder to go on in")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--items", type=int, default=100, help="held-out items of each part")
    asked = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    settings = ["train.threads=1", f"evaluate.max_items={asked.items}", f"train.max_steps={asked.steps}"]
    figures: dict[str, Any] = {"bits_per_weight": bits(), "change_by_other_rows": grouping()}
    print(json.dumps(figures, indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures["quickstart"] = trainings(asked.workspace or Path(folder), settings)
    record.store("qlora", {"steps": asked.steps, **figures})
