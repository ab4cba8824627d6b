"""Several training processes on this machine, started by torchrun. Light: torch is imported in the processes only."""

from tunesmith.launch.processes import train

__all__ = ["train"]
