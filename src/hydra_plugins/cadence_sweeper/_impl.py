"""A thin layer on Hydra's Optuna sweeper: resume, no wasted duplicates, links, a report.

The official sweeper asks, launches and tells; it is called for one batch of trials at a time, and
what it lacks is decided between the batches, from the study alone.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.exc import SQLAlchemyError

from cadence.checkpoint.folder import has_begun
from cadence.config.checks import checked, quoted
from cadence.config.errors import ConfigError, explained
from cadence.display.terminal import open_console
from cadence.sweeps import study as sweeps
from cadence.sweeps.printed import print_report
from cadence.sweeps.report import write_report
from cadence.system.secrets import in_one_line, redacted, with_its_type
from hydra_plugins.cadence_sweeper._launcher import Watched, failed
from hydra_plugins.cadence_sweeper._question import (
    BASIC,
    asked,
    check_name,
    check_numbers,
    check_placed,
    check_sampler,
    space_and_shared,
    warn_of_neighbours,
)
from hydra_plugins.cadence_sweeper._trials import deaths, has_run, is_going_on, summary
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl

if TYPE_CHECKING:
    from cadence.tracking.mlflow.sweep_runs import SweepRuns

SAMPLERS = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
"""What a sampler's ``_target_`` may be."""

CHATTY = (
    "hydra._internal",
    "hydra_plugins.hydra_optuna_sweeper",
    "hydra_plugins.hydra_joblib_launcher",
    "hydra_plugins.hydra_submitit_launcher",
    "hydra_plugins.hydra_ray_launcher",
)
"""Loggers of what the sweep itself says in fewer words."""

GRACE_SECONDS = 10.0
"""How long an interrupted sweep waits for its workers to end with it."""

START_SECONDS = 60.0
"""How long the other trials of a batch, in which a worker died, may take to begin."""

log = logging.getLogger(__name__)


