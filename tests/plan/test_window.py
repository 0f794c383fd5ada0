"""The laws of windows, on integers."""

import inspect
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import CUDA, as_a_user_calls_it
from torch import nn
from torch.optim import SGD

from cadence import Trainer, windows
from cadence.objectives import Regression
from cadence.plan.window import StepSizeSchedule

ROOT = Path(__file__).resolve().parents[2]

streams = st.lists(st.integers(), max_size=40)
step_sizes = st.integers(min_value=1, max_value=50)

WHOLE = "mini-batches per update must be a whole number; try step_size=2"
REFUSED = [
    (0, ValueError, "step_size=0: mini-batches per update must be at least 1; try step_size=2"),
    (-1, ValueError, "step_size=-1: mini-batches per update must be at least 1; try step_size=2"),
    (1.5, TypeError, f"step_size=1.5: {WHOLE}"),
    (True, TypeError, f"step_size=True: {WHOLE}"),
    ("2", TypeError, f"step_size='2': {WHOLE}"),
    (None, TypeError, f"step_size=None: {WHOLE}"),
]


@given(streams, step_sizes)
def test_the_windows_joined_are_the_stream(stream: list[int], step_size: int) -> None:
    assert [item for window in windows(stream, step_size) for item in window] == stream


@given(streams, step_sizes)
def test_every_window_but_the_last_is_full_and_none_is_empty(
    stream: list[int], step_size: int
) -> None:
    *full, last = [len(window) for window in windows(stream, step_size)] or [step_size]

    assert all(length == step_size for length in full)
    assert 1 <= last <= step_size


@given(streams, step_sizes)
def test_at_most_one_window_of_the_stream_has_been_read_ahead(
    stream: list[int], step_size: int
) -> None:
    read = 0

    def counted() -> Iterator[int]:
        nonlocal read
        for item in stream:
            read += 1
            yield item

    out = 0
    gathered = windows(counted(), step_size)
    assert read == 0
    for window in gathered:
        out += len(window)
        assert read == out


def test_an_endless_stream_has_windows() -> None:
    ones = iter(int, 1)  # zero for ever
    assert next(windows(ones, 3)) == (0, 0, 0)


@pytest.mark.parametrize(("step_size", "error", "message"), REFUSED)
def test_an_impossible_step_size_is_refused_at_once(
    step_size: Any, error: type[Exception], message: str
) -> None:
    with as_a_user_calls_it(), pytest.raises(error, match=f"^{re.escape(message)}$"):
        windows([1, 2, 3], step_size)  # not iterated


def test_the_default_is_two_mini_batches() -> None:
    assert list(windows("abcde")) == [("a", "b"), ("c", "d"), ("e",)]
    for function in (windows, Trainer):
        assert inspect.signature(function).parameters["step_size"].default == 2


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_default_is_two_on_every_device(device: str) -> None:
    model = nn.Linear(1, 1)

    assert Trainer(model, SGD(model.parameters()), Regression(), device=device).step_size == 2


def test_no_other_line_of_code_gives_step_size_a_number() -> None:
    """So none can choose one by device; test_config.py has the same for the YAML."""
    code = {path: _numbers_given(path) for path in sorted((ROOT / "src").rglob("*.py"))}

    assert {path.name: found for path, found in code.items() if found} == {
        "window.py": [("DEFAULT_STEP_SIZE", "2")],
    }


def _numbers_given(path: Path) -> list[tuple[str, str]]:
    """Return each name in Python code that speaks of step_size and gets a number, and which."""
    kept = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.NEWLINE)
    with path.open() as source:
        tokens = tokenize.generate_tokens(source.readline)
        code = " ".join(token.string for token in tokens if token.type in kept)
    return re.findall(r"(?i)(\w*step_size\w*)(?: : \w+)? = [^\n(,]*?(\d+)", code)


# -- a schedule in samples

schedules = st.dictionaries(st.integers(1, 200), step_sizes, max_size=5).map(
    lambda later: {0: 7, **dict(sorted(later.items()))}
)


@given(schedules, st.integers(0, 300))
def test_the_number_that_holds_is_the_last_one_begun(schedule: dict[int, int], at: int) -> None:
    held = [step_size for samples, step_size in schedule.items() if samples <= at]

    found = StepSizeSchedule(schedule)

    assert found.at(at) == held[-1]
    assert (found.first, found.largest) == (7, max(schedule.values()))


@given(step_sizes, st.integers(0, 300))
def test_one_number_is_a_schedule_that_never_changes(step_size: int, at: int) -> None:
    found = StepSizeSchedule(step_size)

    assert (found.at(at), found.later) == (step_size, [])


FROM_0 = "a schedule must say what holds from 0 samples on, such as {0: 2, 50000: 8}"
REFUSED_SCHEDULES = [
    ({}, ValueError, f"step_size={{}}: {FROM_0}"),
    ({5: 2}, ValueError, f"step_size={{5: 2}}: {FROM_0}"),
    ({-1: 2, 0: 3}, ValueError, f"step_size={{-1: 2, 0: 3}}: {FROM_0}"),
    (
        {0: 2, 9: 4, 5: 8},
        ValueError,
        "step_size={0: 2, 9: 4, 5: 8}: 5 after 9; the samples must ascend, such as "
        "{0: 2, 50000: 8}",
    ),
    (
        {0: 2, 1.5: 4},
        TypeError,
        "step_size={0: 2, 1.5: 4}: 1.5 is no whole number of samples; give samples: mini-batches "
        "per update, such as {0: 2, 50000: 8}",
    ),
    (
        {False: 2},
        TypeError,
        "step_size={False: 2}: False is no whole number of samples; give samples: mini-batches per "
        "update, such as {0: 2, 50000: 8}",
    ),
    *(
        ({0: 2, 9: value}, error, f"step_size={{0: 2, 9: {value!r}}}: from 9 samples on, {said}")
        for value, error, said in REFUSED
    ),
]


@pytest.mark.parametrize(("schedule", "error", "message"), REFUSED_SCHEDULES)
def test_an_impossible_schedule_is_refused_by_value_and_remedy(
    schedule: Any, error: type[Exception], message: str
) -> None:
    with as_a_user_calls_it(), pytest.raises(error, match=f"^{re.escape(message)}$"):
        StepSizeSchedule(schedule)
