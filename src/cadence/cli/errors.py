"""How a command ends that did not go well: one line on stderr, and an exit code."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cadence.config import project
from cadence.config.errors import explained
from cadence.system.secrets import redacted

_WITH_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"

log = logging.getLogger(__name__)


@contextmanager
def logged_with_traceback() -> Iterator[None]:
    """Leave an error's traceback in the run folder's train.log."""
    try:
        yield
    except Exception:
        log.info("failed", exc_info=True)
        raise


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn an error into one line on stderr and exit code 1, an interrupt into 128 + the signal.

    ``HYDRA_FULL_ERROR=1`` shows the traceback. A log file on a full disk loses lines and says
    nothing: whatever else that disk does not take is an error of its own.
    """
    logging.raiseExceptions = _WITH_TRACEBACK
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except Exception as error:
        if _WITH_TRACEBACK:
            sys.exit(redacted(traceback.format_exc()))
        sys.exit(f"error: {redacted(project.as_typed(explained(error)))}")


@contextmanager
def command_line() -> Iterator[None]:
    """Run a command: an error is one line and exit code 1, SIGTERM is Ctrl-C.

    Hydra is told to hand errors on instead of printing its own.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with errors_in_one_line(), _interruptible():
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a run or a sweep as Ctrl-C does: marked KILLED, with nothing lost."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
