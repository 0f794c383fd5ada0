"""How far a run has come, and where it ends."""

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import as_a_user_calls_it

from cadence.plan.clock import Clock, Limits

NO_LIMIT = (
    "without a limit the run would never end; set epochs (trainer.max_epochs), max_samples or "
    "max_seconds"
)

EPOCHS = "epochs to train (trainer.max_epochs)"
REMEDY = "use None (null) for no such limit"


def test_windows_are_counted_by_hand() -> None:
    clock = Clock()
    clock = clock.after_window(batches=2, samples=8, items=40, applied=True)
    clock = clock.after_window(batches=2, samples=8, items=0, applied=False)  # without any item
    clock = clock.after_window(batches=1, samples=3, items=9, applied=False)  # refused
    clock = clock.after_epoch()

    assert clock == Clock(
        epoch=1,
        batches=5,
        samples=19,
        items=49,
        updates_attempted=3,
        updates=1,
        refused_in_a_row=1,
        samples_applied=8,
    )
    assert clock.updates_skipped == 2


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans())))
def test_attempted_updates_are_applied_or_skipped(windows: list[tuple[int, int, bool]]) -> None:
    clock = Clock()
    for samples, items, applied in windows:
        clock = clock.after_window(1, samples, items, applied)

    applied_samples = [samples for samples, _, applied in windows if applied]
    assert clock.updates == len(applied_samples)
    assert clock.updates + clock.updates_skipped == clock.updates_attempted == len(windows)
    assert clock.samples_applied == sum(applied_samples)
    assert clock.samples == sum(samples for samples, _, _ in windows)


def test_a_clock_is_a_value() -> None:
    with pytest.raises(AttributeError):
        Clock().samples = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [(0, 9, False), (0, 10, True), (9, 11, True), (10, 19, False), (10, 20, True), (1, 35, True)],
)
def test_a_period_is_passed_where_a_multiple_of_it_is_reached(
    before: int, after: int, passed: bool
) -> None:
    assert Clock(samples=after).passed(10, since=Clock(samples=before)) == passed


def test_epochs_and_samples_are_counted_from_the_start_of_the_call() -> None:
    limits = Limits(Clock(epoch=2, samples=100), epochs=3, samples=50, seconds=None)

    assert limits.samples_left(Clock(epoch=2, samples=120)) == 30
    assert not limits.is_complete(Clock(epoch=4, samples=149))
    assert limits.is_complete(Clock(epoch=5, samples=149))
    assert limits.is_complete(Clock(epoch=4, samples=150))
    assert not limits.time_is_up()


def test_time_is_counted_from_the_start_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("cadence.plan.clock.perf_counter", lambda: now)
    limits = Limits(Clock(), epochs=None, samples=None, seconds=60.0)

    now = 1059.9
    assert not limits.time_is_up()
    now = 1060.0
    assert limits.time_is_up()
    assert not limits.is_complete(Clock(samples=10**9))
    assert limits.samples_left(Clock()) is None


@pytest.mark.parametrize(
    ("epochs", "samples", "seconds", "message"),
    [
        (None, None, None, NO_LIMIT),
        (0, None, None, f"epochs=0: {EPOCHS} must be at least 1; {REMEDY}"),
        (True, None, None, f"epochs=True: {EPOCHS} must be a whole number; {REMEDY}"),
        (1.5, None, None, f"epochs=1.5: {EPOCHS} must be a whole number; {REMEDY}"),
        (None, -1, None, f"max_samples=-1: samples to train on must be at least 1; {REMEDY}"),
        (None, 1.5, None, f"max_samples=1.5: samples to train on must be a whole number; {REMEDY}"),
        (None, None, 0.0, f"max_seconds=0.0: seconds to train must be above 0; {REMEDY}"),
        (None, None, math.nan, f"max_seconds=nan: seconds to train must be above 0; {REMEDY}"),
        (None, None, "3", f"max_seconds='3': seconds to train must be a number; {REMEDY}"),
        (None, None, True, f"max_seconds=True: seconds to train must be a number; {REMEDY}"),
    ],
)
def test_an_impossible_limit_is_refused_by_the_name_it_was_given_by(
    epochs: Any, samples: Any, seconds: Any, message: str
) -> None:
    with (
        as_a_user_calls_it(),
        pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"),
    ):
        Limits(Clock(), epochs, samples, seconds)


def test_numpys_numbers_are_limits_as_pythons_are() -> None:
    epochs, samples, seconds = np.int64(3), np.int32(50), np.float32(60)
    with as_a_user_calls_it():
        limits = Limits(Clock(), epochs, samples, seconds)  # type: ignore[arg-type]

    assert limits.samples_left(Clock(samples=20)) == 30
    assert limits.is_complete(Clock(epoch=3))
    assert not limits.time_is_up()
