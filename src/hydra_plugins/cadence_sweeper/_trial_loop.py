"""The loop of a sweep: choose points, run their trials, keep the results, report.

A sweep goes on where an earlier one stopped, repeats no point without need, and links its trials to
MLflow. All that is decided between the trials is decided from the study alone.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cadence.checkpoint.folder import has_begun
from cadence.config.checks import checked, quoted
from cadence.config.errors import ConfigError, SweepError, explained
from cadence.display.terminal import open_console
from cadence.sweeps import study as studies
from cadence.sweeps.definition import SearchDefinition
from cadence.sweeps.locks import folder_locked, study_locked
from cadence.sweeps.next_points import next_points, remaining
from cadence.sweeps.points import points
from cadence.sweeps.printed import print_report
from cadence.sweeps.report import write_report
from cadence.sweeps.trials import GRID, OVERRIDES, SUMMARY
from cadence.system.atomic_write import write_atomically
from cadence.system.secrets import in_one_line, redacted, with_its_type
from hydra_plugins.cadence_sweeper._guarded_launcher import (
    GuardedLauncher,
    completed,
    error_of,
    failed,
)
from hydra_plugins.cadence_sweeper._search_definition import (
    BASIC,
    Composer,
    check_name,
    check_numbers,
    check_placed,
    check_sampler,
    check_searched,
    definition_of,
    searched_groups,
    space_of,
    warn_of_neighbours,
)
from hydra_plugins.cadence_sweeper._search_space import SearchSpace
from hydra_plugins.cadence_sweeper._trial_folder import deaths, has_run, is_going_on, summary

if TYPE_CHECKING:
    from cadence.tracking.mlflow.sweep_runs import SweepRuns

SAMPLERS = ("optuna.samplers.*",)
"""What a sampler's ``_target_`` may be."""

