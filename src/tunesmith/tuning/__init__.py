"""Search: the recipe's values that make the best model, by trials that share prepared data. A loop around the runner."""

from tunesmith.tuning.search import Result, search

__all__ = ["Result", "search"]
