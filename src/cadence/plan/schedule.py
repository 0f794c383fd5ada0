"""Learning-rate schedules: samples -> a factor on the learning rate.

They count samples, not updates, so runs with a different step_size (mini-batches per update) pass
through the same learning rates at the same samples.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

Schedule: TypeAlias = Callable[[float], float]
"""Samples seen so far -> the factor on every learning rate."""


NAMES = ("constant", "cosine")
"""The schedules that `named_schedule` knows."""


def constant(warmup: int = 0) -> Schedule:
    """Return a schedule that stays at 1.

    Args:
        warmup: Samples over which the factor first rises in a straight line from 0 to 1.
    """
    return lambda samples: _rise(samples, warmup)


def cosine(horizon: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Return half a cosine from 1 down to ``final``, as in Loshchilov and Hutter (2017).

    Args:
        horizon: Samples at which it arrives, at least 1; it stays there after.
        warmup: Samples over which the factor first rises in a straight line from 0 to 1, at least
            0; a run that ends sooner never leaves it.
        final: The factor at the horizon, in [0, 1].

    Raises:
        ValueError: ``final`` is not in [0, 1].
    """
    if not 0 <= final <= 1:
        raise ValueError(
            f"schedule.final={final}: the factor at the end must be at least 0 and at most 1; try "
            "schedule.final=0"
        )

    def factor(samples: float) -> float:
        if samples < warmup:
            return _rise(samples, warmup)
        if samples >= horizon:
            return final
        progress = (samples - warmup) / (horizon - warmup)
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def named_schedule(name: str, horizon: int | None, warmup: int, final: float) -> Schedule:
    """Return the schedule of a name.

    Args:
        name: ``constant`` or ``cosine``.
        horizon: Samples in the whole run; None = unknown, which only a constant one allows.
        warmup: As in `constant` and `cosine`.
        final: As in `cosine`.

    Raises:
        ValueError: There is no such schedule, a cosine is asked for without a horizon, or its
            ``final`` is not in [0, 1].
    """
    if name not in NAMES:
        raise ValueError(f"schedule={name}: no such schedule; choose one of {', '.join(NAMES)}")
    if name == "constant":
        return constant(warmup)
    if horizon is None:
        raise ValueError(
            f"schedule={name}: it must know where the run ends; set trainer.max_epochs or "
            "trainer.max_samples, or choose schedule=constant"
        )
    return cosine(horizon, warmup, final)


def _rise(samples: float, warmup: int) -> float:
    return 1.0 if samples >= warmup else samples / warmup
