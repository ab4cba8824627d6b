"""A real small run whose model is no better than its base: export, `export --to`, serve and chat refuse it, exit status 3."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def held(tunesmith: Call, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe and workspace of a run whose model was trained for one step at a rate of nearly nothing."""
    folder = tmp_path_factory.mktemp("held")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(40):
            question = f"Please repeat the number {number} and then say the word done, thank you."
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{number} done"}]
            file.write(json.dumps({"messages": turns}) + "\n")
    (folder / "recipe.yaml").write_text(
        f"model: {{base: '{tiny_model_dir}', precision: fp32}}\ndata: {{sources: rows.jsonl, split: {{test: 0.3}}}}\n"
        "train: {max_steps: 1, learning_rate: 1.0e-8, threads: 1}\nevaluate: {max_new_tokens: 4}\nserve: {port: 0}\n"
    )
    done = tunesmith("run", folder / "recipe.yaml", "--workspace", folder / "work", status=3)
    assert "EXP-001" in done.stderr
    assert "fewer than 6 cannot show a gain" in done.stderr
    assert re.search(r"^  export    held$", done.stderr, re.MULTILINE), "no failure of anything"
    assert "failed" not in done.stderr
    told = done.stdout.splitlines()
    assert re.fullmatch(r"run [\w-]+: held by the gate", told[0])
    assert any(re.match(r"  test, exact_match: base 0\.\d+ -> tuned 0\.\d+  \(gain", line) for line in told), told
    assert Path(told[-1].removeprefix("report: ")).is_file()
    return folder / "recipe.yaml", folder / "work"


def test_a_held_run_is_not_exported_copied_served_or_talked_to(
    held: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.cli import main

    recipe, workspace = held
    out = tmp_path / "out"
    for arguments, code in (
        (["export", recipe, "--to", out, "--workspace", workspace], "EXP-001"),
        (["export", "latest", "--workspace", workspace], "EXP-001"),
        (["serve", "latest", "--workspace", workspace], "SRV-007"),
        (["serve", recipe, "--workspace", workspace], "SRV-007"),
        (["chat", "latest", "--message", "hello", "--workspace", workspace], "SRV-007"),
    ):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        assert left.value.code == 3
        assert code in capsys.readouterr().err
    assert not out.exists()
    assert not list((workspace / "artifacts").glob("model/[!.]*")), "no merged model was written"
    (run,) = (workspace / "runs").iterdir()
    assert "<b>Hold</b>" in (run / "report.html").read_text()
