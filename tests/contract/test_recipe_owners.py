"""No key without an owner, a line of doc and another value; the generated page is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.recipe import parse_recipe
from tunesmith.recipe.keys import all_keys

ROOT = Path(__file__).parents[2]
KEYS = [key for key in all_keys().values() if not key.path.endswith(".type")]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_a_key_has_an_owner_that_exists_and_a_doc(key) -> None:
    place = ROOT / "src" / "tunesmith" / Path(*key.owner.split("."))
    assert key.owner, "no owner"
    assert place.is_dir() or place.with_suffix(".py").is_file(), f"{key.owner} does not exist"
    assert len(key.doc) > 10


def test_the_default_of_a_key_is_what_a_recipe_without_it_holds() -> None:
    """Also of the word that chooses among the variants of a section."""
    plain = parse_recipe("data: {sources: a.jsonl}")
    typed = {key.path: key.default for key in all_keys().values() if key.path.endswith(".type")}
    assert typed["data.deduplicate.type"] == "exact"
    assert {path: plain.value(path) for path in typed} == typed


def test_the_page_of_keys_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "tools/recipe_page.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_deepspeeds_keys_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "tools/deepspeed_page.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_shipped_recipe_loads() -> None:
    found = [*ROOT.glob("examples/**/recipe.yaml"), *ROOT.glob("recipes/*.yaml"), *ROOT.glob("benchmarks/**/*.yaml")]
    assert found
    for path in found:
        assert parse_recipe(path.read_text()).data.sources


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ready_recipe_is_planned(path: Path, tmp_path: Path) -> None:
    """With the packaged model in place of the user's: shapes, memory and time come out, nothing is loaded."""
    from tunesmith import plan

    made = plan(path, overrides=["model.base=builtin:tunesmith-tiny"])
    assert made.figures["peak_memory"].value > 0
