"""What differs between two configs, in words that a person reads."""

from typing import Any

import pytest

from cadence.config.changes import changes


def test_each_key_is_named_with_both_of_its_values() -> None:
    was, now = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}

    assert list(changes(was, now)) == [
        "b: was 2, now 5",
        "c: was 3, now absent",
        "d: was absent, now 4",
    ]


@pytest.mark.parametrize("off", [None, False])
def test_a_key_that_is_there_and_off_is_no_change(off: Any) -> None:
    assert list(changes({"sweep": off}, {})) == list(changes({}, {"sweep": off})) == []
    assert list(changes({"sweep": off}, {"sweep": 1})) == [f"sweep: was {off}, now 1"]
    assert list(changes({}, {"sweep": 0})) == ["sweep: was absent, now 0"]


def test_a_schedule_of_hundreds_of_steps_is_cut_in_what_is_told() -> None:
    (told,) = changes({"step": {n: n for n in range(400)}}, {"step": 2})

    assert told.startswith("step: was {0: 0, 1: 1, ")
    assert told.endswith(" ..., now 2")
    assert len(told) < 250
