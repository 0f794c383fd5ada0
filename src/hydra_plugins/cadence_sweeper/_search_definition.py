"""What a sweep searches and what all its trials share, and what no trial could run with."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution, CategoricalDistribution

from cadence.config.checks import flattened
from cadence.config.errors import ConfigError
from cadence.config.keys import marked
from cadence.config.schema import SESSION
from cadence.sweeps.definition import SearchDefinition
from cadence.sweeps.points import check_grid
from hydra_plugins.cadence_sweeper._search_space import SearchSpace, read_space, text_of

NOT_DEFINING = marked(SESSION)
"""Keys that may differ between the sessions of one sweep."""

SUPPORTED = ("TPESampler", "RandomSampler", "GPSampler", "GridSampler")
"""Samplers that propose from the finished trials alone."""

SUBDIR = "trials/${hydra.job.num}"
"""Where a trial's run folder is, within the sweep's."""

BASIC = "basic"
"""Hydra's own launcher, which runs one trial after another in this process."""

ON_THIS_MACHINE = ("joblib", "submitit_local", "ray")
"""Launchers whose workers are on this machine; Ray's are, unless it has a cluster's address."""

log = logging.getLogger(__name__)


def space_of(words: list[str]) -> SearchSpace:
    """Return what the overrides of a sweep search and fix.

    Raises:
        ConfigError: A range cannot be read.
    """
    try:
        return read_space(words)
    except ValueError as error:
        raise ConfigError(
            f"hydra.sweeper.params: {error}; write such as choice(1,2,4) or "
            "int(tag(log, interval(1, 32)))"
        ) from error


def check_searched(space: SearchSpace) -> None:
    """Refuse a sweep that searches nothing."""
    if not space.searched:
        raise ConfigError(
            "hydra.sweeper.params: nothing to search in it; give a range, such as "
            "trainer.step_size=choice(1,2,4,8)"
        )


