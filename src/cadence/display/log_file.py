"""What happened in a run, for its log: one line an evaluation, and one for how it ended."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cadence.training.callback import Callback

if TYPE_CHECKING:
    from cadence.metrics.result import Result
    from cadence.training.trainer import Trainer

log = logging.getLogger(__name__)


class LogFile(Callback):
    """Logs each evaluation and the end of a run, at the level INFO.

    Args:
        facts: What the run is, by name, logged at once.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        for name, fact in facts.items():
            log.info("%s: %s", name, fact)

    def on_evaluation_end(self, trainer: "Trainer", metrics: Mapping[str, float]) -> None:
        """Log the means over the held-out items."""
        said = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        log.info("epoch %d, samples=%d: %s", trainer.clock.epoch, trainer.clock.samples, said)

    def on_fit_end(self, trainer: "Trainer", result: "Result") -> None:
        """Log what the run came to."""
        log.info(
            "ended after %d samples and %d updates (%d skipped), %.1f s: train/loss %.6g",
            result.samples,
            result.updates,
            result.updates_skipped,
            result.seconds,
            result.train_loss,
        )
