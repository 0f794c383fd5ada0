"""The machine's state has MLflow's names, without MLflow, and GPUs where there are some."""

import sys
from types import SimpleNamespace

import pytest
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from cadence.tracking.machine import Machine


def test_the_names_are_those_of_mlflows_system_metrics() -> None:
    """Tried with MLflow 3.17.2."""
    names = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        names |= {f"system/{name}" for name in monitor.aggregate_metrics()}

    state = Machine().state()

    assert {name for name in state if "/gpu_" not in name} == names
    assert all(value >= 0 for value in state.values())


class NVMLError(Exception):
    pass


def refuse(handle: int) -> None:
    raise NVMLError


def test_what_a_gpu_measures_is_kept_and_what_it_does_not_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=2e9, total=8e9),
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=50),
        nvmlDeviceGetPowerUsage=refuse,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)

    state = Machine().state()

    assert {name: state[name] for name in state if "/gpu_" in name} == {
        "system/gpu_0_memory_usage_percentage": 25,
        "system/gpu_0_memory_usage_megabytes": 2000,
        "system/gpu_0_utilization_percentage": 50,
    }
