"""A report on the terminal."""

from rich.console import Console

from cadence.display.rich_table import rich_table
from cadence.sweeps.report import Report


def print_report(report: Report, console: Console) -> None:
    """Print a sweep's table, its warnings and its answer."""
    console.print()
    if report.table.rows:
        console.print(rich_table(report.table))
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False)
    console.print(report.sentence, markup=False)
    console.print(f"report  {report.files[0].parent}", markup=False)
