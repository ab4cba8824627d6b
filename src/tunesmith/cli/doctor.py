"""`tunesmith doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import json_option, show_json, workspace_option


@click.command("doctor")
@workspace_option
@json_option
def command(workspace: Path, as_json: bool) -> None:
    """Say what this machine has: versions, hardware, attention, disk, optional parts; and what is missing, with the line that
    installs it.

    \b
    Examples:
      tunesmith doctor
      tunesmith doctor --json
    """
    from tunesmith import api
    from tunesmith.units import format_bytes

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
