"""A wait in a test has an end, whatever it waits for."""

import ast
from pathlib import Path

import pytest
from waiting import until

TESTS = Path(__file__).parent


def test_what_does_not_come_true_ends_in_an_error_that_names_it() -> None:
    with pytest.raises(AssertionError, match=r"no answer in 0\.02 s"):
        until(lambda: False, "no answer", seconds=0.02)


def test_what_cannot_come_true_any_more_is_not_waited_for() -> None:
    with pytest.raises(AssertionError, match="no answer: it ended before"):
        until(lambda: False, "no answer", alive=lambda: False)


def busy_waits(file: Path) -> list[str]:
    """Return the loops of a file that do nothing but wait, and look at no clock."""
    return [
        f"{file.relative_to(TESTS)}:{loop.lineno}"
        for loop in ast.walk(ast.parse(file.read_text()))
        if isinstance(loop, ast.While)
        and "monotonic" not in ast.unparse(loop)
        and all(only_waits(statement) for statement in loop.body)
    ]


def only_waits(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Assert) or "sleep(" in ast.unparse(statement)


def test_no_test_waits_in_a_loop_that_looks_at_no_clock() -> None:
    assert [wait for file in TESTS.rglob("*.py") for wait in busy_waits(file)] == []
