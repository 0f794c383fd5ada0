"""The hall: compose, build, train, return the objectives.

    python -m src.train trainer.step_size=16

Configuration stops here: every room of the library takes plain values. The heavy imports wait
inside the functions, so that ``--help`` and a typo are answered at once.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cadence import config as configs
from cadence.liveness import going_on
from cadence.redaction import redact_files, redact_logs, redacted
from src.build import Run, build, effective_batch
from src.errors import errors_in_one_line, interruptible, logged_with_traceback
from src.resume import check_changes, with_resume
from src.secrecy import with_secrets_in_environment

if TYPE_CHECKING:
    from cadence.checkpoint import State
    from cadence.record import Fitted, Observer
    from cadence.schema import Config
    from cadence.track import Tracker

TRUSTED_TARGETS = (
    "cadence.data.*",
    "cadence.models.*",
    "cadence.objectives.*",
    "torch.optim.*",
)
"""What a config may name as ``_target_``: configs are code, so everything else is refused. Add the
module of your own model or data set here, such as ``"my_project.models.*"``."""

ROOT = Path(__file__).resolve().parents[1]

OF_NOW = ("resume", "track.run_id")
"""Keys that say where a run is kept and not what it is: no params to compare runs by."""

log = logging.getLogger(__name__)
configs.register(ROOT)
redact_logs()


@hydra.main(
    config_path=str(ROOT / "conf"), config_name="config", execution_whitelist=TRUSTED_TARGETS
)
def train(cfg: DictConfig) -> tuple[float, float]:
    """Train as the config says, and return ``(val_loss, samples_per_second)``."""
    # In a multirun the sweeper wants a failed trial's exception.
    in_multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    with nullcontext() if in_multirun else errors_in_one_line(), logged_with_traceback():
        return _train(cfg)


def _train(cfg: DictConfig) -> tuple[float, float]:
    _redact_hydra_files()
    settings = configs.checked(cfg)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if settings.sweep is not None and not in_sweep:
        option = HydraConfig.get().runtime.choices["sweep"]
        raise configs.ConfigError(
            f"sweep={option}: a sweep is many runs; try python -m src.train --multirun "
            f"sweep={option}"
        )
    if settings.track.log_model and settings.track.offline:
        raise configs.ConfigError(
            "track.log_model=true: a model goes to MLflow at once; not with track.offline=true"
        )
    folder = Path(HydraConfig.get().runtime.output_dir)
    with going_on(folder) if in_sweep else nullcontext():
        return _train_in(folder, cfg, settings)


def _train_in(folder: Path, cfg: DictConfig, settings: "Config") -> tuple[float, float]:
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep and settings.resume is not None:
        settings.resume = _where_a_trial_goes_on(folder, settings.resume)
    state = _state_to_go_on_from(settings, cfg)
    if state is not None:
        _take_numbers_along(Path(settings.resume or ""), folder)
    run = build(settings)
    if state is not None:
        run.trainer.restore(state)

    from cadence.console import Display

    display = Display(run.total_samples, quiet=in_sweep)
    display.facts(_facts(settings, run))
    with (
        _tracked(cfg, settings, run, folder, state) as tracker,
        _summarised(settings, run, folder, tracker),
        display,
    ):
        observers: list[Observer] = [display, tracker] if tracker else [display]
        fitted = _fit(cfg, settings, run, folder, observers, tracker)
    if tracker and tracker.run_id and settings.track.log_model:
        _log_model(settings, run, tracker.run_id)
    display.table(fitted, _where_to_look(settings, folder, tracker))
    return fitted.val_loss, fitted.samples_per_second


def _fit(
    cfg: DictConfig,
    settings: "Config",
    run: Run,
    folder: Path,
    observers: "list[Observer]",
    tracker: "Tracker | None",
) -> "Fitted":
    """Train to the limits, and keep the state in the run's folder as that goes."""
    from cadence.checkpoint import FOLDER, Checkpoints
    from cadence.interruption import Interruption
    from cadence.keeper import Keeper
    from cadence.update import DivergedError

    limits = settings.trainer
    left = _limits_left(settings, run)
    if min((limit for limit in left.values() if limit is not None), default=1) <= 0:
        log.warning("the run had come to its end; a higher limit, such as trainer.max_epochs, "
                    "trains on")  # fmt: skip
        return run.trainer.fitted
    with Checkpoints(folder / FOLDER) as checkpoints, Interruption() as interruption:
        keeper = Keeper(
            run.trainer,
            checkpoints,
            limits.checkpoint_every,
            config=_kept_config(cfg),
            mlflow_run_id=tracker.run_id if tracker else None,
            interruption=interruption,
            before_save=tracker.flush if tracker else None,
        )
        try:
            fitted = run.trainer.fit(
                run.train_loader,
                run.val_loader,
                **left,
                evaluate_every=limits.evaluate_every,
                patience=limits.patience,
                observers=observers,
                at_boundary=keeper.at_boundary,
            )
        except DivergedError:
            keeper.finish()  # the refused windows left its last good weights as they were
            raise
        keeper.finish()
    return fitted


