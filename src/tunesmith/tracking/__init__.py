"""Where events go besides events.jsonl: lines for the person who waits, a table for a spreadsheet. Light."""

from tunesmith.tracking.sinks import open_sinks

__all__ = ["open_sinks"]
