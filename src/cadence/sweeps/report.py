"""A sweep's report: the answer in one sentence, its tables and pictures, every trial as CSV."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
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
from cadence.sweeps.pareto_front import (
    STEP_SIZE,
    PointResult,
    number,
    results,
    several,
    trials_of,
)
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
    """The result of a sweep, for the console; the files hold the same and more."""

    sentence: str
    """The answer."""
    table: Table
    """A row for each step_size; without rows where no trial finished."""
    warnings: tuple[str, ...]
    """Why the answer may not hold; empty where no reason is known."""
    files: tuple[Path, ...]
    """The files that were written; no pictures where no trial finished."""


def write_report(study: optuna.Study, folder: Path) -> Report:
    """Write report.md, pareto.png, pareto.html and trials.csv, each by an atomic write.

    Args:
        study: A sweep's study, of any storage, ended or not. Trials and the study may lack any
            attribute.
        folder: Where to write; made where it is not there.

    Raises:
        ValueError: The study searches for something else than a low loss and a high throughput.
    """
    sweep = read(study)
    found = results(sweep)
    equal_time = sweep.equal_seconds() is not None
    comparison = compare(found, equal_time=equal_time) if found else None
    said = sentence(comparison) if comparison else _without_result(sweep)
    table = table_by_step_size(comparison) if comparison else Table((), ())
    warnings = [
        *_warnings_of_the_grid(sweep),
        *_warnings_of_samples(sweep),
        *_warnings_of_epochs(found),
        *warnings_of_noise(found),
    ]

    contents: dict[str, bytes] = {}
    blocks = _blocks(sweep, comparison, said, table, warnings)
    contents["report.md"] = ("\n\n".join(blocks) + "\n").encode()
    if comparison:
        caption = Caption(said, _held_fixed(sweep))
        contents["pareto.png"] = png(comparison, caption)
        contents["pareto.html"] = page(comparison, caption).encode()
    contents["trials.csv"] = sweep.csv().encode()

    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(_written(folder / name, content) for name, content in contents.items())
    return Report(said, table, tuple(warnings), files)


def table_by_step_size(comparison: Comparison) -> Table:
    """Return a row for each step_size: its point of lowest loss, with its other searched keys."""
    others = sorted({key for result in comparison.results for key in result.others})
    predicted = {each.result.trials: each for each in predictions(comparison.results)}
    on_front = trials_of(comparison.front)
    columns = (
        "step_size\n(mini-batches\nper update)",
        *others,
        "val loss",
        "throughput\n(samples/s)",
        *(["predicted\n(samples/s)"] if predicted else []),
        "updates",
        "effective\nbatch (items\nper update)",
        "peak\nmemory\n(MiB)",
        "seconds",
        "trials",
        "front",
    )
    rows = (
        (
            result.schedule or number(result.step_size),
            *(result.others.get(key, "-") for key in others),
            str(result.val_loss),
            str(result.throughput),
            *([_predicted(predicted.get(result.trials))] if predicted else []),
            number(result.updates),
            number(result.effective_batch),
            number(result.peak_memory_mib),
            number(result.seconds),
            _listed(result.trials),
            _place(result, comparison.knee, on_front),
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


def _without_result(sweep: Trials) -> str:
    failures = sweep.failures()
    if not failures:
        return "no trial has finished yet"
    reason = shorten(failures[0].reason, 200)
    return f"no trial finished: {len(failures)} failed, the first with: {reason}"


def _held_fixed(sweep: Trials) -> str:
    conditions = sweep.conditions()
    named = [f"{key} {conditions[key]}" for key in IN_THE_PICTURE if key in conditions]
    return "; ".join(named) or "not recorded"


def _warnings_of_the_grid(sweep: Trials) -> Iterator[str]:
    """Warn of an answer that part of the grid gave."""
    ended = sum(trial.state.is_finished() for trial in sweep.trials)
    if sweep.grid is not None and ended < sweep.grid:
        yield (
            f"{ended:,} of the {sweep.grid:,} trials of the grid were run, so the answer is that "
            f"of a part of it; hydra.sweeper.n_trials={sweep.grid} runs all"
        )


def _warnings_of_samples(sweep: Trials) -> list[str]:
    samples = sweep.samples()
    if len(samples) < 2 or sweep.equal_seconds() is not None:
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
                f"step_size {several(sizes)}{where} are the same training: a window ends with "
                f"its epoch, and these hold a whole one ({number(items)} items); search below"
            )


def _blocks(
    sweep: Trials,
    comparison: Comparison | None,
    said: str,
    table: Table,
    warnings: Sequence[str],
) -> Iterator[str]:
    """Yield the report's paragraphs, as Markdown."""
    yield f"# Sweep {plain(sweep.name)}"
    yield f"**{plain(said)}**"
    yield from (f"> Warning: {plain(warning)}" for warning in warnings)
    if comparison:
        yield (
            "step_size is the number of mini-batches per update. To train with this answer, give "
            f"`{_overrides(comparison.knee, sweep)}` and whatever else the sweep was given."
        )
        yield "![throughput against validation loss](pareto.png)"
    yield _counts(sweep, has_picture=comparison is not None)
    if comparison:
        yield "## By step_size"
        if any(result.others for result in comparison.results):
            yield "Each row is the point of lowest loss at its step_size."
        yield markdown(table)
        yield SPREAD
        if predicted := predictions(comparison.results):
            yield f"{PREDICTED} {plain(where_they_part(predicted))}"
        yield "## Pareto front"
        yield "The points that no other one beats in both, from the slowest on."
        yield markdown(table_of_front(comparison))
        yield f"The baseline is {plain(comparison.baseline.name)}. {comparison.definition}"
    yield from _definition(sweep)
    if failures := sweep.failures():
        yield "## Failed trials"
        rows = (
            (str(failure.trial), failure.point, shorten(failure.reason, 200))
            for failure in failures
        )
        yield markdown(Table(("trial", "point", "reason"), tuple(rows)))


