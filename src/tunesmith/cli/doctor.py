"""`tunesmith doctor`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import json_option, show_json, workspace_option

FAILED = 66  # as for a model that cannot be used


@click.command("doctor")
@click.option(
    "--numerics",
    type=click.Path(path_type=Path),
    metavar="RECIPE",
    help="Instead: prove that batches, resume, processes, merge ... change nothing on this recipe's model.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of that recipe. Repeatable."
)
@workspace_option
@json_option
def command(numerics: Path | None, overrides: tuple[str, ...], workspace: Path, as_json: bool) -> None:
    """Say what this machine has: versions, hardware, attention, disk, optional parts; and what is missing, with the line that
    installs it. With --numerics: prove on a recipe's own model and some of its rows that what must change nothing changes
    nothing; status 66 where something does.

    \b
    Examples:
      tunesmith doctor
      tunesmith doctor --json
      tunesmith doctor --numerics recipe.yaml
    """
    from tunesmith import api
    from tunesmith.units import format_bytes

    if numerics is not None:
        told = None if as_json else (lambda name: click.echo(f"  {name} ...", err=True))
        compared = api.doctor(workspace=workspace, numerics=numerics, overrides=overrides, on_check=told)
        if as_json:
            show_json(compared)
        else:
            for line in _numerics(compared):
                click.echo(line)
        if not compared["holds"]:
            sys.exit(FAILED)
        return
    found = api.doctor(workspace=workspace)
    if as_json:
        show_json(found)
        return
    click.echo(
        f"python {found['python']}  "
        + "  ".join(f"{name} {version or '(absent)'}" for name, version in found["packages"].items())
    )
    machine = found["hardware"]
    gpus = ", ".join(f"{gpu['name']} {format_bytes(gpu['memory_bytes'])}" for gpu in machine.get("gpus", ())) or "none"
    click.echo(
        f"cores {machine.get('cores')}  memory {format_bytes(machine.get('ram_bytes', 0))}, {format_bytes(machine.get('ram_available_bytes', 0))} free  GPUs: {gpus}"
    )
    files = found["file_system"]
    warning = (
        "; a network file system: a power cut may cost more there than on a local disk" if files["is_network"] else ""
    )
    click.echo(f"free disk: {format_bytes(found['free_disk_bytes'])} ({files['type']}{warning})")
    for line in _speed(found):
        click.echo(line)
    packed = found["quantisation"]
    can = f"{', '.join(packed['can'])}  (bitsandbytes {packed['bitsandbytes']} on {packed['device']})"
    click.echo(f"quantisation: {'none; bitsandbytes: ' + packed['trouble'] if packed['trouble'] else can}")
    parts = found["optional"]
    there = [f"{name} {part['version']}" for name, part in parts.items() if part["version"]]
    absent = [f"{name} ({part['install']})" for name, part in parts.items() if not part["version"]]
    click.echo(f"optional parts: {', '.join(there) or 'none'}")
    if absent:
        click.echo(f"  not installed: {', '.join(absent)}")
    for name, line in found["missing"].items():
        click.echo(f"missing for {name}: {line}")
    if not found["missing"]:
        click.echo("no stage lacks anything")


def _numerics(found: dict[str, Any]) -> Iterator[str]:
    """A table of what was compared, and what to do where it differs."""
    yield f"{found['model']}: {found['rows']} rows, {found['tokens']:,} tokens, {found['seconds']:.0f} s"
    width = max(len(check["name"]) for check in found["checks"])
    yield f"{'compared':<{width}}  {'difference':>10}  {'tolerance':>9}  verdict"
    for check in found["checks"]:
        numbers = [f"{check[key]:.1e}" if check[key] is not None else "" for key in ("measured", "tolerance")]
        yield f"{check['name']:<{width}}  {numbers[0]:>10}  {numbers[1]:>9}  {check['verdict']}"
        yield f"{'':<{width}}  {check['compared']}{'; ' * bool(check['compared'] and check['note'])}{check['note']}"
    failed = [check for check in found["checks"] if check["verdict"] == "fails"]
    for check in failed:
        yield f"{check['name']} changes the result: {check['fix']}"
    if not failed:
        yield "nothing that must change nothing changes anything"


def _speed(found: dict[str, Any]) -> Iterator[str]:
    """What can make training faster here."""
    yield f"attention: {', '.join(found['attention'])}"
    for key, timed in found["attention_timed"].items():
        times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in timed["milliseconds"].items())
        yield f"  timed: {times}: {timed['picked']}  ({key})"
    compiler, liger = found["compile"], found["liger"]
    yield f"compile: {'no: ' + compiler['trouble'] if compiler['trouble'] else 'yes, by ' + compiler['compiler']}"
    yield f"Liger kernels: {'no: ' + liger['trouble'] if liger['trouble'] else liger['version']}"
    fused = "yes" if found["fused_optimizer"] else "no"
    yield f"fused optimizer: {fused}  bf16: {found['bf16']}  threads: {found['threads']}"
