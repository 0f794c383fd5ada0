"""A run that is going on is known to be, until its process ends, however it does."""

import subprocess
import sys
from pathlib import Path

import pytest

from cadence.system.locks import is_running, run_lock

HOLD = """
import sys
from pathlib import Path
from cadence.system.locks import run_lock

with run_lock(Path(sys.argv[1])):
    print("going on", flush=True)
    sys.stdin.read()
"""


def test_a_run_goes_on_until_its_process_is_killed(tmp_path: Path) -> None:
    assert not is_running(tmp_path / "nowhere")
    assert not is_running(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "going on\n"

        assert is_running(tmp_path)
        with (
            pytest.raises(ValueError, match="its run is still going on; wait for it"),
            run_lock(tmp_path),
        ):
            pass
        run.kill()

    assert not is_running(tmp_path)


def test_a_run_that_ended_makes_room_for_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        with run_lock(tmp_path):
            assert is_running(tmp_path)
        assert not is_running(tmp_path)
