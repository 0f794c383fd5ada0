"""What a run will do, resolved once from its config: what comes after takes this instead of it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cadence.cli.compose import in_multirun
from cadence.cli.resume import WINDOW, state_to_go_on_from, where_a_trial_goes_on
from cadence.config.checks import flattened
from cadence.plan.shares import SharedStepSizes, WindowPlan, even
from cadence.plan.window import StepSizeSchedule
from cadence.system.secrets import redacted_tree

if TYPE_CHECKING:
    from cadence.checkpoint.state import State
    from cadence.config.schema import Config, TrackConfig
    from cadence.plan.clock import Clock

log = logging.getLogger(__name__)


class RunLimits(NamedTuple):
    """Where a whole run ends, the sessions before this one counted in; None = no such limit."""

    epochs: int | None
    samples: int | None
    seconds: float | None

    def left(self, clock: "Clock", seconds: float) -> dict[str, Any]:
        """Return what is left of them, by their names in `cadence.Trainer.fit`.

        Args:
            clock: How far the run has come.
            seconds: What it has trained.
        """
        return {
            "epochs": self.epochs and self.epochs - clock.epoch,
            "max_samples": self.samples and self.samples - clock.samples,
            "max_seconds": self.seconds and self.seconds - seconds,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """A run, of one process or of several, as its config, its folder and its checkpoint have it."""

    composed: DictConfig
    """The config as it was composed, for what keeps a copy of it."""
    kept: Mapping[str, Any]
    """The config flattened, without secrets, and how its windows began: as checkpoints keep it."""
    folder: Path
    seed: int
    precision: str
    windows: WindowPlan
    window_name: str
    """The mini-batches per update that the run's name tells."""
    limits: RunLimits
    evaluate_every: int | None
    """Samples between two evaluations; None = one an epoch."""
    checkpoint_every: int | None
    """Samples between two checkpoints; None = one an epoch, where that is cheap."""
    resume: Path | None
    """The folder of the run that it goes on with, its own as a rule; None = it begins."""
    state: "State | None"
    """What it goes on from; None = from the beginning."""
    tracking: "TrackConfig | None"
    """Where its numbers go beside its folder; None = nowhere."""


def planned(cfg: DictConfig, settings: "Config", processes: int) -> RunPlan:
    """Resolve what a run will do.

    Args:
        cfg: The composed config.
        settings: The same as plain values.
        processes: How many train together.

    Raises:
        ConfigError: It would be another training than the one it goes on with.
        ValueError: No checkpoint there can be read, or the shares of the processes are impossible.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    resume = settings.resume
    if resume is not None and in_multirun():
        resume = where_a_trial_goes_on(folder, resume)
    kept = kept_config(cfg, processes)
    state = state_to_go_on_from(resume, kept)
    schedule, shares = settings.trainer.step_size, settings.distributed.step_sizes
    began_with = None if state is None else state.config
    windows = planned_windows(schedule, shares, processes, began_with)
    trainer, track = settings.trainer, settings.track
    return RunPlan(
        composed=cfg,
        kept={**kept, WINDOW: sum(windows.at(0))},
        folder=folder,
        seed=settings.seed,
        precision=settings.device.precision,
        windows=windows,
        window_name=window_name(schedule, shares, windows.at(state.clock.samples if state else 0)),
        limits=RunLimits(trainer.max_epochs, trainer.max_samples, trainer.max_seconds),
        evaluate_every=trainer.evaluate_every,
        checkpoint_every=trainer.checkpoint_every,
        resume=None if resume is None else Path(resume),
        state=state,
        tracking=None if track.name == "none" else track,
    )


def kept_config(cfg: DictConfig, processes: int) -> dict[str, Any]:
    """Return the flattened config as checkpoints keep it, without secrets."""
    kept: dict[str, Any] = redacted_tree(flattened(cfg))
    return kept | {"distributed.processes": processes}


def planned_windows(
    schedule: StepSizeSchedule,
    shares: Any,
    processes: int,
    began_with: Mapping[str, Any] | None,
) -> WindowPlan:
    """Return the mini-batches per update of each process.

    A run that goes on keeps its window, on however many processes and however it is shared out,
    unless it is asked for another one.

    Args:
        schedule: ``trainer.step_size``.
        shares: ``distributed.step_sizes``: one for each process, ``auto`` or None.
        processes: How many there are.
        began_with: The flattened config that the run was saved with; None = it begins.

    Raises:
        ValueError: The shares are impossible; the message says what to try.
    """
    is_scheduled = isinstance(schedule.given, Mapping)
    if is_scheduled and shares is not None:
        raise ValueError(
            f"distributed.step_sizes={shares}: a schedule of trainer.step_size is the same for "
            "each process; leave distributed.step_sizes null, or give trainer.step_size one number"
        )
    each: SharedStepSizes = shares if isinstance(shares, list) else schedule
    if began_with is None or _asks_for_another_window(schedule, shares, began_with):
        return WindowPlan(each, processes)
    was = began_with.get("distributed.processes", 1)
    if is_scheduled and was == processes:
        return WindowPlan(each, processes)
    if is_scheduled:
        raise ValueError(
            f"distributed.processes={processes}: the run has a schedule of trainer.step_size for "
            f"each of {was} processes; go on with {was}, or give another trainer.step_size"
        )
    window = began_with.get(WINDOW, schedule.given)
    if isinstance(shares, list) and (len(shares), sum(shares)) == (processes, window):
        return WindowPlan(shares, processes)
    evenly = even(window, processes)
    if (processes, shares) != (was, began_with.get("distributed.step_sizes")):
        log.warning(
            "resume: the %d mini-batches of an update are shared out as %s now",
            window,
            list(evenly),
        )
    return WindowPlan(evenly, processes)


def _asks_for_another_window(
    schedule: StepSizeSchedule, shares: Any, began_with: Mapping[str, Any]
) -> bool:
    """Return whether another step_size is asked for, or others for each process.

    ``auto`` and null ask for no window: they say how the one there is gets shared out.
    """
    step_size = schedule.given
    now = str(step_size) if isinstance(step_size, Mapping) else step_size  # as it is flattened
    is_other_list = isinstance(shares, list) and shares != began_with.get("distributed.step_sizes")
    return is_other_list or bool(now != began_with["trainer.step_size"])


def window_name(schedule: StepSizeSchedule, shares: Any, step_sizes: tuple[int, ...]) -> str:
    """Return the mini-batches per update that a run's name tells.

    Args:
        schedule: ``trainer.step_size``. It is not what trains where each process has a share of its
            own, and where a run goes on with another number of processes.
        shares: ``distributed.step_sizes``.
        step_sizes: Those of each process as the run begins or goes on, which do train; ``auto``
            begins with even ones.
    """
    step_size = schedule.given
    if isinstance(step_size, Mapping) or (shares is None and {*step_sizes} == {step_size}):
        return f"step_size={step_size}"
    if len(step_sizes) == 1:
        return f"step_size={step_sizes[0]}"
    return f"step_sizes=[{','.join(map(str, step_sizes))}]"
