"""The variables of launchers and platforms: one decision, or one line that names the variable."""

import os
from typing import Any

import pytest
from conftest import CommandLine

from cadence.cli.processes import LAUNCHED, check_environment, is_launched, processes_wanted
from cadence.config.errors import ConfigError
from cadence.config.schema import DistributedConfig

ALL = (*LAUNCHED, "MASTER_PORT", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    return lambda said: [monkeypatch.setenv(name, value) for name, value in said.items()]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"RANK": "1"},
        {"RANK": "7", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        {"LOCAL_RANK": "3"},
    ],
    ids=str,
)
def test_one_process_is_one_process_whatever_else_is_said(
    environment: Any, said: dict[str, str]
) -> None:
    environment(said)

    check_environment(["--multirun"])

    assert not is_launched()


def test_what_torchrun_says_is_one_of_several_processes(environment: Any) -> None:
    environment(WHOLE)

    check_environment([])

    assert is_launched()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many: the processes of a run are 1 or more; unset it"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: the processes of a run are 1 or more; unset it"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE=-2: the processes of a run are 1 or more; unset it"),
        (
            {"WORLD_SIZE": "4"},
            "WORLD_SIZE=4: this would be one of 4 processes, and RANK is not set; start them by "
            "torchrun, or unset WORLD_SIZE",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "4"},
            "WORLD_SIZE=4: this would be one of 4 processes, and MASTER_ADDR is not set; start "
            "them by torchrun, or unset WORLD_SIZE",
        ),
        (
            {**WHOLE, "RANK": "2"},
            "RANK=2: the 2 processes of WORLD_SIZE=2 are 0 to 1; start them by torchrun, or unset "
            "both",
        ),
        (
            {**WHOLE, "RANK": "first"},
            "RANK=first: the 2 processes of WORLD_SIZE=2 are 0 to 1; start them by torchrun, or "
            "unset both",
        ),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused_by_name(
    environment: Any, said: dict[str, str], told: str
) -> None:
    environment(said)

    with pytest.raises(ConfigError) as refused:
        check_environment([])
    assert str(refused.value) == told


def test_torchruns_single_process_trains_alone(environment: Any) -> None:
    environment({**WHOLE, "RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"})
    chosen = DistributedConfig(name="ddp", processes=None, step_sizes=None, timeout=60.0)

    assert processes_wanted(chosen) == 1


def test_a_sweep_under_torchrun_is_refused_before_its_first_trial(command: CommandLine) -> None:
    ended = command(
        "--multirun",
        "sweep=step_size",
        "hydra.sweep.dir=sweep",
        environment={**os.environ, **WHOLE},
    )

    assert ended.returncode == 1
    assert ended.stderr == (
        "error: --multirun: torchrun starts the processes of one run; without it each trial of a "
        "sweep starts its own by distributed=ddp distributed.processes= (RANK, WORLD_SIZE and "
        "MASTER_ADDR are set here)\n"
    )
    assert ended.stdout == ""
