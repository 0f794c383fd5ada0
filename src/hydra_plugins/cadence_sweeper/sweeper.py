"""What Hydra looks at when it starts: a name and its options, and nothing heavy."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf


@dataclass
class CadenceSweeperConf(OptunaSweeperConf):
    """The official Optuna sweeper's options, with the values that every sweep of cadence shares.

    ``n_trials`` is the total, sessions together; a sweep stops when more than the share
    ``max_failure_rate`` of its trials have failed.
    """

    _target_: str = "hydra_plugins.cadence_sweeper.sweeper.CadenceSweeper"
    study_name: str | None = (
        "${hydra.runtime.choices.sweep}_${hydra.runtime.choices.data}_${hydra.runtime.choices.model}"
    )
    storage: Any | None = "sqlite:///${hydra.sweep.dir}/study.db"
    max_failure_rate: float = 0.5


class CadenceSweeper(Sweeper):
    """A sweep by Optuna that goes on where it stopped and links its trials to MLflow."""

    def __init__(self, **options: Any) -> None:
        from hydra_plugins.cadence_sweeper._trial_loop import TrialLoop

        self._loop = TrialLoop(**options)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the composed config."""
        self._loop.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing."""
        self._loop.sweep(arguments)


ConfigStore.instance().store(
    group="hydra/sweeper", name="cadence", node=CadenceSweeperConf, replace=True
)
