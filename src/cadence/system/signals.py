"""SIGINT and SIGTERM while a run trains: the first lets the window end, a second stops at once."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Puts off the first signal until whoever trains asks for it; a context manager.

    The handlers that were there before come back in the end. Outside the main thread, where Python
    has no signals, nothing is put off.

    Args:
        shared: Whether several processes are to stop together: then a signal counts on each of them
            from where they `agree` on it.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.came: int | None = None
        """The signal that came to this process; None = none did."""
        self._shared = shared
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        """Begin to put signals off."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._put_off) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it; a signal that nobody asked for interrupts here.

        Raises:
            KeyboardInterrupt: One came.
        """
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is None:
            self.check()

    @property
    def requested(self) -> bool:
        """Whether a signal came, and counts."""
        return self._number is not None

    def agree(self, number: int) -> None:
        """Let a signal count that came to this process or to another one."""
        if self._number is None:
            self._number = number
            log.warning(
                "%s: the window under way ends first; a second one stops at once",
                signal.Signals(number).name,
            )

    def check(self) -> None:
        """Interrupt if a signal came, and counts.

        Raises:
            KeyboardInterrupt: With the signal's number.
        """
        if self._number is not None:
            raise KeyboardInterrupt(self._number)

    def _put_off(self, number: int, frame: FrameType | None) -> None:
        if self.came is not None:
            raise KeyboardInterrupt(number)
        self.came = number
        if not self._shared:
            self.agree(number)
