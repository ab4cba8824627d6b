"""How gradients become an update: in one process, or in several. The loop sees one interface, that of LocalEngine."""

from tunesmith.stages.train.engines.local import LocalEngine, Verdict
from tunesmith.stages.train.engines.replicas import ReplicaEngine

__all__ = ["LocalEngine", "ReplicaEngine", "Verdict"]
