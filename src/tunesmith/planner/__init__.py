"""What will happen: memory, steps, time, disk, and the micro-batch that fits. Arithmetic only; nothing is loaded."""

from tunesmith.planner.plan import Figure, Plan, plan

__all__ = ["Figure", "Plan", "plan"]
