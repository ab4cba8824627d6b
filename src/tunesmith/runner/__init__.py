"""Order, fingerprints, skip, resume: makes a Run of a Recipe by calling the stages. Light; stages load by name."""

from tunesmith.runner.execute import Outcome, StageOutcome, execute

__all__ = ["Outcome", "StageOutcome", "execute"]
