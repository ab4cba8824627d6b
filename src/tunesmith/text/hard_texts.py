"""Texts on which tokenizers part ways: scripts, marks, blanks, digits, code, control characters, very long words."""

from __future__ import annotations

HARD: tuple[str, ...] = ("", " ", "  ", "\n", "hello world")
