"""Report: a Run's stored facts as one self-contained HTML page and one JSON file. Light."""

from tunesmith.report.page import build

__all__ = ["build"]