def _definition(sweep: Trials) -> Iterator[str]:
    yield "## Held fixed"
    conditions = sweep.conditions()
    if conditions:
        yield markdown(Table(("condition", "value"), tuple(conditions.items())))
    if sweep.fixed:
        yield (
            f"The study keeps all {len(sweep.fixed)} fixed keys, each trial's folder its whole "
            "config in `.hydra/config.yaml`."
        )
    else:
        yield "The study does not tell what else was held fixed."
    if by_option := sweep.conditions_by_option():
        yield "## By option"
        yield markdown(Table(("option", "condition", "value"), tuple(by_option)))
    if sweep.space:
        yield "## Search space"
        yield markdown(Table(("key", "values"), tuple(sweep.space.items())))


def _counts(sweep: Trials, *, has_picture: bool) -> str:
    counts = {
        "compared": len(sweep.compared()),
        "failed": len(sweep.failures()),
        "running or waiting": sweep.open(),
    }
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    links = "[every trial](trials.csv)"
    if has_picture:
        links = f"[the picture to point at](pareto.html), {links}"
    run = f" MLflow run of the sweep: `{sweep.parent_run}`." if sweep.parent_run else ""
    return f"Trials: {said or 'none yet'}; {links}.{run}"


def _place(result: PointResult, knee: PointResult, on_front: Collection[tuple[int, ...]]) -> str:
    if result is knee:
        return "knee"
    return "yes" if result.trials in on_front else "no"


def _predicted(prediction: Prediction | None) -> str:
    return "-" if prediction is None else number(round(prediction.samples_per_second))


def _overrides(result: PointResult, sweep: Trials) -> str:
    given: dict[str, Any] = {} if result.steps is None else {STEP_SIZE: result.steps}
    given |= {**result.params, **sweep.choices(result.params)}
    return join(f"{key}={value}" for key, value in given.items())


def _listed(trials: Sequence[int]) -> str:
    return ", ".join(map(str, trials))


def _written(file: Path, content: bytes) -> Path:
    write_atomically(file, content)
    return file
