"""An advice on the terminal."""

from rich.console import Console

from cadence.advise.advice import Advice, table_of_advice
from cadence.advise.growing_window import Warmup
from cadence.display.rich_table import rich_table
from cadence.display.table import Table
from cadence.display.terminal import print_facts


def print_advice(advice: Advice, console: Console) -> None:
    """Print what is predicted for each step_size, what it follows from, and what to choose."""
    console.print()
    console.print(rich_table(table_of_advice(advice)))
    console.print()
    print_facts(advice.facts, console)
    console.print()
    console.print(advice.sentence, markup=False)


def print_warmup(warmup: Warmup, console: Console) -> None:
    """Print how the noise scale grew, and the schedule of step_size that follows from it."""
    rows = (
        (f"{samples:,}", f"{scale:,.0f}", f"{best:.1f}") for samples, scale, best in warmup.growth
    )
    columns = "samples", "noise scale\n(items)", "best\nstep_size"
    console.print(rich_table(Table(columns, tuple(rows))))
    console.print()
    if len(warmup.schedule) == 1:
        console.print(f"no schedule: step_size {warmup.schedule[0]} suits the whole run")
    else:
        console.print(f"schedule 'trainer.step_size={dict(warmup.schedule)}'", markup=False)
