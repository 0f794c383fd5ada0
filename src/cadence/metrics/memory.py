"""The most memory that a run takes."""

import contextlib
import sys
from pathlib import Path

import torch

from cadence.system.malloc import give_back

MIB = 2**20

STATUS = Path("/proc/self/status")
"""What Linux tells of this process."""


class PeakMemory:
    """The most memory a run takes, counted from where it begins.

    On CUDA it is what torch's allocator held; elsewhere the process's resident set above the start,
    in which what is built before (the model, the data in memory) does not count. Memory that an
    earlier run in the same process left to the allocator is given back first.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: int | None = None

    def begin(self) -> None:
        """Count from here, unless the run has begun before."""
        if self._start is not None:
            return
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        else:
            give_back()
            with contextlib.suppress(OSError):  # not Linux, or forbidden: the peak stays older
                Path("/proc/self/clear_refs").write_text("5")
            self._start = _peak_resident_bytes()

    def mib(self) -> float:
        """Return the peak since the run began, in MiB; 0 before."""
        if self._start is None:
            return 0.0
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _peak_resident_bytes()
        return (peak - self._start) / MIB


def _peak_resident_bytes() -> int:
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):  # which some sandboxes' kernels do not tell
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":  # which has no resource module
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
