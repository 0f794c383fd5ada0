"""A table of text as rich prints it."""

import rich.table
from rich.text import Text

from cadence.display.table import Table


def rich_table(table: Table) -> rich.table.Table:
    """Return a table for `rich.console.Console.print`."""
    shown = rich.table.Table(*table.columns, box=None, pad_edge=False)
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
