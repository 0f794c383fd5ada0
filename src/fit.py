"""Training to the config's limits, with what is kept of it as that goes."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cadence import config as configs
from cadence.redaction import redacted
from src.build import Run

if TYPE_CHECKING:
    from cadence.distributed import Processes
    from cadence.record import Fitted, Observer
    from cadence.schema import Config
    from cadence.track import Tracker

log = logging.getLogger(__name__)


def fit_and_keep(
    settings: "Config",
    run: Run,
    folder: Path,
    observers: "list[Observer]",
    tracker: "Tracker | None",
    processes: "Processes",
    kept: dict[str, Any],
) -> "Fitted":
    """Train to the limits, and keep the state in the run's folder as that goes."""
    from cadence.checkpoint import FOLDER, Checkpoints
    from cadence.interruption import Interruption
    from cadence.keeper import Keeper
    from cadence.update import DivergedError

    if _is_at_its_end(settings, run):
        log.warning("the run had come to its end; a higher limit, such as trainer.max_epochs, "
                    "trains on")  # fmt: skip
        return run.trainer.fitted
    shared = processes.count > 1
    with (
        Checkpoints(folder / FOLDER) as checkpoints,
        Interruption(shared=shared) as interruption,
    ):
        processes.watch(interruption)
        keeper = Keeper(
            run.trainer,
            checkpoints,
            settings.trainer.checkpoint_every,
            config=kept,
            mlflow_run_id=tracker.run_id if tracker else None,
            interruption=interruption,
            before_save=tracker.flush if tracker else None,
        )
        try:
            fitted = fit(settings, run, observers=observers, at_boundary=keeper.at_boundary)
        except DivergedError:
            keeper.finish()  # the refused windows left its last good weights as they were
            raise
        keeper.finish()
    return fitted


def fit(settings: "Config", run: Run, **seen_by: Any) -> "Fitted":
    """Train to the limits."""
    if _is_at_its_end(settings, run):
        return run.trainer.fitted
    return run.trainer.fit(
        run.train_loader,
        run.val_loader,
        **_limits_left(settings, run),
        evaluate_every=settings.trainer.evaluate_every,
        patience=settings.trainer.patience,
        **seen_by,
    )


def _is_at_its_end(settings: "Config", run: Run) -> bool:
    left = _limits_left(settings, run).values()
    return min((limit for limit in left if limit is not None), default=1) <= 0


def log_model(settings: "Config", run: Run, folder: Path, run_id: str) -> None:
    """Log the run's best model with it in MLflow, by an example of two samples.

    Without held-out data none is the best, and it is the trained model as it is.
    """
    from cadence.batch import first_samples, tensors
    from cadence.checkpoint import BEST, FOLDER
    from cadence.logged_model import log_model
    from cadence.state import checked_model_state
    from cadence.statefile import read

    model, best = run.trainer.model, folder / FOLDER / BEST
    if best.exists():
        model.load_state_dict(checked_model_state(model, read(best)))
    batch = next(first_samples(run.train_loader, 2))
    log_model(settings.track.uri, run_id, model, tensors(batch)[0])


def _limits_left(settings: "Config", run: Run) -> dict[str, Any]:
    """Return the limits of a run less what it has behind it, by their names in `Trainer.fit`."""
    limits, so_far = settings.trainer, run.trainer.clock
    seconds = run.trainer.fitted.seconds if so_far.samples else 0
    return {
        "epochs": limits.max_epochs and limits.max_epochs - so_far.epoch,
        "max_samples": limits.max_samples and limits.max_samples - so_far.samples,
        "max_seconds": limits.max_seconds and limits.max_seconds - seconds,
    }


def kept_config(cfg: DictConfig, processes: int) -> dict[str, Any]:
    """Return the flattened config as checkpoints keep it, without secrets."""
    flat = configs.flattened(cfg).items()
    kept = {key: redacted(value) if isinstance(value, str) else value for key, value in flat}
    return kept | {"distributed.processes": processes}
