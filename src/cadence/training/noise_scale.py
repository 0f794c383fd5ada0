"""The gradient noise scale of a run, estimated from the windows that are trained on."""

import math
from collections.abc import Mapping
from typing import Any

from cadence.engine.noise_scale import NoiseScale
from cadence.metrics.result import Result, Window
from cadence.training.callback import Callback
from cadence.training.trainer import Trainer


class NoiseScaleEstimate(Callback):
    """Estimates the gradient noise scale, and logs the estimate with every evaluation.

    See `cadence.engine.noise_scale`. Nothing acts on the estimate.
    """

    def __init__(self) -> None:
        self._noise = NoiseScale()
        self._logged_at: int | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Have the gradients of some windows' micro-batches measured."""
        trainer.measure_parts()

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        """Take in a window whose update was applied."""
        if window.applied:
            self._noise.window(window.items, window.grad_norm, window.parts)

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Log the estimate and its interval as far as they are numbers: MLflow would draw 1e308."""
        self._logged_at = trainer.clock.samples
        for name, value in self.report().items():
            if math.isfinite(value):
                trainer.log(f"train/{name}", value)

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        """Log the estimate of a run that ends without an evaluation."""
        if self._logged_at != trainer.clock.samples:
            self.on_evaluation_end(trainer, {})

    def report(self) -> dict[str, float]:
        """Return the estimate in items and the ends of its interval.

        NaN means unknown; infinite means larger than the windows can tell, or without a bound.
        """
        value, low, high = self._noise.estimate()
        return {"noise_scale": value, "noise_scale_low": low, "noise_scale_high": high}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums over the last windows."""
        return self._noise.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._noise.restore(state)