@dataclass(frozen=True, slots=True)
class Composer:
    """Composes what the trials of a search space share.

    What a searched group holds differs, and what is given for a key in the group fits some of its
    options only, so such keys are left out.
    """

    space: SearchSpace
    compose: Callable[[list[str]], DictConfig]
    """Returns a trial's config by its overrides."""
    groups: Mapping[str, list[str]]
    """The searched config groups with their options."""

    def shared(self, chosen: Mapping[str, str] | None = None) -> DictConfig:
        """Return the config without what is searched.

        Args:
            chosen: The options of searched groups to compose with; None means the defaults.

        Raises:
            HydraException: An option does not compose.
        """
        fixed = [f"{name}={value}" for name, value in self._outside().items()]
        own = [f"{group}={option}" for group, option in (chosen or {}).items()]
        config = self.compose([*fixed, *own, *self.space.deletions])
        OmegaConf.set_readonly(config, False)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        missing = OmegaConf.missing_keys(config)
        for name in self.space.searched.keys() & missing:  # each trial gives its own
            OmegaConf.update(config, name, _example(self.space.searched[name]))
        return config

    def given_inside(self) -> dict[str, Any]:
        """Return the fixed keys inside of searched groups, with their values."""
        outside = self._outside()
        inside = {name: value for name, value in self.space.fixed.items() if name not in outside}
        return flattened(OmegaConf.from_dotlist([f"{name}={inside[name]}" for name in inside]))

    def options(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return, for each searched group and option, the config's keys with their values.

        The other groups have their first option. An option that does not compose has no keys: its
        trials fail with the reason.
        """
        first = {group: options[0] for group, options in self.groups.items()}
        return {
            group: {option: self._composed_keys({**first, group: option}) for option in options}
            for group, options in self.groups.items()
        }

    def _composed_keys(self, chosen: Mapping[str, str]) -> dict[str, Any]:
        try:
            return flattened(self.shared(chosen))
        except (HydraException, OmegaConfBaseException):
            return {}

    def _outside(self) -> dict[str, str]:
        inside = _inside(self.space.searched)
        fixed = self.space.fixed.items()
        return {name: value for name, value in fixed if not name.startswith(inside)}


def searched_groups(space: SearchSpace, is_group: Callable[[str], bool]) -> dict[str, list[str]]:
    """Return the searched config groups with their options."""
    return {
        name: list(dict.fromkeys(text_of(choice) for choice in distribution.choices))
        for name, distribution in space.searched.items()
        if isinstance(distribution, CategoricalDistribution) and is_group(name)
    }


def definition_of(
    composer: Composer, shared: DictConfig, directions: list[str], *, is_grid: bool
) -> SearchDefinition:
    """Return the search definition of a study.

    Args:
        composer: Of the sweep's search space.
        shared: The config that all trials share.
        directions: ``minimize`` or ``maximize`` for each objective.
        is_grid: Whether every point of the space is to be run.

    Raises:
        ConfigError: The space is no grid, or the objectives are others.
    """
    searched = composer.space.searched
    if is_grid:
        try:
            check_grid(searched)
        except ValueError as error:
            raise ConfigError(f"hydra/sweeper/sampler=grid: {error}") from error
    if directions != ["minimize", "maximize"]:
        raise ConfigError(
            f"hydra.sweeper.direction={directions}: a run returns (val_loss, "
            "samples_per_second), so it must be [minimize, maximize]"
        )
    given = composer.given_inside()

    def defining(config: Mapping[str, Any], apart: tuple[str, ...]) -> dict[str, Any]:
        names = [name for name in config if name not in searched and not name.startswith(apart)]
        return {name: config[name] for name in names}

    options = {
        group: {
            option: defining(config, NOT_DEFINING) for option, config in configs.items() if config
        }
        for group, configs in composer.options().items()
    }
    composed = [config for configs in options.values() for config in configs.values()]
    fixed = defining(flattened(shared), (*NOT_DEFINING, *_inside(searched)))
    if composed:
        fixed = {
            name: value
            for name, value in composed[0].items()
            if all(name in config and config[name] == value for config in composed)
            and not name.startswith(_inside(searched))
        }
    decided = {
        group: {
            option: {
                name: value
                for name, value in config.items()
                if name not in fixed
                and name not in given
                and _is_of(name, group, searched, configs)
            }
            for option, config in configs.items()
        }
        for group, configs in options.items()
    }
    return SearchDefinition(searched, directions, fixed | given, decided)


def _is_of(
    name: str, group: str, searched: Iterable[str], configs: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Return whether the options of a group decide a key: one inside of it, or one that differs."""
    others = [other for other in searched if other != group]
    if name.startswith(_inside(others)):
        return False
    values = [repr(config.get(name, ...)) for config in configs.values()]
    return name.startswith(f"{group}.") or len(set(values)) > 1


def _example(distribution: BaseDistribution) -> Any:
    """Return a value of a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    return getattr(distribution, "low", None)


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
    """Say what it means that several trials run at once, where that is no gain."""
    if n_jobs == 1:
        return
    engine = hydra_config.runtime.choices["hydra/launcher"]
    if engine == BASIC:
        log.warning(
            "hydra.sweeper.n_jobs=%d: this launcher runs one trial after another, so more are only "
            "chosen before the ones beside them are known; use 1, or hydra/launcher=joblib",
            n_jobs,
        )
    elif engine in ON_THIS_MACHINE and not _has_devices_of_its_own(hydra_config.launcher):
        log.warning(
            "hydra.sweeper.n_jobs=%d with hydra/launcher=%s: trials that share a device spoil each "
            "other's throughput; use 1, or give each its own (docs/cluster.md)",
            n_jobs,
            engine,
        )


def _inside(names: Iterable[str]) -> tuple[str, ...]:
    """Return how the keys inside of these groups begin."""
    return tuple(f"{name}." for name in names)


def _has_devices_of_its_own(launcher: DictConfig) -> bool:
    """Return whether Ray spreads the trials: over a cluster, or over this machine's GPUs."""
    ray = launcher.get("ray")
    return ray is not None and bool(ray.init.get("address") or ray.remote.get("num_gpus"))