CHATTY = (
    "hydra._internal",
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


class TrialLoop:
    """See `hydra_plugins.cadence_sweeper.sweeper.CadenceSweeper`.

    Args:
        sampler: The config of the sampler.
        direction: What is wanted of each objective.
        storage: Where the study is kept: a URL, or a storage of Optuna.
        study_name: The study's name.
        n_trials: The trials that the sweep is to have, all sessions together.
        n_jobs: Trials that run at once.
        max_failure_rate: The share of the trials that may fail.
        params: The keys that the sweep's file searches or fixes.
        custom_search_space: The name of a function ``(config, trial)`` that suggests more values.
        unknown: Any other option, which is refused.
    """

    def __init__(
        self,
        *,
        sampler: Any,
        direction: Any,
        storage: Any,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float,
        params: Mapping[str, Any] | None = None,
        custom_search_space: str | None = None,
        **unknown: Any,
    ) -> None:
        self._sampler_config = sampler
        self._directions = _names(direction)
        self._given_storage = storage
        self._given_name = study_name
        self._total, self._jobs = n_trials, n_jobs
        self._failure_share = max_failure_rate
        self._params = params or {}
        self._custom_search_space = custom_search_space
        self._unknown = unknown
        self._console = open_console()
        self._trials: list[Trial] = []
        self._runs: SweepRuns | None = None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for chatty in CHATTY:
            logging.getLogger(chatty).setLevel(logging.ERROR)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the composed config, and make the launcher that it names."""
        launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self._launcher = GuardedLauncher(launcher, self._refusal, self._without_the_dead)
        self._loader = hydra_context.config_loader
        self._config = config
        self._folder = Path(config.hydra.sweep.dir).absolute()

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing to the total, and report.

        Args:
            arguments: The overrides of the command line, those that search a key among them.

        Raises:
            ConfigError: The study has another search definition, another process runs it, or too
                many trials failed.
        """
        self._check_options()
        space = space_of([*(f"{key}={value}" for key, value in self._params.items()), *arguments])
        groups = searched_groups(space, lambda name: bool(self._loader.get_group_options(name)))
        composer = Composer(space, self._composed, groups)
        shared = composer.shared()
        self._check(shared)
        check_searched(space)
        definition = definition_of(composer, shared, self._directions, is_grid=self._is_grid)
        with (
            folder_locked(self._folder),
            _named_where_it_fails(self._given_storage),
            study_locked(self._given_storage, self._name),
        ):
            self._storage = studies.open_storage(self._given_storage)
            self._study = studies.open_study(
                self._storage, self._name, definition, self._may_have_result
            )
            self._go_on(space, definition)

    def _go_on(self, space: SearchSpace, definition: SearchDefinition) -> None:
        status, patience = "FAILED", math.inf
        try:
            self._runs = self._open_runs()
            self._close_abandoned(patience)
            self._run(space, definition)
            status = "FINISHED"
        except KeyboardInterrupt:
            status, patience = "KILLED", GRACE_SECONDS
            self._console.print("interrupted; the same command goes on from here")
            raise
        finally:
            self._close_abandoned(patience)
            self._report(status)

    def _check_options(self) -> None:
        """Refuse an option that there is not, and a sweep without a name."""
        for name in self._unknown:
            there = "direction, storage, study_name, n_trials, n_jobs, max_failure_rate, params"
            raise ConfigError(f"hydra.sweeper.{name}: there is no such option; there are {there}")
        if self._given_name is None:
            raise ConfigError("hydra.sweeper.study_name=null: a sweep needs a name to go on by")
        self._name = self._given_name

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
        return self._loader.load_sweep_config(self._config, overrides)

    def _run(self, space: SearchSpace, definition: SearchDefinition) -> None:
        repeats = self._config.sweep.repeats if self._config.sweep else 1
        if self._is_grid:
            self._study.set_user_attr(GRID, len(points(definition.space) or ()) * repeats)
        while missing := self._missing(definition, repeats):
            wanted = studies.batch_size(self._study, min(self._jobs, missing))
            self._enqueue(wanted - len(studies.waiting(self._study)), definition, repeats)
            self._run_batch(wanted, space, definition)
        if remaining(self._study, definition.space, repeats) == 0:
            self._console.print("every point of the search space is done")

    def _enqueue(self, count: int, definition: SearchDefinition, repeats: int) -> None:
        if count < 1:
            return
        new = next_points(
            self._study, definition.space, self._sampler(), count=count, repeats=repeats
        )
        for point, replicate in new:
            self._study.enqueue_trial(point, user_attrs={"replicate": replicate})

    def _run_batch(self, count: int, space: SearchSpace, definition: SearchDefinition) -> None:
        """Run the first enqueued points at once, and keep their results."""
        self._trials = [self._study.ask(dict(definition.space)) for _ in range(count)]
        overrides = [self._overrides(trial, space) for trial in self._trials]
        returns = self._launcher.launch(overrides, initial_job_idx=self._trials[0].number)
        for trial, returned in zip(self._trials, returns, strict=True):
            self._keep(trial, returned)

    def _overrides(self, trial: Trial, space: SearchSpace) -> list[str]:
        """Return a trial's overrides: its point, its folder, its MLflow run and its seed."""
        if space.fixed:
            trial.set_user_attr(OVERRIDES, space.fixed)
        if self._custom_search_space is not None:
            target = {"_target_": self._custom_search_space, "_partial_": True}
            instantiate(target)(self._config, trial)
        return [*space.overrides(trial.params), *self._links(trial)]

    def _missing(self, definition: SearchDefinition, repeats: int) -> int:
        """Return how many trials there are to run.

        Raises:
            ConfigError: Too many failed, or none is missing and all have failed.
        """
        finished = len(studies.finished(self._study))
        remains = remaining(self._study, definition.space, repeats)
        missing = max(0, self._total - finished)
        missing = missing if remains is None else min(missing, remains)
        total = finished + missing
        reasons = studies.too_many_failed(self._study, self._failure_share, total)
        remedy = "raise it, or correct"
        if not missing and not reasons and not self._study.best_trials:
            reasons = studies.too_many_failed(self._study, 0.0, total)
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

    def _links(self, trial: Trial) -> list[str]:
        trial.set_user_attr("folder", str(self._folder / "trials" / str(trial.number)))
        links = []
        if replicate := trial.user_attrs.get("replicate", 0):
            links.append(f"seed={self._config.seed + replicate}")
        earlier = (Path(folder) for folder in trial.user_attrs.get("earlier_folders", ()))
        own = Path(trial.user_attrs["folder"])
        is_basic = self._config.hydra.runtime.choices["hydra/launcher"] == BASIC
        if begun := next(filter(has_begun, earlier), None):
            links.append(f"resume={quoted(begun)}")  # it goes on where the sweep before it died
        elif not is_basic and not has_begun(own):
            links.append(f"resume={quoted(own)}")  # and where its engine begins it a second time
        if self._runs is not None:
            run_id = self._runs.child(trial.number)
            trial.set_user_attr("mlflow_run_id", run_id)
            links.append(f"track.run_id={run_id}")
        return links

    def _refusal(self, overrides: Sequence[str]) -> ConfigError | None:
        """Return why a trial's config cannot be composed; None where it can.

        Launchers compose it outside of the job, where an error would end the sweep and not the
        trial.
        """
        try:
            self._composed(list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            return ConfigError(explained(error))
        return None

    def _keep(self, trial: Trial, returned: JobReturn) -> None:
        """Keep a run's summary, and its result or the reason why it failed, with its trial."""
        trial.set_user_attr(SUMMARY, summary(trial))
        if returned.status == JobStatus.COMPLETED and all(
            map(math.isfinite, returned.return_value)
        ):
            loss, throughput = returned.return_value
            self._say(trial, f"val loss {loss:.4f}, {throughput:,.0f} samples/s")
            self._study.tell(trial, [loss, throughput])
            return
        reason = self._reason(returned)
        trial.set_user_attr("reason", reason)
        self._say_failure(trial, reason)
        self._study.tell(trial, state=TrialState.FAIL)
        if returned.status == JobStatus.FAILED and isinstance(error_of(returned), SweepError):
            raise error_of(returned)

    @staticmethod
    def _reason(returned: JobReturn) -> str:
        if returned.status == JobStatus.COMPLETED:
            return f"val_loss and samples_per_second are {returned.return_value}, not finite"
        return with_its_type(error_of(returned))

    def _say_failure(self, trial: FrozenTrial | Trial, reason: str) -> None:
        self._say(trial, f"failed: {reason}")
        run_id = trial.user_attrs.get("mlflow_run_id")
        if self._runs is not None and run_id is not None:
            self._runs.end_child(run_id, "FAILED", reason)

    def _say(self, trial: FrozenTrial | Trial, what: str) -> None:
        point = " ".join(f"{name}={value}" for name, value in trial.params.items())
        self._console.print(f"trial {trial.number}: {point}: {what}", markup=False)

    def _open_runs(self) -> "SweepRuns | None":
        track = self._config.track
        if track.name == "none" or track.offline:  # what is offline, src.sync links later
            return None
        from cadence.tracking.mlflow.sweep_runs import SweepRuns

        known = self._study.user_attrs.get("mlflow_parent_run_id")
        study_id = studies.study_id(self._study)
        runs = SweepRuns(track.uri, track.experiment, self._name, self._folder, study_id, known)
        self._study.set_user_attr("mlflow_parent_run_id", runs.parent)
        return runs

    def _without_the_dead(self, numbers: range, error: Exception) -> Sequence[JobReturn]:
        """Return the results of trials of which one's worker died; raise where none can be told."""
        trials = [trial for trial in self._trials if trial.number in numbers]
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
        return [failed(lost) if result is None else completed(result) for result in results]

    def _wait(self, patience: float) -> list[FrozenTrial]:
        """Wait for trials that run, though no launcher waits for them; return those that still do.

        Args:
            patience: Seconds to wait at most.
        """
        until, said = time.monotonic() + patience, False
        while alive := [t for t in studies.running(self._study) if is_going_on(t)]:
            if time.monotonic() > until:
                break
            if not said and patience == math.inf:
                names = ", ".join(str(trial.number) for trial in alive)
                self._console.print(f"waiting for what runs on without its sweep: trial {names}")
                said = True
            time.sleep(0.2)
        return alive

    def _close_abandoned(self, patience: float) -> None:
        alive = self._wait(patience)
        for trial in alive:
            self._console.print(f"trial {trial.number} runs on; the same command takes its result")
        spared = [trial.number for trial in alive]
        self._upload_the_rest()
        for trial in studies.running(self._study):
            studies.set_user_attrs(self._study, self._storage, trial, {SUMMARY: summary(trial)})
        died = partial(deaths, interrupted=patience < math.inf)
        closed = studies.close_abandoned(
            self._study, self._storage, self._result, died, spared=spared
        )
        for trial, reason in closed:
            if reason is None:
                self._console.print(
                    f"trial {trial.number} was cut off; its point is enqueued again"
                )
            else:
                self._say_failure(trial, reason)
        if self._runs is not None:
            self._runs.end_lost([trial.user_attrs.get("mlflow_run_id", "") for trial in alive])

    def _upload_the_rest(self) -> None:
        """Let MLflow have what it did not take in time of trials that finished."""
        if self._runs is None:
            return
        from cadence.tracking.run_file import RunFile
        from cadence.tracking.sync import delivered
        from cadence.tracking.upload import UploadError

        for trial in self._study.get_trials(deepcopy=False):
            if "folder" not in trial.user_attrs or is_going_on(trial):
                continue
            folder = Path(trial.user_attrs["folder"])
            try:
                file = RunFile.load(folder)
                if file is not None and file.run.status == "FINISHED":
                    delivered(folder, self._config.track.uri)
            except (UploadError, ValueError, OSError) as error:
                log.warning("trial %d: %s", trial.number, in_one_line(error))

    def _may_have_result(self, trial: FrozenTrial) -> bool:
        """Return whether a trial that a dead sweep left behind still runs, or ran to its end."""
        return is_going_on(trial) or self._result(trial) is not None

    def _result(self, trial: FrozenTrial | Trial) -> tuple[float, float] | None:
        """Return a trial's objectives where its run has ended in every place, else None."""
        ended = summary(trial)
        loss, throughput = ended.get("val_loss"), ended.get("samples_per_second")
        if ended.get("status") != "FINISHED" or loss is None or throughput is None:
            return None
        # Its last numbers may not have reached MLflow: then its point is enqueued again.
        run_id = trial.user_attrs.get("mlflow_run_id")
        if self._runs is not None and not (run_id and self._runs.has_finished(run_id)):
            return None
        return loss, throughput

    def _report(self, status: str) -> None:
        files: list[Path] = []
        try:
            self._write_best()
            report = write_report(self._study, self._folder)
            files = [file for file in report.files if file.suffix != ".csv"]
            print_report(report, self._console)
        finally:
            if self._runs is not None:
                self._runs.end(status, files)

    def _write_best(self) -> None:
        """Write the Pareto front as Hydra's own Optuna sweeper does."""
        best = [{"params": t.params, "values": t.values} for t in self._study.best_trials]
        text = OmegaConf.to_yaml(OmegaConf.create({"name": "optuna", "solutions": best}))
        write_atomically(self._folder / "optimization_results.yaml", text.encode())


def _names(direction: Any) -> list[str]:
    """Return directions as text, whether there are one or several, enums or text."""
    several = [direction] if isinstance(direction, str) else direction
    listed = several if isinstance(several, Sequence) else [several]
    return [str(getattr(each, "name", each)) for each in listed]


@contextmanager
def _named_where_it_fails(storage: Any) -> Iterator[None]:
    """Name the storage where a study cannot be kept.

    Raises:
        ConfigError: The database failed; what it had taken stays.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise ConfigError(
            f"hydra.sweeper.storage={redacted(str(storage))}: the study cannot be kept there "
            f"({in_one_line(error.__cause__ or error)}); correct it or free some space: the same "
            "command goes on"
        ) from error
