"""What will happen: memory, steps, time, disk, and the micro-batch that fits. Arithmetic only; nothing is loaded."""

from tunesmith.planner.figures import Figure
from tunesmith.planner.plan import Plan, plan

__all__ = ["Figure", "Plan", "plan"]
