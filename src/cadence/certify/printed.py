"""A certificate on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cadence.certify.certificate import Certificate


def print_certificate(certificate: Certificate, console: Console) -> None:
    """Print what was compared, the worst of each parameter group, the verdict and its causes."""
    sizes = ["null" if size is None else str(size) for size in certificate.microbatch_sizes]
    table = Table(
        *("group", "precision", "relative error", "tolerance", "worst parameter"),
        "microbatch_size",
        box=None,
        pad_edge=False,
    )
    for worst in certificate.comparisons:
        size = "null" if worst.microbatch_size is None else str(worst.microbatch_size)
        numbers = f"{worst.error:.1e}", f"{worst.tolerance:.1e}"
        table.add_row(*map(Text, (worst.group, worst.precision, *numbers, worst.parameter, size)))
    lines = [f"note     {note}" for note in certificate.notes]
    lines.append(
        "PASS     every split compared has the same gradient, up to rounding"
        if certificate.passed
        else "FAIL     the gradient depends on how the window is split into micro-batches"
    )
    for cause in certificate.causes:
        lines += [f"cause    {cause.finding}", f"remedy   {cause.remedy}"]
    left = certificate.error_without_causes
    if left is not None:
        lines.append(f"proof    with that switched off every split agrees to {left:.1e}")
    console.print(
        f"window   {certificate.minibatches} mini-batches, {certificate.samples:,} samples, "
        f"{certificate.items:,} items",
        markup=False,
    )
    console.print(
        f"compare  micro-batches of {', '.join(sizes)} samples with one pass", markup=False
    )
    console.print()
    console.print(table)
    console.print()
    for line in lines:
        console.print(line, markup=False)
