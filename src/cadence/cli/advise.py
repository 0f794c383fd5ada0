"""Advise which step_size (mini-batches per update) to train with, or not to accumulate at all.

    python -m src.advise experiment=pydocs_gpt device.name=cuda
    python -m src.advise run=last

It takes the config and the overrides of src.train, trains for seconds to a few minutes, by the
model's size and what is auto, keeps none of it, and says what to expect of each step_size and why.
The picture and the table are kept under mlruns/advice (or where hydra.run.dir= says) and in MLflow.

run= takes a run's folder, or last: the run begun or resumed last. Of a run that has ended, trained
with trainer.noise_scale=true and one step_size from start to end (and not with track=none), it says
how the noise scale grew, and the schedule of step_size that a next run may follow.
"""

import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cadence.cli.build import build
from cadence.cli.compose import run_task
from cadence.cli.conf_folders import with_conf_folders
from cadence.cli.errors import command_line, errors_in_one_line
from cadence.cli.overrides import with_one_schedule
from cadence.cli.processes import WITHOUT_A_TRACE
from cadence.cli.resume import run_folder
from cadence.cli.run import OF_NOW, ROOT
from cadence.cli.secrets import MULTIRUN
from cadence.cli.usage import with_own_help
from cadence.config.checks import checked, flattened
from cadence.config.errors import ConfigError

if TYPE_CHECKING:
    from cadence.advise.advice import Advice
    from cadence.advise.probe import Probe
    from cadence.config.schema import Config, TrackConfig
    from cadence.tracking.metrics_file import LoggedMetric


USAGE = "usage: python -m src.advise [overrides], or run=<run folder, or last>"


def advise(cfg: DictConfig) -> None:
    """Print what is predicted for each step_size of the config's run, and what to choose."""
    with errors_in_one_line():
        _advise(cfg)


