"""Tables of text, for the console and as Markdown."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a header."""

    columns: tuple[str, ...]
    """Names; a unit is on lines of its own, so that a terminal has room for the numbers."""
    rows: tuple[tuple[str, ...], ...]


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(plain, line))} |" for line in lines)


def plain(text: str) -> str:
    """Return text on one line, without what Markdown or HTML would take for its own."""
    one_line = " ".join(text.split())
    for mark, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*")):
        one_line = one_line.replace(mark, shown)
    return re.sub(r"\b_|_\b", lambda _: "\\_", one_line)
