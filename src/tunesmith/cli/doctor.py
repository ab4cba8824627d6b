"""`tunesmith doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import json_option, show_json, workspace_option


@click.command("doctor")
@workspace_option
@json_option
def command(workspace: Path, as_json: bool) -> None:
    """Say what this machine has: versions, hardware, attention, disk; and what is missing, with the line that installs it.

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
    click.echo(f"attention: {', '.join(found['attention'])}  free disk: {format_bytes(found['free_disk_bytes'])}")
    packed = found["quantisation"]
    can = f"{', '.join(packed['can'])}  (bitsandbytes {packed['bitsandbytes']} on {packed['device']})"
    click.echo(f"quantisation: {'none; bitsandbytes: ' + packed['trouble'] if packed['trouble'] else can}")
    for name, line in found["missing"].items():
        click.echo(f"missing for {name}: {line}")
    if not found["missing"]:
        click.echo("nothing is missing")
