"""Small pieces of the page: sections, tables, cut texts. Everything that is no Html is escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def cut(text: str, most: int = 800) -> str:
    """Escaped; of a long text the beginning, and how much more there is."""
    more = f' <span class="soft">… {len(text) - most:,} characters more</span>' if len(text) > most else ""
    return escape(text[:most]) + more


def percent(count: float, total: float) -> str:
    return f"{count / total:.1%}" if total else "-"


def code(text: str) -> Html:
    return Html(f"<code>{escape(text)}</code>")


def table(heads: Sequence[str], rows: Iterable[Sequence[str | int]], words: Collection[int] = (0,)) -> str:
    """words: columns of text, set to the left; all others are numbers. Whole numbers get their commas."""

    def cell(tag: str, place: int, value: str | int) -> str:
        text = f"{value:,}" if isinstance(value, int) else value if isinstance(value, Html) else escape(value)
        return f"<{tag}>{text}</{tag}>" if place in words else f"<{tag} class='number'>{text}</{tag}>"

    lines = [("th", heads), *(("td", row) for row in rows)]
    made = "".join(f"<tr>{''.join(cell(tag, *pair) for pair in enumerate(values))}</tr>" for tag, values in lines)
    return f"<div class='scroll'><table>{made}</table></div>"
