"""How gradients become an update: in one process, or in several. The loop sees one interface."""

from tunesmith.stages.train.engines.local import LocalEngine
from tunesmith.stages.train.engines.replicas import ReplicaEngine

__all__ = ["LocalEngine", "ReplicaEngine"]
