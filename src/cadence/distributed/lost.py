"""What is said when another process of the run is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

from cadence.system.secrets import in_one_line


class ProcessLostError(RuntimeError):
    """Another process of the run failed, was killed, or did not answer in time."""


@contextmanager
def lost_process() -> Iterator[None]:
    """Say what an error of a collective means: torch names sockets and streams."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "another process of this run failed, was killed, or did not answer within "
            f"distributed.timeout; its own error says why ({in_one_line(error)})"
        ) from error
