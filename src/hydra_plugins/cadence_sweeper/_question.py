"""What a sweep asks: its space and what all trials share, and what no trial could run with."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution

from cadence.config.checks import flattened
from cadence.config.errors import ConfigError
from cadence.config.keys import marked
from cadence.config.schema import SESSION
from cadence.sweeps import study as sweeps
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

NOT_ASKED = marked(SESSION)
"""Keys that may differ between the sessions of one sweep."""

SUPPORTED = ("TPESampler", "RandomSampler", "GPSampler", "GridSampler")
"""Samplers that propose from the finished trials alone."""

SUBDIR = "trials/${hydra.job.num}"
"""Where a trial's run folder is, within the sweep's."""

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""Hydra's own launcher, which runs one trial after another in this process."""

ON_THIS_MACHINE = ("joblib", "submitit_local", "ray")
"""Launchers whose workers are on this machine; Ray's are, unless it is told of a cluster."""

log = logging.getLogger(__name__)


def space_and_shared(
    parameters: list[str], composed: Callable[[list[str]], DictConfig]
) -> tuple[dict[str, BaseDistribution], DictConfig, dict[str, Any]]:
    """Return what is searched, what all trials share, and what is given beneath what is.

    What a searched group holds differs, and what is given for a key in it fits some of its
    options only: the shared config is composed without.

    Args:
        parameters: The overrides of the sweep, those that name a range among them.
        composed: Returns a trial's config by its overrides.

    Raises:
        ConfigError: A range cannot be read.
    """
    try:
        space, fixed, deleted = create_params_from_overrides(parameters)
    except ValueError as error:
        raise ConfigError(
            f"hydra.sweeper.params: {error}; write such as choice(1,2,4) or "
            "int(tag(log, interval(1, 32)))"
        ) from error
    searched = {name: space[name] for name in space if name not in fixed}
    given = {name: f"{name}={fixed[name]}" for name in fixed}
    beneath = [given.pop(name) for name in fixed if name.startswith(_beneath(searched))]
    shared = composed([*given.values(), *deleted])
    OmegaConf.set_readonly(shared, False)
    OmegaConf.set_struct(shared, False)
    del shared["hydra"]
    return searched, shared, flattened(OmegaConf.from_dotlist(beneath))


def asked(
    searched: dict[str, BaseDistribution],
    shared: DictConfig,
    beneath: dict[str, Any],
    directions: list[str],
    *,
    is_grid: bool,
) -> sweeps.Question:
    """Return the question of a study.

    Args:
        searched: As `space_and_shared` returns it, and the two after it.
        shared: As there.
        beneath: As there.
        directions: What is wanted of each objective.
        is_grid: Whether every point of the space is to be run.

    Raises:
        ConfigError: There is nothing to search, no grid in it, or another objective.
    """
    if not searched:
        raise ConfigError(
            "hydra.sweeper.params: nothing to search in it; give a range, such as "
            "trainer.step_size=choice(1,2,4,8)"
        )
    if is_grid:
        try:
            sweeps.check_grid(searched)
        except ValueError as error:
            raise ConfigError(f"hydra/sweeper/sampler=grid: {error}") from error
    if directions != ["minimize", "maximize"]:
        raise ConfigError(
            f"hydra.sweeper.direction={directions}: a run returns (val_loss, "
            "samples_per_second), so it must be [minimize, maximize]"
        )
    not_shared = (*NOT_ASKED, *_beneath(searched))
    fixed = {
        key: value
        for key, value in flattened(shared).items()
        if key not in searched and not key.startswith(not_shared)
    }
    return sweeps.Question(searched, directions, fixed | beneath)


def check_name(name: str) -> None:
    """Refuse a study whose name is no folder's."""
    if Path(name).name != name or name == "..":
        raise ConfigError(
            f"hydra.sweeper.study_name={name}: must be a plain name, because a folder is made of "
            "it; hydra.sweep.dir= moves the whole sweep"
        )


def check_numbers(n_trials: int, n_jobs: int, failure_share: float) -> None:
    """Refuse fewer trials than one, and a share that is none."""
    for name, value in (("n_trials", n_trials), ("n_jobs", n_jobs)):
        if value < 1:
            raise ConfigError(f"hydra.sweeper.{name}={value}: must be at least 1")
    if not 0 <= failure_share <= 1:
        raise ConfigError(
            f"hydra.sweeper.max_failure_rate={failure_share}: must be a share of n_trials, from 0 "
            "to 1"
        )


def check_sampler(target: str) -> None:
    """Refuse a sampler that knows more than the finished trials."""
    if not target.endswith(SUPPORTED):
        raise ConfigError(
            f"hydra/sweeper/sampler: {target} keeps a state that no sweep can go on from; choose "
            "tpe, random, gp or grid"
        )


def check_placed(sweep: DictConfig) -> None:
    """Refuse trials in other folders than those of their numbers."""
    placed: Any = OmegaConf.to_container(sweep, resolve=False)
    if (subdir := placed["subdir"]) != SUBDIR:
        raise ConfigError(
            f"hydra.sweep.subdir={subdir}: a sweep goes on by its trials' numbers, so it must be "
            f"{SUBDIR}; hydra.sweep.dir= moves the whole sweep"
        )


def warn_of_neighbours(n_jobs: int, hydra_config: DictConfig) -> None:
    """Say what it means that several trials are asked at once, where that is no gain."""
    if n_jobs == 1:
        return
    engine = hydra_config.runtime.choices["hydra/launcher"]
    if hydra_config.launcher._target_ == BASIC:
        log.warning(
            "hydra.sweeper.n_jobs=%d: this launcher runs one trial after another, so more are only "
            "asked before the ones beside them are known; use 1, or hydra/launcher=joblib",
            n_jobs,
        )
    elif engine in ON_THIS_MACHINE and not _has_devices_of_its_own(hydra_config.launcher):
        log.warning(
            "hydra.sweeper.n_jobs=%d with hydra/launcher=%s: trials that share a device spoil each "
            "other's throughput; use 1, or give each its own (docs/cluster.md)",
            n_jobs,
            engine,
        )


def _beneath(names: Iterable[str]) -> tuple[str, ...]:
    """Return how the keys inside of these groups begin."""
    return tuple(f"{name}." for name in names)


def _has_devices_of_its_own(launcher: DictConfig) -> bool:
    """Return whether Ray spreads the trials: over a cluster, or over this machine's GPUs."""
    ray = launcher.get("ray")
    return ray is not None and bool(ray.init.get("address") or ray.remote.get("num_gpus"))