def _log_model(settings: "Config", run: Run, run_id: str) -> None:
    """Log the trained model with its run in MLflow, by an example of two samples."""
    from cadence.batch import first_samples, tensors
    from cadence.logged_model import log_model

    batch = next(first_samples(run.train_loader, 2))
    log_model(settings.track.uri, run_id, run.trainer.model, tensors(batch)[0])


def _limits_left(settings: "Config", run: Run) -> dict[str, Any]:
    """Return the limits of a run less what it has behind it, by their names in `Trainer.fit`."""
    limits, so_far = settings.trainer, run.trainer.clock
    seconds = run.trainer.fitted.seconds if so_far.samples else 0
    return {
        "epochs": limits.max_epochs and limits.max_epochs - so_far.epoch,
        "max_samples": limits.max_samples and limits.max_samples - so_far.samples,
        "max_seconds": limits.max_seconds and limits.max_seconds - seconds,
    }


def _where_a_trial_goes_on(folder: Path, there: str) -> str | None:
    """Return its own folder, if its engine had begun it there before; None = it begins."""
    from cadence.checkpoint import has_begun
    from cadence.journal import FILE as JOURNAL

    is_own = Path(there) == folder
    if has_begun(folder) or (is_own and (folder / JOURNAL).exists()):
        return str(folder)
    return None if is_own else there


def _state_to_go_on_from(settings: "Config", cfg: DictConfig) -> "State | None":
    """Return the state that ``resume=`` names; None = the run begins."""
    if settings.resume is None:
        return None
    from cadence.checkpoint import FOLDER, has_begun, latest

    if not has_begun(Path(settings.resume)):
        log.warning("resume=%s: no checkpoint was saved there yet; it begins", settings.resume)
        return None
    state = latest(Path(settings.resume) / FOLDER)
    check_changes(state, _kept_config(cfg))
    return state


def _take_numbers_along(there: Path, here: Path) -> None:
    """Copy the numbers of a run that goes on in another folder, as an interrupted trial does."""
    from cadence.journal import FILE as JOURNAL

    if not here.samefile(there) and (there / JOURNAL).exists():
        shutil.copyfile(there / JOURNAL, here / JOURNAL)


def _kept_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the flattened config as checkpoints keep it, without secrets."""
    flat = configs.flattened(cfg).items()
    return {key: redacted(value) if isinstance(value, str) else value for key, value in flat}


def _tracked(
    cfg: DictConfig, settings: "Config", run: Run, folder: Path, state: "State | None"
) -> AbstractContextManager["Tracker | None"]:
    if settings.track.name == "none":
        return nullcontext()

    from cadence.provenance import environment, git_tags
    from cadence.track import Tracker

    known_run = None
    if state is not None and folder.samefile(settings.resume or folder):
        known_run = state.mlflow_run_id
    choices = HydraConfig.get().runtime.choices
    name = f"step_size={settings.trainer.step_size} {choices['data']} {choices['model']}"
    share = run.total_samples // 100 if run.total_samples else len(run.data.train) // 10
    return Tracker(
        settings.track.uri,
        settings.track.experiment,
        name,
        params={key: value for key, value in configs.flattened(cfg).items() if key not in OF_NOW},
        tags={"cadence.run_folder": str(folder), **git_tags(ROOT)},
        texts={
            "config.yaml": OmegaConf.to_yaml(cfg, resolve=True),
            "environment.json": environment(),
        },
        every=settings.track.every or max(1, share),
        folder=folder,
        run_id=settings.track.run_id or known_run,
        resumed_at=state.clock.samples if state else 0 if settings.resume else None,
        parent=_parent(settings),
        offline=settings.track.offline,
    )


def _parent(settings: "Config") -> str | Path | None:
    """Return the MLflow run that groups the jobs of a plain multirun; None = it is no such job.

    Offline it is the multirun's folder, whose run is made on delivery.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN or settings.track.run_id is not None:
        return None
    from cadence.lineage import parent_of_folder

    folder = Path(hydra_config.sweep.dir).absolute()
    if settings.track.offline:
        return folder
    return parent_of_folder(settings.track.uri, settings.track.experiment, folder)


