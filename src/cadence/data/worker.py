"""A process that loads samples: whoever ends a run, it ends with the process that started it."""

import multiprocessing
import os
import signal
import threading

from cadence.system.signals import SIGNALS

LOOK_SECONDS = 0.5
"""Between two looks at whether the parent is still there."""


def stay_with_parent(worker: int) -> None:
    """Let signals from others pass; those who send them mean the run, not one of its workers.

    Ctrl-C, a batch system and ``kill -- -PGID`` reach all processes of a run. Its first one lets
    the window end and saves it, for which it needs its workers; it ends them itself, by SIGTERM
    where they do not hear. A parent that was killed is missed.

    Args:
        worker: Its number, which torch gives each ``worker_init_fn``.
    """
    if not hasattr(signal, "sigtimedwait"):  # macOS: there a worker that hangs is not ended
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent, started_by = os.getppid(), multiprocessing.parent_process()
    parents = {parent, started_by.pid if started_by else parent}  # a fork server is not the same
    while os.getppid() == parent:
        told = signal.sigtimedwait(SIGNALS, LOOK_SECONDS)
        if told is not None and told.si_pid in parents:
            break
    os._exit(0)
