"""How the mini-batches of a window are shared out, held against every other way to do it."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from cadence.cli.plan import planned_windows, window_name
from cadence.cli.processes import check_device, of_the_training, processes_wanted
from cadence.cli.resume import WINDOW
from cadence.cli.run import ROOT
from cadence.config.checks import checked, register
from cadence.config.errors import ConfigError
from cadence.plan.shares import MEASURED, WARM_UP, Balance, Share, WindowPlan, balanced, even


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), st.integers(0, 6))
def test_no_other_sharing_is_done_sooner(seconds: list[float], more: int) -> None:
    window = len(seconds) + more

    shares = balanced(seconds, window)

    def done(candidate: tuple[int, ...]) -> float:
        return max(share * each for share, each in zip(candidate, seconds, strict=True))

    every = itertools.product(range(1, window + 1), repeat=len(seconds))
    assert sum(shares) == window
    assert min(shares) >= 1
    assert done(shares) == min(done(each) for each in every if sum(each) == window)


@given(st.integers(1, 20), st.integers(0, 30))
def test_even_shares_differ_by_one_mini_batch_at_most(processes: int, more: int) -> None:
    shares = even(processes + more, processes)

    assert sum(shares) == processes + more
    assert max(shares) - min(shares) <= 1
    assert list(shares) == sorted(shares, reverse=True)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple))
def test_the_parts_of_a_window_are_all_of_it_in_order(step_sizes: tuple[int, ...]) -> None:
    parts = [Share(step_sizes, rank) for rank in range(len(step_sizes))]
    window = list(range(parts[0].window))

    assert [each for part in parts for each in window[part.own]] == window


def test_a_process_that_takes_three_times_as_long_is_given_a_quarter_once_that_is_known() -> None:
    balance = Balance()
    slow_start, usual = (9.0, 1.0), (0.1, 0.3)
    told = [slow_start] * WARM_UP + [usual] * MEASURED

    chosen = [balance.take(seconds, 8) for seconds in told]

    assert chosen == [None] * (len(told) - 1) + [(6, 2)]
    assert balance.seconds == usual
    assert balance.take((1.0, 1.0), 8) is None  # it is chosen once


def test_a_window_in_which_a_process_had_nothing_tells_nothing() -> None:
    balance = Balance()

    for _ in range(100):
        assert balance.take((0.1, 0.0), 8) is None


@pytest.mark.parametrize(
    ("step_size", "message"),
    [
        ([2], "distributed.step_sizes=[2]: 1 for 2 processes; give one for each, or null for "
         "trainer.step_size"),
        ([2, 0], "step_size=0: mini-batches per update must be at least 1; try step_size=2"),
    ],
)  # fmt: skip
def test_impossible_shares_are_refused(step_size: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=r"^") as refused:
        WindowPlan(step_size, 2)
    assert str(refused.value) == message


def settings_of(*overrides: str) -> Any:
    register(ROOT)
    with initialize_config_dir(str(ROOT / "conf")):
        return checked(compose("config", ["distributed=ddp", *overrides]))


def windows_of(settings: Any, processes: int, began_with: dict[str, Any] | None) -> WindowPlan:
    schedule, shares = settings.trainer.step_size, settings.distributed.step_sizes
    return planned_windows(schedule, shares, processes, began_with)


BEGAN = {
    "trainer.step_size": 2,
    "distributed.processes": 2,
    "distributed.step_sizes": None,
    WINDOW: 4,
}
ALONE = {**BEGAN, "trainer.step_size": 4, "distributed.processes": 1}
AUTO = {**BEGAN, "distributed.step_sizes": "auto"}
UNEVEN = {**BEGAN, "distributed.step_sizes": [4, 2], WINDOW: 6}


@pytest.mark.parametrize(
    ("overrides", "processes", "began_with", "shares"),
    [
        ([], 3, None, (2, 2, 2)),
        (["distributed.step_sizes=[4,2]"], 2, None, (4, 2)),
        (["distributed.step_sizes=auto", "trainer.step_size=5"], 2, None, (5, 5)),
        ([], 2, BEGAN, (2, 2)),
        ([], 3, BEGAN, (2, 1, 1)),
        ([], 1, BEGAN, (4,)),
        ([], 3, {**BEGAN, "distributed.processes": 3}, (2, 1, 1)),
        (["trainer.step_size=3"], 3, BEGAN, (3, 3, 3)),
        (["distributed.step_sizes=[1,2]"], 2, BEGAN, (1, 2)),
        (["distributed.step_sizes=[4,2]"], 3, UNEVEN, (2, 2, 2)),
        (["distributed.step_sizes=[4,2]"], 2, UNEVEN, (4, 2)),
        (["distributed.step_sizes=[2,4]"], 2, UNEVEN, (2, 4)),
        (["distributed.step_sizes=auto", "trainer.step_size=4"], 2, ALONE, (2, 2)),
        (["distributed.step_sizes=auto", "trainer.step_size=3"], 2, ALONE, (3, 3)),
        ([], 4, AUTO, (1, 1, 1, 1)),
        (["distributed=none"], 1, AUTO, (4,)),
        (["distributed.step_sizes=[3,3]"], 2, AUTO, (3, 3)),
        ([], 2, UNEVEN, (3, 3)),
        (["distributed.step_sizes=auto"], 2, UNEVEN, (3, 3)),
        (["distributed=none"], 1, UNEVEN, (6,)),
        ([], 2, {"trainer.step_size": 2}, (1, 1)),  # saved before there were processes
    ],
)
def test_a_run_that_goes_on_keeps_its_window_unless_it_is_asked_for_another(
    overrides: list[str],
    processes: int,
    began_with: dict[str, Any] | None,
    shares: tuple[int, ...],
) -> None:
    assert windows_of(settings_of(*overrides), processes, began_with).at(0) == shares


@pytest.mark.parametrize(
    ("overrides", "processes", "began_with", "words"),
    [
        (["trainer.step_size=16", "distributed=none"], 1, None, "step_size=16"),
        (["trainer.step_size=16"], 2, None, "step_size=16"),
        (["distributed.step_sizes=[4,2]"], 2, None, "step_sizes=[4,2]"),
        (["distributed.step_sizes=[2,2]"], 2, None, "step_sizes=[2,2]"),
        (["distributed.step_sizes=[5]"], 1, None, "step_size=5"),
        (["distributed.step_sizes=auto", "trainer.step_size=3"], 2, None, "step_sizes=[3,3]"),
        (["distributed.step_sizes=auto"], 2, UNEVEN, "step_sizes=[3,3]"),
        ([], 3, BEGAN, "step_sizes=[2,1,1]"),
        (["distributed=none"], 1, BEGAN, "step_size=4"),
        (["trainer.step_size={0: 2, 64: 8}"], 2, None, "step_size={0: 2, 64: 8}"),
    ],
)
def test_a_run_is_named_by_the_step_sizes_that_train(
    overrides: list[str], processes: int, began_with: dict[str, Any] | None, words: str
) -> None:
    settings = settings_of(*overrides)
    schedule, shares = settings.trainer.step_size, settings.distributed.step_sizes
    step_sizes = windows_of(settings, processes, began_with).at(0)

    assert window_name(schedule, shares, step_sizes) == words


def test_more_processes_than_mini_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^") as refused:
        windows_of(settings_of(), 5, BEGAN)
    assert str(refused.value) == (
        "distributed.processes=5: an update has 4 mini-batches, so some processes would have none; "
        "use at most 4, or a larger trainer.step_size"
    )


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("overrides", "environment", "message"),
    [
        ([], {}, "distributed.processes=null: there is no CUDA device here to have one process "
         "each; give a number, such as distributed.processes=2"),
        (["distributed.processes=3"], TORCHRUN, "distributed.processes=3: torchrun started 2; "
         "leave it out, or start as many"),
        (["distributed=none"], TORCHRUN, "distributed=none: torchrun started 2 processes, and each "
         "would train alone; add distributed=ddp"),
        (["distributed.processes=2", "device.name=cuda:1"], {}, "device.name=cuda:1: each process "
         "needs a device of its own; try device=cuda, or device=cpu"),
    ],
)  # fmt: skip
def test_processes_that_are_not_possible_here_are_refused(
    overrides: list[str],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = settings_of(*overrides)

    with pytest.raises(ConfigError) as refused:
        check_device(settings.device.name, processes_wanted(settings.distributed))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("override", "is_the_same"),
    [
        ("model=cnn", False),
        ("data.batch_size=7", False),
        ("trainer.clip_norm=2", False),
        ("optimizer.lr=0.5", False),
        ("schedule=cosine", False),
        ("scaling=sqrt", False),
        ("device.precision=bf16", False),
        ("distributed.timeout=7", False),
        ("seed=5", False),
        ("track=none", True),
        ("device.threads=1", True),  # as each machine has them
    ],
)
def test_all_processes_have_the_same_of_what_decides_the_training(
    override: str, is_the_same: bool
) -> None:
    assert (of_the_training(settings_of()) == of_the_training(settings_of(override))) == is_the_same


@pytest.mark.parametrize("sizes", ["word", "3", "[]", "[0,2]", "[true,1]", "[1.5,1]"])
def test_step_sizes_are_a_list_auto_or_null(sizes: str) -> None:
    with pytest.raises(ConfigError, match="auto = by their speeds; null = trainer"):
        settings_of(f"distributed.step_sizes={sizes}")


def test_every_option_of_the_group_is_complete() -> None:
    assert {file.stem for file in Path(ROOT / "conf/distributed").iterdir()} == {"none", "ddp"}