def _redact_hydra_files() -> None:
    """Take the passwords out of what Hydra itself has just written of the config."""
    hydra_config = HydraConfig.get()
    files: list[Path] = []
    if hydra_config.output_subdir is not None:
        written = Path(hydra_config.runtime.output_dir) / hydra_config.output_subdir
        files += written.glob("*.yaml")
    if hydra_config.mode == RunMode.MULTIRUN:
        files += Path(hydra_config.sweep.dir).glob("multirun.yaml")
    redact_files(files)


@contextmanager
def _summarised(
    settings: "Config", run: Run, folder: Path, tracker: "Tracker | None"
) -> Iterator[None]:
    """Leave a summary.json and MLflow's last numbers behind, however the run ends."""
    from cadence.summary import write_summary
    from cadence.track import status_after

    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        fitted = run.trainer.fitted
        summary = write_summary(
            folder,
            fitted,
            effective_batch=effective_batch(settings, run.data),
            seed=settings.seed,
            mlflow_run_id=tracker.run_id if tracker else None,
            status=status_after(error),
        )
        if tracker:
            tracker.finish(run.trainer.clock, fitted, [summary])


def _facts(settings: "Config", run: Run) -> dict[str, str]:
    choices = HydraConfig.get().runtime.choices
    data, trainer = run.data, run.trainer
    minibatches = len(run.train_loader)
    updates = -(-minibatches // trainer.step_size)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    held_out = 0 if data.validation is None else len(data.validation)
    items = "samples" if data.items_per_sample == 1 else "items"
    limits = {
        "epochs": settings.trainer.max_epochs,
        "samples": settings.trainer.max_samples,
        "seconds": settings.trainer.max_seconds,
    }
    ends = " or ".join(f"{limit:,} {unit}" for unit, limit in limits.items() if limit)
    return {
        "model": f"{choices['model']}, {parameters:,} parameters, {settings.device.precision} on "
        f"{trainer.device}",
        "data": f"{choices['data']}, {len(data.train):,} training and {held_out:,} validation "
        "samples",
        "window": f"step_size={trainer.step_size} mini-batches per update of "
        f"{settings.data['batch_size']} samples: effective batch "
        f"{effective_batch(settings, data):,} {items}",
        "epoch": f"{minibatches:,} mini-batches, {updates:,} updates",
        "run": ends + (f", {run.total_samples:,} samples in all" if run.total_samples else ""),
    }


def _where_to_look(settings: "Config", folder: Path, tracker: "Tracker | None") -> dict[str, str]:
    look = {"run folder": str(folder)}
    if tracker and settings.track.offline:
        look["MLflow run"] = f"to be delivered by python -m src.sync {folder}"
    elif tracker:
        look["MLflow run"] = f"{tracker.run_id} in experiment {settings.track.experiment}"
        ours = settings.track.uri == f"sqlite:///{ROOT}/mlruns/mlflow.db"
        uri = redacted(settings.track.uri)
        command = f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"
        look["compare runs"] = "make ui" if ours else command
    return look


def main() -> None:
    """Run the command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing its own
    with errors_in_one_line(), interruptible():
        arguments = with_resume(sys.argv[1:], ROOT / "mlruns" / "runs")
        sys.argv[1:] = with_secrets_in_environment(arguments)
        train()


if __name__ == "__main__":
    from src import train as hall  # a worker cannot import __main__: it would miss what is set here

    hall.main()
