"""Where events go besides events.jsonl: lines for the person who waits, a table for a spreadsheet, trackers. Light."""

from tunesmith.tracking.preflight import check
from tunesmith.tracking.sinks import Sinks, catch_up

__all__ = ["Sinks", "catch_up", "check"]
