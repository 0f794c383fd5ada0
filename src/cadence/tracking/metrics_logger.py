"""Which of a run's numbers are kept, and when: from a run to its metrics file.

The step axis is samples seen, so that curves of runs with different step_size (mini-batches per
update) lie over each other.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from cadence.engine.update import Outcome
from cadence.metrics.result import Result, Window
from cadence.plan.clock import Clock
from cadence.tracking.metrics_file import LoggedMetric, MetricsFile

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""How long a point may wait in memory before it is in the file."""

MACHINE_SECONDS = 10.0
"""Between two looks at the machine."""


class MetricsLogger:
    """Keeps a run's numbers in its journal. A thread of its own writes, so training never waits.

    Args:
        journal: Where they go.
        machine: Returns the machine's state, by name.
        every: Samples between kept points of ``train/*``, at least 1; the first and the last window
            of a run are always among them.
        resumed_at: The samples from where an earlier session goes on; None or 0 = the run begins.
    """

    def __init__(
        self,
        journal: MetricsFile,
        machine: Callable[[], Mapping[str, float]],
        *,
        every: int,
        resumed_at: int | None,
    ) -> None:
        self._journal = journal
        self._machine = machine
        self._every = every
        self._begins = not resumed_at
        self._seen = self._kept = Clock(samples=resumed_at or 0)
        self._outcome: Outcome | Window | None = None
        self._measured_at = 0
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="logbook", daemon=True)
        self._keeper.start()

    def window(self, clock: Clock, outcome: Outcome | Window) -> None:
        """Keep a window's numbers if a point is due."""
        first = self._begins and self._outcome is None
        self._seen, self._outcome = clock, outcome
        if first or clock.passed(self._every, since=self._kept):
            self._keep_window(clock, outcome)

    def evaluation(self, clock: Clock, result: Result) -> None:
        """Keep an evaluation's numbers, and what the run measures so far."""
        metrics = {"val/loss": result.val_loss}
        metrics |= {f"val/{name}": value for name, value in result.val_metrics.items()}
        self.log(clock, metrics)
        self.measured(clock, result)

    def measured(self, clock: Clock, result: Result) -> None:
        """Keep what the run measures of itself."""
        self._log_anew(
            clock,
            {
                "throughput/samples_per_second": result.samples_per_second,
                "throughput/samples_per_second_p10": result.samples_per_second_p10,
                "throughput/samples_per_second_p90": result.samples_per_second_p90,
                "memory/peak_mib": result.peak_memory_mib,
                "time/data_ms": result.time.data_ms,
                "time/compute_ms": result.time.compute_ms,
                "time/sync_ms": result.time.sync_ms,
                "time/update_ms": result.time.update_ms,
            },
        )

    def log(self, clock: Clock, metrics: Mapping[str, float]) -> None:
        """Keep some numbers at the clock's samples.

        After a resume, those at samples that the journal holds already are passed over.
        """
        self._journal.append(_points(clock, metrics, milliseconds()))

    def flush(self) -> None:
        """Write what waits in memory, as before a checkpoint that must not know more than the file.

        Raises:
            OSError: The file took it not; see `cadence.tracking.metrics_file.MetricsFile.flush`.
        """
        self._journal.flush()

    def close(self, *, goes_on: bool = False) -> None:
        """Keep the last window and the machine's state, and write all of it.

        Args:
            goes_on: Whether the run was only interrupted: then its last window so far is no more
                worth keeping than the others.

        Raises:
            OSError: The file took it not; see `cadence.tracking.metrics_file.MetricsFile.flush`.
        """
        self._closing.set()
        self._keeper.join()
        if not goes_on and self._outcome is not None and self._seen != self._kept:
            self._keep_window(self._seen, self._outcome)
        self._log_anew(self._seen, self._machine())
        self._journal.flush()

    def _keep_window(self, clock: Clock, outcome: Outcome | Window) -> None:
        self._kept = clock
        self.log(
            clock,
            {
                "train/loss": outcome.loss,
                "train/grad_norm": outcome.grad_norm,
                "train/lr": outcome.lr,
                "train/step_size": outcome.step_size,
                "train/updates": clock.updates,
            },
        )

    def _log_anew(self, clock: Clock, metrics: Mapping[str, float]) -> None:
        """Keep what is measured again at the same samples: at a run's end, and after a resume.

        Every value is kept, each at a millisecond of its own, and MLflow shows the newest.
        """
        self._measured_at = max(milliseconds(), self._measured_at + 1)
        self._journal.append(_points(clock, metrics, self._measured_at), again=True)

    def _keep(self) -> None:
        looked = time.monotonic()
        failing = False
        while not self._closing.wait(FLUSH_SECONDS):
            if time.monotonic() - looked >= MACHINE_SECONDS:
                looked = time.monotonic()
                self._log_anew(self._seen, self._machine())
            try:
                self._journal.flush()
            except OSError as error:
                if not failing:
                    log.warning("%s: the numbers wait in memory, training goes on", error)
                failing = True
            else:
                failing = False


def milliseconds() -> int:
    """Return the time: milliseconds since 1970."""
    return int(time.time() * 1000)


def _points(clock: Clock, metrics: Mapping[str, float], timestamp: int) -> list[LoggedMetric]:
    return [LoggedMetric(key, float(metrics[key]), clock.samples, timestamp) for key in metrics]
