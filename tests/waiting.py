"""Waiting in tests, always with an end."""

import time
from collections.abc import Callable


def until(
    holds: Callable[[], object],
    otherwise: str = "it never came true",
    *,
    alive: Callable[[], object] = lambda: True,
    seconds: float = 480,
    every: float = 0.01,
) -> None:
    """Wait until something holds.

    Args:
        holds: What is asked again and again.
        otherwise: What the error says where it does not come true.
        alive: Whether it can still come true, such as that a process lives.
        seconds: How long to wait; generous, because machines are busy.
        every: Seconds between two questions.

    Raises:
        AssertionError: It did not come true in time, or cannot any more.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        assert alive(), f"{otherwise}: it ended before"
        assert time.monotonic() < deadline, f"{otherwise} in {seconds:g} s"
        time.sleep(every)