def _advise(cfg: DictConfig) -> None:
    settings = checked(cfg)
    _check_question(settings)
    settings.trainer.noise_scale = False  # it has turns of its own, which no other time is beside
    run = build(settings)

    from cadence.advise.advice import advise
    from cadence.advise.printed import print_advice
    from cadence.advise.probe import probe
    from cadence.display.terminal import open_console
    from cadence.engine.device import autocast_dtype
    from cadence.metrics.window_time_model import forecast

    console, what = open_console(), _what(run.batch_size)
    console.print(f"probe    {what}, on {run.trainer.device}", markup=False)
    precision = settings.device.precision
    found = probe(
        run.trainer,
        run.train_loader,
        halfway=run.total_samples and max(1, run.total_samples // 2),
        autocast=None if precision == "fp16" else autocast_dtype(precision, run.trainer.device),
    )
    advice = advise(
        forecast(found.rounds, found.samples),
        found.noise,
        found.items,
        found.memory_mib,
        found.minibatches,
        found.first_samples,
    )
    print_advice(advice, console)
    folder = _keep(advice, found, what)
    console.print(f"picture  {folder / PICTURE}", markup=False)
    track = settings.track
    if track.name != "none" and not track.offline:
        run_id = _note(cfg, track, advice, folder)
        console.print(f"MLflow   {run_id} in experiment {track.experiment}", markup=False)


PICTURE, TABLE = "advice.png", "advice.md"


def _check_question(settings: "Config") -> None:
    """Refuse a config that asks for more than one run from its beginning on one process."""
    if settings.sweep is not None:
        option = HydraConfig.get().runtime.choices["sweep"]
        raise ConfigError(
            f"sweep={option}: an advice is of one run, for all step_sizes at once; leave it out"
        )
    if settings.resume is not None:
        raise ConfigError(
            f"resume={settings.resume}: an advice is for a run from its beginning; leave it out"
        )
    if settings.distributed.name != "none":
        raise ConfigError(
            f"distributed={settings.distributed.name}: the probe trains on one process and cannot "
            "tell what others cost; leave it out"
        )


def _what(batch_size: int) -> str:
    choices = HydraConfig.get().runtime.choices
    return f"{choices['data']} {choices['model']}, {batch_size} samples a mini-batch"


def _keep(advice: "Advice", found: "Probe", what: str) -> Path:
    """Keep the picture and the table of what was probed, and return their folder."""
    from cadence.advise.advice import advice_markdown
    from cadence.advise.figure import advice_png
    from cadence.metrics.window_time_model import median_turns
    from cadence.system.atomic_write import write_atomically

    chosen = HydraConfig.get().run.dir
    folder = ROOT / "mlruns" / "advice" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    folder = folder if chosen == "." else Path(chosen).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    picture = advice_png(advice, median_turns(found.rounds), what)
    write_atomically(folder / PICTURE, picture)
    write_atomically(folder / TABLE, advice_markdown(advice))
    return folder


def _note(cfg: DictConfig, track: "TrackConfig", advice: "Advice", folder: Path) -> str:
    """Log the advice to MLflow, and return its run."""
    from cadence.tracking.mlflow.single_run import note
    from cadence.tracking.provenance import git_tags

    choices = HydraConfig.get().runtime.choices
    chosen = next(row for row in advice.rows if row.step_size == advice.step_size)
    return note(
        track.uri,
        track.experiment,
        f"advice {choices['data']} {choices['model']}",
        params={key: value for key, value in flattened(cfg).items() if key not in OF_NOW},
        metrics={
            "advice/step_size": advice.step_size,
            "advice/step_size_flat_low": advice.flat[0],
            "advice/step_size_flat_high": advice.flat[1],
            "advice/samples_per_second": chosen.throughput.value,
        },
        tags={"cadence.advice": advice.sentence, **git_tags(ROOT)},
        files=[folder / PICTURE, folder / TABLE],
    )


def advise_on(wanted: str) -> None:
    """Print how a run's noise scale grew, and the schedule that follows.

    Args:
        wanted: The run's folder, or ``last``.

    Raises:
        ConfigError: There is no such run, or it has not measured what it takes.
        ValueError: It is still going on.
    """
    from cadence.advise.growing_window import warmup
    from cadence.advise.printed import print_warmup
    from cadence.display.terminal import open_console
    from cadence.metrics.summary import FILE, read_summary

    folder = run_folder("run", wanted, ROOT / "mlruns" / "runs")
    points = _points(folder)
    if len({point.value for point in points if point.key == "train/step_size"}) > 1:
        raise ConfigError(
            f"run={wanted}: its step_size changed, so its times are of no one window; give a run "
            "of a single one"
        )
    scales = {point.step: point.value for point in points if point.key == "train/noise_scale"}
    if not scales:
        raise ConfigError(
            f"run={wanted}: it has no estimate of its noise scale; train with "
            "trainer.noise_scale=true, for longer, and not with track=none"
        )
    run = read_summary(folder / FILE) if (folder / FILE).exists() else {}
    times = [f"time_{part}_ms" for part in ("data", "compute", "sync", "update")]
    if any(run.get(told) is None for told in (*times, "time_samples", "items", "minibatches")):
        raise ConfigError(
            f"run={wanted}: it was ended before it could tell where its time goes; give one that "
            "has ended well"
        )
    data, compute, sync, update = (run[time] for time in times)
    # By what it truly saw: an epoch may be shorter than a window, and items may be masked.
    minibatches, processes = run["minibatches"], run["processes"]
    in_a_window = run["time_samples"] / (run["samples"] / minibatches) / processes
    found = warmup(
        scales,
        items=run["items"] / minibatches * processes,
        cost=(sync + update) * in_a_window / (data + compute),
    )
    console = open_console()
    console.print(f"run      {folder}\n", markup=False)
    print_warmup(found, console)


def _points(folder: Path) -> "list[LoggedMetric]":
    """Return a run's numbers; none of them = it was not tracked.

    Raises:
        ValueError: It is still going on.
    """
    from cadence.tracking.metrics_file import FILE, MetricsFile

    if not (folder / FILE).exists():
        return []
    with closing(MetricsFile(folder)) as journal:
        return journal.read(0, sys.maxsize)[0]


def main() -> None:
    """Run the command line."""
    with command_line():
        sys.argv[1:] = with_own_help(sys.argv[1:], f"{__doc__}\n{USAGE}\n")
        runs = [word.removeprefix("run=") for word in sys.argv[1:] if word.startswith("run=")]
        if runs and len(sys.argv) > 2:
            raise ConfigError(
                f"run={runs[-1]}: an advice on a run takes no overrides; leave out the others"
            )
        if runs:
            advise_on(runs[0])
            return
        if MULTIRUN & set(sys.argv):
            raise ConfigError(
                "--multirun: an advice is of one run, for all step_sizes at once; leave it out"
            )
        sys.argv[1:] = [*WITHOUT_A_TRACE, *with_one_schedule(with_conf_folders(sys.argv[1:]))]
        run_task(advise)
