"""A process that loads samples: however a run ends, its workers end with it."""

import multiprocessing
import os
import signal
import threading

from cadence.system.signals import SIGNALS

LOOK_SECONDS = 0.5
"""Between two looks at whether the parent is still there."""


def stay_with_parent(worker: int) -> None:
    """Ignore signals from other processes: they mean the run, not one of its workers.

    Ctrl-C, a batch system and ``kill -- -PGID`` reach all processes of a run. The parent lets the
    window end and saves its state, for which it needs its workers, and then ends them, by SIGTERM
    where they do not react. A worker whose parent was killed ends by itself.

    Args:
        worker: The worker's number, which torch gives each ``worker_init_fn``.
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
        received = signal.sigtimedwait(SIGNALS, LOOK_SECONDS)
        if received is not None and received.si_pid in parents:
            break
    os._exit(0)
