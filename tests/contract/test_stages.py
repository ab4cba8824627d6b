"""What the runner relies on in every stage: a light INFO, light externals, needs that an earlier stage makes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tunesmith.runner.stages import STAGES, load_stages

HEAVY = ("torch", "transformers", "daft", "peft", "numpy", "pyarrow")
SCRIPT = """
import importlib, json, sys
from tunesmith.runner.stages import STAGES, load_stages
found = {}
for stage in load_stages(STAGES, "serve"):
    for place in filter(None, (stage.info.externals, stage.info.checks)):
        importlib.import_module(place.partition(":")[0])
    found[stage.info.name] = [name for name in HEAVY if name in sys.modules]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    script = SCRIPT.replace("HEAVY", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("stage", STAGES)
def test_finding_out_that_a_stage_has_nothing_to_do_imports_nothing_heavy(
    imported: dict[str, list[str]], stage: str
) -> None:
    assert imported[stage] == []


def test_every_input_is_made_by_an_earlier_stage() -> None:
    made: set[str] = set()
    for stage in load_stages(STAGES, "serve"):
        assert set(stage.info.needs) <= made, f"{stage.info.name} needs {set(stage.info.needs) - made}"
        made |= set(stage.info.makes)
    assert made


def test_every_key_a_stage_reads_exists() -> None:
    from tunesmith.recipe import parse_recipe

    spec = parse_recipe("data: {sources: rows.jsonl}")
    for stage in load_stages(STAGES, "serve"):
        assert spec.slice(stage.info.keys), stage.info.name
        assert all(isinstance(spec.value(key), bool) for key in stage.info.switches.values())
