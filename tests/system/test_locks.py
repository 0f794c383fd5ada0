"""A run that is going on is known to be, until its process ends, however it does."""

import subprocess
import sys
from pathlib import Path

import pytest

from cadence.system.locks import goes_on, going_on

HOLD = """
import sys
from pathlib import Path
from cadence.system.locks import going_on

with going_on(Path(sys.argv[1])):
    print("going on", flush=True)
    sys.stdin.read()
"""


def test_a_run_goes_on_until_its_process_is_killed(tmp_path: Path) -> None:
    assert not goes_on(tmp_path / "nowhere")
    assert not goes_on(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "going on\n"

        assert goes_on(tmp_path)
        with (
            pytest.raises(ValueError, match="its run is still going on; wait for it"),
            going_on(tmp_path),
        ):
            pass
        run.kill()

    assert not goes_on(tmp_path)


def test_a_run_that_ended_makes_room_for_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        with going_on(tmp_path):
            assert goes_on(tmp_path)
        assert not goes_on(tmp_path)
