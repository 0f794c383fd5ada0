"""What a server refuses for good: sent in halves, shortened, and left out by name at the last."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
)

from cadence.tracking.mlflow.server import taken


class Server:
    """Takes few parts at once, short texts, and not every name."""

    def __init__(self, at_once: int, longest: int = 6000, refused: Sequence[str] = ()) -> None:
        self.at_once, self.longest, self.refused = at_once, longest, refused
        self.kept: list[Any] = []

    def take(self, parts: Sequence[Any]) -> None:
        too_long = any(len(str(part.value)) > self.longest for part in parts)
        if len(parts) > self.at_once or too_long or any(p.key in self.refused for p in parts):
            raise MlflowException("too much", INVALID_PARAMETER_VALUE)
        self.kept += parts


@given(st.integers(1, 120), st.integers(0, 250))
def test_every_point_is_taken_once_however_few_a_server_takes(at_once: int, count: int) -> None:
    server = Server(at_once)

    taken([Metric("loss", float(step), 0, step) for step in range(count)], server.take)

    assert [metric.step for metric in server.kept] == list(range(count))


def test_one_that_is_refused_blocks_no_other_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(100, refused=["c"])

    with caplog.at_level(logging.WARNING):
        taken([Metric(name, 1.0, 0, 0) for name in "abcd"], server.take)

    assert [metric.key for metric in server.kept] == ["a", "b", "d"]
    assert [record.getMessage() for record in caplog.records] == [
        "c: MLflow does not take it (too much); it stays in the run folder"
    ]


def test_a_text_that_is_too_long_is_cut() -> None:
    server = Server(100, longest=500)

    taken([Param("short", "x" * 500), Param("long", "y" * 501)], server.take)

    assert [(param.key, len(param.value)) for param in server.kept] == [
        ("short", 500),
        ("long", 250),
    ]


def test_what_may_be_taken_later_is_not_left_out() -> None:
    def fails(parts: Sequence[Any]) -> None:
        raise MlflowException("the database is away", INTERNAL_ERROR)

    with pytest.raises(MlflowException, match="the database is away"):
        taken([Param("a", "1")], fails)
