"""Kept memory: what it saves, and that a run's peak is measured as if there were none."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cadence.system import malloc as allocator

GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})

needs_glibc = pytest.mark.skipif(not GLIBC, reason="needs Linux with glibc, whose switch it is")

FAULTS = """
import resource, torch
from cadence.system.malloc import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_memory(True)
faults()
kept = faults()
print(given_back > 100, kept < given_back / 10)  # a page may be of 4 KiB or of 2 MiB
"""

GIVEN_BACK = """
import torch
from cadence.system.malloc import keep_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

keep_memory(True)
before = resident()
torch.ones(100, 2**18)
kept = resident()
keep_memory(False)
print(kept - before > 90, resident() - before < 10)
"""

PEAKS = """
import torch
from cadence.system.malloc import keep_memory
from cadence.metrics.memory import PeakMemory

keep_memory(True)
for _ in range(3):
    peak = PeakMemory(torch.device("cpu"))
    peak.begin()
    block = torch.ones(100, 2**18)
    del block
    print(round(peak.mib() / 100, 1))
"""


def printed(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@needs_glibc
def test_kept_memory_is_not_faulted_in_again() -> None:
    assert printed(FAULTS) == "True True\n"


@needs_glibc
def test_what_was_kept_is_given_back_when_that_is_turned_off() -> None:
    assert printed(GIVEN_BACK) == "True True\n"


@needs_glibc
def test_each_run_of_a_process_measures_its_own_peak_although_memory_is_kept() -> None:
    assert printed(PEAKS) == "1.0\n1.0\n1.0\n"


def test_a_c_library_that_takes_no_block_above_its_own_keeps_up_to_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        """As glibc's before 2.35, whose blocks end at half of HEAP_MAX_SIZE."""
        if option == allocator.M_MMAP_THRESHOLD and value > allocator.GLIBC_BLOCK:
            return 0
        told[option] = value
        return 1

    monkeypatch.setattr(allocator, "_glibc", lambda: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(allocator._Process, "keeps", False)

    assert allocator.keep_memory(True)

    assert told == {
        allocator.M_MMAP_THRESHOLD: allocator.GLIBC_BLOCK,
        allocator.M_TRIM_THRESHOLD: allocator.LARGEST_REST,
    }


def test_a_c_library_that_takes_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def mallopt(option: int, value: int) -> int:
        told.append(option)
        return 0

    monkeypatch.setattr(allocator, "_glibc", lambda: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(allocator._Process, "keeps", False)

    assert not allocator.keep_memory(True)

    assert {*told} == {allocator.M_MMAP_THRESHOLD}
