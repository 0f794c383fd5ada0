"""From a command line to the composed config: Hydra, cadence's conf/ and what a config may call."""

from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cadence.config import project, trust
from cadence.config.checks import register
from cadence.system.secrets import redact_logs

# At import, because the workers of a sweep import the task's module and run no `main`.
register(project.root())
redact_logs()


def run_task(task: Callable[[DictConfig], Any]) -> None:
    """Compose the config that the command line says, and call a function with it.

    Args:
        task: The command's function; Hydra names the run's log by the function's module.

    Raises:
        ConfigError: What the user trusts cannot be read.
    """
    decorate = hydra.main(
        config_path=str(project.conf()),
        config_name="config",
        execution_whitelist=trust.patterns(),
    )
    decorate(task)()


def in_multirun() -> bool:
    """Return whether this run is one of several that one command starts."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def composed(arguments: Sequence[str]) -> DictConfig:
    """Return the config of a command line, without Hydra's own part of it."""
    with initialize_config_dir(str(project.conf())):
        return compose("config", list(arguments))
