"""What a run uses of its machine, under the names of MLflow's system metrics."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import psutil

MEGABYTE = 1e6


class Machine:
    """Measures the machine: processors, memory, disk, network since the run began, and GPUs.

    GPUs are measured where nvidia-ml-py is installed and finds some.
    """

    def __init__(self) -> None:
        self._sent_before, self._received_before = _network()
        self._gpus = _Gpus.found()
        psutil.cpu_percent()  # the first percentage of a processor's time has no beginning

    def state(self) -> Mapping[str, float]:
        """Return what is measured now, or since the last call, by MLflow's names."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.sep)
        sent, received = _network()
        measured = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round(memory.used / MEGABYTE, 1),
            "system_memory_usage_percentage": round(memory.used / memory.total * 100, 1),
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": round(disk.used / MEGABYTE, 1),
            "disk_available_megabytes": round(disk.free / MEGABYTE, 1),
            "network_receive_megabytes": received - self._received_before,
            "network_transmit_megabytes": sent - self._sent_before,
        }
        if self._gpus is not None:
            measured |= self._gpus.state()
        return {f"system/{name}": value for name, value in measured.items()}


def _network() -> tuple[float, float]:
    """Return the megabytes that the machine has sent and received; 0 where it has no network."""
    counters = psutil.net_io_counters()
    if counters is None:
        return 0.0, 0.0
    return counters.bytes_sent / MEGABYTE, counters.bytes_recv / MEGABYTE


class _Gpus:
    """The GPUs that NVIDIA's management library knows."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles = [
            library.nvmlDeviceGetHandleByIndex(index)
            for index in range(library.nvmlDeviceGetCount())
        ]

    @classmethod
    def found(cls) -> "_Gpus | None":
        """Return this machine's GPUs; None = there is no library for them, or it finds none."""
        try:
            library = import_module("pynvml")
        except ImportError:
            return None
        try:
            library.nvmlInit()
            return cls(library)
        except library.NVMLError:
            return None

    def state(self) -> dict[str, float]:
        """Return memory, utilization and power of each GPU, as far as it measures them."""
        state: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            for measured in (self._memory, self._utilization, self._power):
                with suppress(self._library.NVMLError):  # a GPU that does not measure this
                    state |= {f"gpu_{index}_{name}": value for name, value in measured(handle)}
        return state

    def _memory(self, handle: Any) -> Iterator[tuple[str, float]]:
        memory = self._library.nvmlDeviceGetMemoryInfo(handle)
        yield "memory_usage_percentage", round(memory.used / memory.total * 100, 1)
        yield "memory_usage_megabytes", round(memory.used / MEGABYTE, 1)

    def _utilization(self, handle: Any) -> Iterator[tuple[str, float]]:
        yield "utilization_percentage", self._library.nvmlDeviceGetUtilizationRates(handle).gpu

    def _power(self, handle: Any) -> Iterator[tuple[str, float]]:
        used = self._library.nvmlDeviceGetPowerUsage(handle)
        limit = self._library.nvmlDeviceGetEnforcedPowerLimit(handle)
        yield "power_usage_watts", round(used / 1000, 1)
        yield "power_usage_percentage", round(used / limit * 100, 1)