class CadenceSweeperImpl(OptunaSweeperImpl):
    """See `hydra_plugins.cadence_sweeper.sweeper.CadenceSweeper`."""

    def __init__(self, *, sampler: Any, n_trials: int, n_jobs: int, **options: Any) -> None:
        options["max_failure_rate"], self._failure_share = 1.0, options["max_failure_rate"]
        # Every trial's point is chosen before it is asked: the official sweeper's own sampler
        # has nothing left to choose.
        super().__init__(RandomSampler(seed=0), n_trials=n_trials, n_jobs=n_jobs, **options)
        self._sampler_config = sampler
        self._total, self._jobs = n_trials, n_jobs
        self._console = open_console()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for chatty in CHATTY:
            logging.getLogger(chatty).setLevel(logging.ERROR)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the composed config, and stand between the official sweeper and its launcher."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        self.launcher = Watched(self.launcher, self._refusal, self._keep, self._without_the_dead)
        self._config = config
        self._folder = Path(config.hydra.sweep.dir).absolute()
        if self.study_name is None:
            raise ConfigError("hydra.sweeper.study_name=null: a sweep needs a name to go on by")
        self._name = self.study_name
        self._lineage: SweepRuns | None = None

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing to the total, and report.

        Raises:
            ConfigError: The study asks another question, another process runs it, or too many
                trials failed.
        """
        self._process_searchspace_config()
        parameters = [*self._parse_sweeper_params_config(), *arguments]
        searched, shared, beneath = space_and_shared(parameters, self._composed)
        self._check(shared)
        question = asked(searched, shared, beneath, self._get_directions(), is_grid=self._is_grid)
        with sweeps.alone(self._folder), _kept_by(self.storage):
            self.storage = sweeps.open_storage(self.storage)
            with sweeps.alone_with_study(self.storage, self._name):
                self._study = sweeps.open_study(
                    self.storage, self._name, question, self._may_be_told
                )
                self._go_on(arguments, question)

    def _go_on(self, arguments: list[str], question: sweeps.Question) -> None:
        status, patience = "FAILED", math.inf
        try:
            self._lineage = self._open_lineage()
            self._close_abandoned(patience)
            self._run(arguments, question)
            status = "FINISHED"
        except KeyboardInterrupt:
            status, patience = "KILLED", GRACE_SECONDS
            self._console.print("interrupted; the same command goes on from here")
            raise
        finally:
            self._close_abandoned(patience)
            self._report(status)

    def _check(self, shared: DictConfig) -> None:
        """Refuse what no trial could run with, before anything is written."""
        checked(shared)
        check_name(self._name)
        check_numbers(self._total, self._jobs, self._failure_share)
        check_sampler(self._sampler_config._target_)
        check_placed(self._config.hydra.sweep)
        warn_of_neighbours(self._jobs, self._config.hydra)

    def _composed(self, overrides: list[str]) -> DictConfig:
        """Return a trial's config, composed as its launcher does."""
        assert self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self._config, overrides)

    def _run(self, arguments: list[str], question: sweeps.Question) -> None:
        repeats = self._config.sweep.repeats if self._config.sweep else 1
        while missing := self._missing(question, repeats):
            wanted = sweeps.batch_size(self._study, min(self._jobs, missing))
            ready = len(sweeps.waiting(self._study))
            if ready < wanted:
                new = sweeps.next_points(
                    self._study,
                    question.space,
                    self._sampler(),
                    count=wanted - ready,
                    repeats=repeats,
                )
                for point, replicate in new:
                    self._study.enqueue_trial(point, user_attrs={"replicate": replicate})
            self.n_trials = self.n_jobs = wanted
            super().sweep(arguments)
        if sweeps.left(self._study, question.space, repeats) == 0:
            self._console.print("every point of the search space is done")

    def _missing(self, question: sweeps.Question, repeats: int) -> int:
        """Return how many trials are left to run.

        Raises:
            ConfigError: Too many failed, or none is left and all have failed.
        """
        finished = len(sweeps.finished(self._study))
        left = sweeps.left(self._study, question.space, repeats)
        missing = max(0, self._total - finished)
        missing = missing if left is None else min(missing, left)
        total = finished + missing
        reasons = sweeps.too_many_failed(self._study, self._failure_share, total)
        remedy = "raise it, or correct"
        if not missing and not reasons and not self._study.best_trials:
            reasons = sweeps.too_many_failed(self._study, 0.0, total)
            remedy = "correct"
        if reasons:
            raise ConfigError(
                f"hydra.sweeper.max_failure_rate={self._failure_share}: {len(reasons)} of {total} "
                f"trials failed ({'; '.join(reasons)}); {remedy} the cause and give another "
                "hydra.sweeper.study_name="
            )
        return missing

    @property
    def _is_grid(self) -> bool:
        return "GridSampler" in self._sampler_config._target_

    def _sampler(self) -> Callable[[int], BaseSampler] | None:
        """Return ``seed -> sampler``; None for a grid, which goes through the space in order."""
        config = self._sampler_config
        if self._is_grid:
            return None
        base = config.get("seed") or 0

        def seeded(number: int) -> BaseSampler:
            own = OmegaConf.merge(config, {"seed": base + number}) if "seed" in config else config
            sampler: BaseSampler = instantiate(own, _execution_whitelist_=SAMPLERS)
            return sampler

        return seeded

    def _configure_trials(
        self,
        trials: list[Trial],
        search_space_distributions: dict[str, BaseDistribution],
        fixed_params: dict[str, Any],
        fixed_overrides: list[str],
    ) -> Sequence[Sequence[str]]:
        """Give each trial its folder's number, its MLflow run and its replicate's seed."""
        overrides = super()._configure_trials(
            trials, search_space_distributions, fixed_params, fixed_overrides
        )
        self._asked = list(trials)
        self.job_idx = trials[0].number
        return [(*own, *self._links(trial)) for trial, own in zip(trials, overrides, strict=True)]

    def _links(self, trial: Trial) -> list[str]:
        trial.set_user_attr("folder", str(self._folder / "trials" / str(trial.number)))
        links = []
        if replicate := trial.user_attrs.get("replicate", 0):
            links.append(f"seed={self._config.seed + replicate}")
        earlier = (Path(folder) for folder in trial.user_attrs.get("earlier_folders", ()))
        own = Path(trial.user_attrs["folder"])
        if begun := next(filter(has_begun, earlier), None):
            links.append(f"resume={quoted(begun)}")  # it goes on where the sweep before it died
        elif self._config.hydra.launcher._target_ != BASIC and not has_begun(own):
            links.append(f"resume={quoted(own)}")  # and where its engine begins it a second time
        if self._lineage is not None:
            run_id = self._lineage.child(trial.number)
            trial.set_user_attr("mlflow_run_id", run_id)
            links.append(f"track.run_id={run_id}")
        return links

    def _refusal(self, overrides: Sequence[str]) -> ConfigError | None:
        """Return why a trial's config cannot be composed; None = it can.

        Launchers compose it outside of the job, where an error would end the sweep and not the
        trial.
        """
        try:
            self._composed(list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            return ConfigError(explained(error))
        return None

    def _keep(self, returned: Sequence[JobReturn]) -> None:
        for trial, one in zip(self._asked, returned, strict=True):
            self._keep_one(trial, one)

    def _keep_one(self, trial: Trial, returned: JobReturn) -> None:
        """Keep a run's summary, or the reason why it failed, with its trial."""
        sweeps.keep(trial, summary(trial))
        if returned.status == JobStatus.COMPLETED and all(
            map(math.isfinite, returned.return_value)
        ):
            loss, throughput = returned.return_value
            self._say(trial, f"val loss {loss:.4f}, {throughput:,.0f} samples/s")
            return
        reason = self._reason(returned)
        trial.set_user_attr("reason", reason)
        self._tell_failure(trial, reason)
        # Told as NaN it becomes FAIL, without a traceback for each.
        returned.status, returned.return_value = JobStatus.COMPLETED, (math.nan, math.nan)

    @staticmethod
    def _reason(returned: JobReturn) -> str:
        if returned.status == JobStatus.COMPLETED:
            return f"val_loss and samples_per_second are {returned.return_value}, not finite"
        error = returned._return_value  # the property would print a traceback as well
        return with_its_type(error)

    def _tell_failure(self, trial: FrozenTrial | Trial, reason: str) -> None:
        self._say(trial, f"failed: {reason}")
        run_id = trial.user_attrs.get("mlflow_run_id")
        if self._lineage is not None and run_id is not None:
            self._lineage.end_child(run_id, "FAILED", reason)

    def _say(self, trial: FrozenTrial | Trial, what: str) -> None:
        point = " ".join(f"{name}={value}" for name, value in trial.params.items())
        self._console.print(f"trial {trial.number}: {point}: {what}", markup=False)

    def _open_lineage(self) -> "SweepRuns | None":
        track = self._config.track
        if track.name == "none" or track.offline:  # what is offline, src.sync links later
            return None
        from cadence.tracking.mlflow.sweep_runs import SweepRuns

        known = self._study.user_attrs.get("mlflow_parent_run_id")
        study_id = sweeps.study_id(self._study)
        lineage = SweepRuns(track.uri, track.experiment, self._name, self._folder, study_id, known)
        self._study.set_user_attr("mlflow_parent_run_id", lineage.parent)
        return lineage

    def _without_the_dead(self, numbers: range, error: Exception) -> Sequence[JobReturn]:
        """Return what trials came to of which one's worker died; raise where that is not clear."""
        trials = [trial for trial in self._asked if trial.number in numbers]
        until = time.monotonic() + START_SECONDS
        while any(map(has_run, trials)) and not all(map(has_run, trials)):
            if time.monotonic() > until:
                raise error
            time.sleep(0.2)
        self._wait(math.inf)
        results = [self._result(trial) for trial in trials]
        dead = [t for t, result in zip(trials, results, strict=True) if result is None]
        if len(dead) > 1 or not all(has_run(trial) for trial in dead):
            raise error
        lost = ChildProcessError(f"its worker died: {str(error).splitlines()[0]}")
        return [
            JobReturn(status=JobStatus.COMPLETED, _return_value=result) if result else failed(lost)
            for result in results
        ]

    def _wait(self, patience: float) -> list[FrozenTrial]:
        """Wait for trials that run, though no launcher waits for them; return those that still do.

        Args:
            patience: Seconds to wait at most.
        """
        until, told = time.monotonic() + patience, False
        while alive := [t for t in sweeps.running(self._study) if is_going_on(t)]:
            if time.monotonic() > until:
                break
            if not told and patience == math.inf:
                names = ", ".join(str(trial.number) for trial in alive)
                self._console.print(f"waiting for what runs on without its sweep: trial {names}")
                told = True
            time.sleep(0.2)
        return alive

    def _close_abandoned(self, patience: float) -> None:
        alive = self._wait(patience)
        for trial in alive:
            self._console.print(f"trial {trial.number} runs on; the same command takes its result")
        spared = [trial.number for trial in alive]
        self._deliver_the_rest()
        for trial in sweeps.running(self._study):
            sweeps.note(self._study, trial, summary(trial))
        died = partial(deaths, interrupted=patience < math.inf)
        for trial, reason in sweeps.close_abandoned(self._study, self._result, died, spared=spared):
            if reason is None:
                self._console.print(f"trial {trial.number} was cut off; its point is asked again")
            else:
                self._tell_failure(trial, reason)
        if self._lineage is not None:
            self._lineage.end_lost([trial.user_attrs.get("mlflow_run_id", "") for trial in alive])

    def _deliver_the_rest(self) -> None:
        """Let MLflow have what it did not take in time of trials that finished."""
        if self._lineage is None:
            return
        from cadence.tracking.run_file import RunFile
        from cadence.tracking.sync import delivered
        from cadence.tracking.upload import UploadError

        for trial in self._study.get_trials(deepcopy=False):
            if "folder" not in trial.user_attrs or is_going_on(trial):
                continue
            folder = Path(trial.user_attrs["folder"])
            try:
                manifest = RunFile.load(folder)
                if manifest is not None and manifest.status == "FINISHED":
                    delivered(folder, self._config.track.uri)
            except (UploadError, ValueError, OSError) as error:
                log.warning("trial %d: %s", trial.number, in_one_line(error))

    def _may_be_told(self, trial: FrozenTrial) -> bool:
        """Return whether a trial that a dead sweep left behind still runs, or ran to its end."""
        return is_going_on(trial) or self._result(trial) is not None

    def _result(self, trial: FrozenTrial | Trial) -> tuple[float, float] | None:
        """Return a trial's objectives if its run had ended in every place; None = it had not."""
        told = summary(trial)
        loss, throughput = told.get("val_loss"), told.get("samples_per_second")
        if told.get("status") != "FINISHED" or loss is None or throughput is None:
            return None
        # Its last numbers may not have reached MLflow: then it is not whole, and is asked again.
        run_id = trial.user_attrs.get("mlflow_run_id")
        if self._lineage is not None and not (run_id and self._lineage.has_finished(run_id)):
            return None
        return loss, throughput

    def _report(self, status: str) -> None:
        files: list[Path] = []
        try:
            report = write_report(self._study, self._folder)
            files = [file for file in report.files if file.suffix != ".csv"]
            print_report(report, self._console)
        finally:
            if self._lineage is not None:
                self._lineage.end(status, files)


@contextmanager
def _kept_by(storage: Any) -> Iterator[None]:
    """Name the storage where a study cannot be kept.

    Raises:
        ConfigError: Its database failed; what it had taken stays.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise ConfigError(
            f"hydra.sweeper.storage={redacted(str(storage))}: the study cannot be kept there "
            f"({in_one_line(error.__cause__ or error)}); correct it or free some space: the same "
            "command goes on"
        ) from error
