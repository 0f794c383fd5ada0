"""Between the sweep and its launcher: what does not compose, fails, or dies."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from itertools import groupby

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from cadence.config.errors import ConfigError


def failed(error: Exception) -> JobReturn:
    """Return what a launcher returns of a job that failed."""
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = error
    return returned


def completed(value: object) -> JobReturn:
    """Return what a launcher returns of a job that completed."""
    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.return_value = value
    return returned


def error_of(returned: JobReturn) -> Exception:
    """Return why a job failed; Hydra raises the error, and prints its overrides as well."""
    with redirect_stderr(StringIO()):
        try:
            value = returned.return_value
        except Exception as error:
            return error
    raise AssertionError(f"the job completed with {value}")


class GuardedLauncher(Launcher):
    """A launcher of jobs some of which may not compose, and whose workers may die.

    Args:
        launcher: The launcher.
        refusal: Returns why a job's overrides do not compose; None where they do.
        without_the_dead: Returns the results of the jobs of these numbers, of which one's worker
            died.
    """

    def __init__(
        self,
        launcher: Launcher,
        refusal: Callable[[Sequence[str]], ConfigError | None],
        without_the_dead: Callable[[range, Exception], Sequence[JobReturn]],
    ) -> None:
        self._launcher = launcher
        self._refusal = refusal
        self._without_the_dead = without_the_dead

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Do nothing: the launcher inside is set up."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Launch a batch, all at once between those that do not compose.

        A launcher numbers its jobs without a gap, and a trial's folder has its number.
        """
        returns: list[JobReturn] = []
        for refusal, together in self._parts(job_overrides):
            if refusal is None:
                returns += self._launched(list(together), initial_job_idx + len(returns))
            else:
                returns.append(failed(refusal))
        return returns

    def _parts(
        self, jobs: Sequence[Sequence[str]]
    ) -> Iterable[tuple[ConfigError | None, Iterable[Sequence[str]]]]:
        """Part a batch where a job is refused; a single job is only composed when it has failed.

        To compose takes a tenth of a second.
        """
        return groupby(jobs, self._refusal) if len(jobs) > 1 else [(None, jobs)]

    def _launched(self, jobs: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        try:
            return self._launcher.launch(jobs, initial_job_idx=first)
        except KeyboardInterrupt:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()  # its workers would go on until this process ends
            raise
        except Exception as error:
            if len(jobs) == 1 and (refusal := self._refusal(jobs[0])) is not None:
                return [failed(refusal)]
            return self._without_the_dead(range(first, first + len(jobs)), error)
