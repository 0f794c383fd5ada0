"""A sweep's report: the answer in one sentence, its tables and pictures, every trial as CSV."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from textwrap import shorten
from typing import Any

import optuna

from cadence.display.table import Table, markdown, plain
from cadence.sweeps.figures import Caption, page, png
from cadence.sweeps.knee import (
    Comparison,
    best_by_step_size,
    compare,
    sentence,
    versus,
    warnings_of_noise,
)
from cadence.sweeps.pareto_front import STEP_SIZE, PointResult, number, results
from cadence.sweeps.prediction import PREDICTED, Prediction, predictions, where_they_part
from cadence.sweeps.trials import Trials, load, read
from cadence.system.atomic_write import write_atomically

__all__ = ["Report", "Table", "load", "write_report"]

IN_THE_PICTURE = ("samples", "seconds", "lr scaling", "data.batch_size", "optimizer.lr", "seed")
"""The conditions that the picture's title names; the report names more."""

SPREAD = (
    "In brackets, the spread: of a throughput the 10th to the 90th percentile of the trial's "
    "windows; where a point was run several times, the lowest to the highest trial around the mean."
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a sweep came to, for the console; the files hold the same and more."""

    sentence: str
    """The answer."""
    table: Table
    """A row for each step_size; none where no trial finished."""
    warnings: tuple[str, ...]
    """Why the answer may not hold; empty = no reason is known."""
    files: tuple[Path, ...]
    """What was written; no pictures where no trial finished."""


def write_report(study: optuna.Study, folder: Path) -> Report:
    """Write report.md, pareto.png, pareto.html and trials.csv, each whole or not at all.

    Args:
        study: A sweep's study, of any storage, whether it has ended or not. Trials and the study
            may lack any attribute.
        folder: Where to write; made if it is not there.

    Raises:
        ValueError: The study asks something else than a low loss and a high throughput.
    """
    ledger = read(study)
    found = results(ledger)
    equal_time = ledger.equal_seconds() is not None
    comparison = compare(found, equal_time=equal_time) if found else None
    said = sentence(comparison) if comparison else _without_result(ledger)
    table = table_by_step_size(comparison) if comparison else Table((), ())
    warnings = [
        *_warnings_of_samples(ledger),
        *_warnings_of_epochs(found),
        *warnings_of_noise(found),
    ]

    contents: dict[str, bytes] = {}
    blocks = _blocks(ledger, comparison, said, table, warnings)
    contents["report.md"] = ("\n\n".join(blocks) + "\n").encode()
    if comparison:
        caption = Caption(said, _held_fixed(ledger))
        contents["pareto.png"] = png(comparison, caption)
        contents["pareto.html"] = page(comparison, caption).encode()
    contents["trials.csv"] = ledger.csv().encode()

    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(_written(folder / name, content) for name, content in contents.items())
    return Report(said, table, tuple(warnings), files)


def table_by_step_size(comparison: Comparison) -> Table:
    """Return a row for each step_size: its point of lowest loss, with its other searched keys."""
    others = sorted({key for result in comparison.results for key in result.others})
    foretold = {each.result.trials: each for each in predictions(comparison.results)}
    columns = (
        "step_size\n(mini-batches\nper update)",
        *others,
        "val loss",
        "throughput\n(samples/s)",
        *(["predicted\n(samples/s)"] if foretold else []),
        "updates",
        "effective\nbatch (items\nper update)",
        "peak\nmemory\n(MiB)",
        "seconds",
        "trials",
        "front",
    )
    rows = (
        (
            number(result.step_size),
            *(result.others.get(key, "-") for key in others),
            str(result.val_loss),
            str(result.throughput),
            *([_foretold(foretold.get(result.trials))] if foretold else []),
            number(result.updates),
            number(result.effective_batch),
            number(result.peak_memory_mib),
            number(result.seconds),
            _listed(result.trials),
            _place(result, comparison),
        )
        for result in best_by_step_size(comparison.results)
    )
    return Table(columns, tuple(rows))


def table_of_front(comparison: Comparison) -> Table:
    """Return a row for each point of the Pareto front, from the slowest on."""
    baseline = comparison.baseline
    columns = ("point", "val loss", "throughput (samples/s)", "against the baseline", "trials")
    rows = (
        (
            result.name,
            str(result.val_loss),
            str(result.throughput),
            "the baseline" if result is baseline else versus(result, baseline),
            _listed(result.trials),
        )
        for result in comparison.front
    )
    return Table(columns, tuple(rows))


def _without_result(ledger: Trials) -> str:
    failures = ledger.failures()
    if not failures:
        return "no trial has finished yet"
    reason = shorten(failures[0].reason, 200)
    return f"no trial finished: {len(failures)} failed, the first with: {reason}"


def _held_fixed(ledger: Trials) -> str:
    conditions = ledger.conditions()
    named = [f"{key} {conditions[key]}" for key in IN_THE_PICTURE if key in conditions]
    return "; ".join(named) or "not recorded"


def _warnings_of_samples(ledger: Trials) -> list[str]:
    samples = ledger.samples()
    if len(samples) < 2 or ledger.equal_seconds() is not None:
        return []
    return [
        f"the trials saw different numbers of samples, from {samples[0]:,} to {samples[-1]:,}, so "
        "their losses do not compare; set trainer.max_samples"
    ]


def _warnings_of_epochs(found: Sequence[PointResult]) -> Iterator[str]:
    """Warn of step_sizes whose windows are all cut to the same epoch."""
    alike: defaultdict[tuple[float, tuple[tuple[str, str], ...]], list[str]] = defaultdict(list)
    for result in found:
        if result.step_size is not None and result.effective_batch is not None:
            key = (result.effective_batch, tuple(result.others.items()))
            alike[key].append(str(result.step_size))
    for (items, others), sizes in alike.items():
        if len(sizes) > 1:
            where = "".join(f", {key} {value}" for key, value in others)
            yield (
                f"step_size {', '.join(sizes)}{where} are the same training: a window ends with "
                f"its epoch, and these hold a whole one ({number(items)} items); search below"
            )


def _blocks(
    ledger: Trials,
    comparison: Comparison | None,
    said: str,
    table: Table,
    warnings: Sequence[str],
) -> Iterator[str]:
    """Yield the report's paragraphs, as Markdown."""
    yield f"# Sweep {plain(ledger.name)}"
    yield f"**{plain(said)}**"
    yield from (f"> Warning: {plain(warning)}" for warning in warnings)
    if comparison:
        yield (
            "step_size is the number of mini-batches per update. To train with this answer, give "
            f"`{_overrides(comparison.knee, ledger)}` and whatever else the sweep was given."
        )
        yield "![throughput against validation loss](pareto.png)"
    yield _counts(ledger, has_picture=comparison is not None)
    if comparison:
        yield "## By step_size"
        if any(result.others for result in comparison.results):
            yield "Each row is the point of lowest loss at its step_size."
        yield markdown(table)
        yield SPREAD
        if foretold := predictions(comparison.results):
            yield f"{PREDICTED} {plain(where_they_part(foretold))}"
        yield "## Pareto front"
        yield "The points that no other one beats in both, from the slowest on."
        yield markdown(table_of_front(comparison))
        yield f"The baseline is {plain(comparison.baseline.name)}. {comparison.definition}"
    yield from _question(ledger)
    if failures := ledger.failures():
        yield "## Failed trials"
        rows = (
            (str(failure.trial), failure.point, shorten(failure.reason, 200))
            for failure in failures
        )
        yield markdown(Table(("trial", "point", "reason"), tuple(rows)))


def _question(ledger: Trials) -> Iterator[str]:
    yield "## Held fixed"
    conditions = ledger.conditions()
    if conditions:
        yield markdown(Table(("condition", "value"), tuple(conditions.items())))
    if ledger.fixed:
        yield (
            f"The study keeps all {len(ledger.fixed)} fixed keys, each trial's folder its whole "
            "config in `.hydra/config.yaml`."
        )
    else:
        yield "The study does not tell what else was held fixed."
    if ledger.space:
        yield "## Search space"
        yield markdown(Table(("key", "values"), tuple(ledger.space.items())))


def _counts(ledger: Trials, *, has_picture: bool) -> str:
    counts = {
        "compared": len(ledger.compared()),
        "failed": len(ledger.failures()),
        "running or waiting": ledger.open(),
    }
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    links = "[every trial](trials.csv)"
    if has_picture:
        links = f"[the picture to point at](pareto.html), {links}"
    run = f" MLflow run of the sweep: `{ledger.parent_run}`." if ledger.parent_run else ""
    return f"Trials: {said or 'none yet'}; {links}.{run}"


def _place(result: PointResult, comparison: Comparison) -> str:
    if result is comparison.knee:
        return "knee"
    return "yes" if result in comparison.front else "no"


def _foretold(prediction: Prediction | None) -> str:
    return "-" if prediction is None else number(round(prediction.samples_per_second))


def _overrides(result: PointResult, ledger: Trials) -> str:
    given: dict[str, Any] = {} if result.step_size is None else {STEP_SIZE: result.step_size}
    given |= {**result.params, **ledger.choices()}
    return join(f"{key}={value}" for key, value in given.items())


def _listed(trials: Sequence[int]) -> str:
    return ", ".join(map(str, trials))


def _written(file: Path, content: bytes) -> Path:
    write_atomically(file, content)
    return file
