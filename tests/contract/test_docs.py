"""The docs do not lie: links resolve, commands exist, recipe blocks load, figures with a mark are the stored ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipe_blocks_load(page: Path, tmp_path: Path) -> None:
    from tunesmith.recipe import load_recipe

    for number, block in enumerate(blocks(page, "yaml")):
        content = yaml.safe_load(block)
        if "data" not in content:  # a fragment: the rest of a whole recipe is put around it
            block = "data: {sources: rows.jsonl}\n" + block
        elif "sources" not in content["data"]:
            continue
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        assert load_recipe(path).data.sources


def test_commands_in_the_docs_exist() -> None:
    from tunesmith.cli import main

    seen = set()
    for page in PAGES:
        for block in blocks(page, "(?:sh|bash|console)?"):
            seen.update(
                re.findall(
                    r"^(?:\$ )?tunesmith ([a-z]+)", block[0] if isinstance(block, tuple) else block, re.MULTILINE
                )
            )
    assert "run" in seen
    assert seen <= set(main.list_commands(None)), f"docs name verbs that do not exist: {seen}"


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()))
    assert {"quickstart", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} is not a target"


def test_figures_of_the_docs_are_the_stored_ones() -> None:
    """Figures stand in the pages as `<!-- results/FILE.json KEY -->VALUE`, so that this test can compare them."""
    found = {page: MARK.findall(page.read_text()) for page in PAGES}
    assert found[ROOT / "README.md"], "the README states no measured figure"
    for page, marks in found.items():
        for file, path, shown in marks:
            value = json.loads((ROOT / "benchmarks" / file).read_text())
            for part in path.split("/"):
                value = value[int(part)] if isinstance(value, list) else value[part]
            assert as_shown(value, shown) == shown.replace(",", ""), (
                f"{file} {path} is {value}, {page.name} says {shown}"
            )


MARK = re.compile(r"<!-- (results/[\w.-]+\.json) ([^<>]+?) -->\**([\d.,]*\d(?:e-?\d+)?)")


def as_shown(value: float, shown: str) -> str:
    """With as many digits, and as a power of ten (1.5e-5) where the page has one."""
    digits = len(shown.partition("e")[0].partition(".")[2])
    if "e" not in shown:
        return f"{value:.{digits}f}"
    mantissa, power = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(power)}"


def test_the_metric_of_the_evaluation_page_does_what_it_says(tmp_path: Path) -> None:
    import hashlib

    from tunesmith.scoring.items import Item
    from tunesmith.scoring.metrics import load_metric, score

    (source,) = blocks(ROOT / "docs" / "evaluate.md", "python")
    path = tmp_path / "intent.py"
    path.write_text(source)
    name = f"{path}:same_intent"
    metric = load_metric(name, {name: hashlib.sha256(path.read_bytes()).hexdigest()})
    item = Item(0, "test", (), "", (1,))
    assert metric.name == "intent.py:same_intent"
    assert score(metric, '{"intent": "refund"}', '{"intent": "refund", "more": 1}', item) == 1
    assert score(metric, '{"intent": "refund"}', '{"intent": "repair"}', item) == 0
    assert score(metric, '{"intent": "refund"}', "no idea", item) == 0
