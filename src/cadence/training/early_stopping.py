"""A run that ends where it stopped getting better."""

from collections.abc import Mapping

from cadence.plan.numbers import whole_number
from cadence.training.callback import Callback
from cadence.training.trainer import Trainer


class EarlyStopping(Callback):
    """Ends a run after some evaluations in a row without a lower validation loss.

    Args:
        patience: Evaluations in a row, at least 1.

    Raises:
        TypeError: ``patience`` is not a whole number (a bool is not).
        ValueError: ``patience`` is below 1.
    """

    def __init__(self, patience: int) -> None:
        what = "evaluations without a lower validation loss"
        self._patience = whole_number("patience", patience, what, "give 1 or more")

    def on_fit_start(self, trainer: Trainer) -> None:
        """Stop a run that goes on although its patience was at an end."""
        self._check(trainer)

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Stop the run if its patience is at an end."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if trainer.evaluations_since_best >= self._patience:
            trainer.stop()
