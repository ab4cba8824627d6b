"""Before anything runs: is each tracker that the recipe names installed, and would it let us in?"""

from __future__ import annotations

import netrc
import os
from importlib.util import find_spec
from urllib.parse import urlsplit

from tunesmith.errors import Problem, QuestionError, RecipeError
from tunesmith.recipe.tree import Track, Wandb

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
WANDB_SERVER = "https://api.wandb.ai"


def check(track: Track) -> None:
    """Light: nothing of a tracker is imported, no server is asked.

    Raises RecipeError TRK-001 naming what to install, QuestionError TRK-002 when W&B would ask for a key.
    """
    missing = {name: lacking for name in track.to if name in TRACKERS and (lacking := _lacking(name, track))}
    if missing:
        problems = [
            Problem(
                "TRK-001",
                "track.to",
                f"{name} is not installed (no module {', '.join(lacking)})",
                "an installed tracker",
                'python -m pip install "tunesmith[track]", or leave it out of track.to',
            )
            for name, lacking in missing.items()
        ]
        raise RecipeError("TRK-001", f"{', '.join(missing)} cannot be used", problems=problems)
    if "wandb" in track.to and track.wandb.mode == "online" and not _has_wandb_key(track.wandb):
        raise QuestionError(
            "TRK-002",
            f"Weights & Biases online needs an API key, and there is none for {wandb_server(track.wandb)}",
            where="track.wandb.mode",
            expected="WANDB_API_KEY in the environment, or one `wandb login` before",
            fix="--set track.wandb.mode=offline needs none: its files go out later by `wandb sync`",
        )


def wandb_server(wandb: Wandb) -> str:
    return wandb.url or os.environ.get("WANDB_BASE_URL") or WANDB_SERVER


def _lacking(name: str, track: Track) -> list[str]:
    needed = [name]
    if name == "mlflow" and not mlflow_uri(track).startswith(("http", "databricks")):
        needed += ["sqlalchemy", "alembic"]
    return [module for module in needed if find_spec(module) is None]


def mlflow_uri(track: Track) -> str:
    """ "" stands for the file mlflow.db in the workspace."""
    return track.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI", "")


def _has_wandb_key(wandb: Wandb) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return logins.authenticators(urlsplit(wandb_server(wandb)).hostname or "") is not None
