"""What a window, and in the end a run, came to."""

from dataclasses import dataclass
from typing import NamedTuple

from cadence.engine.noise_scale import Parts
from cadence.metrics.timing import WindowTime


class Window(NamedTuple):
    """What became of one window."""

    samples: int
    """Samples in the window, summed over processes."""
    items: float
    """Items in the window, summed over processes."""
    applied: bool
    """Whether the optimizer stepped."""
    loss: float
    """Mean loss over the window's items; NaN without any."""
    grad_norm: float
    """2-norm of the gradient over all parameters, before clipping; NaN without any item."""
    lr: float
    """Learning rate of the first parameter group that the update used, or would have used."""
    step_size: int
    """Mini-batches per update then, summed over processes."""
    parts: Parts | None
    """Gradients of the window's micro-batches; None means not measured."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to."""

    step_size: int
    """Mini-batches per update, as last set; of several processes, this one's (process 0's in
    summary.json)."""
    microbatch_size: int | None
    """Samples per forward and backward; None = one mini-batch."""
    updates: int
    """Updates applied."""
    updates_skipped: int
    """Updates refused or without any item."""
    samples: int
    """Samples trained on."""
    items: float
    """Items trained on."""
    minibatches: int
    """Mini-batches trained on, all processes together."""
    train_loss: float
    """Mean over the items of the applied updates of the last epoch begun; NaN without any."""
    val_loss: float
    """Mean over the validation items after the last update; NaN without validation data."""
    val_metrics: dict[str, float]
    """The objective's further validation means, such as ``accuracy``."""
    samples_per_second: float
    """Median over the windows; see `cadence.metrics.timing.Throughput`."""
    samples_per_second_p10: float
    samples_per_second_p90: float
    time: WindowTime
    """Where the time of a window goes."""
    peak_memory_mib: float
    """Most memory taken, counted from the start of the run; see
    `cadence.metrics.memory.PeakMemory`."""
    seconds: float
    """Wall time of the whole run, evaluations included."""
    device: str
    reported: dict[str, float]
    """What the callbacks report, by name, such as the ``noise_scale``."""
