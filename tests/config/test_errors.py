"""Errors of the user's own code: one line that names the file and the line, in workers as well."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cadence.config.errors import explained


class Raises(Dataset[Any]):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        raise self._error


class Ragged(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return torch.ones(index)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            Raises(RuntimeError("the file is gone")),
            "RuntimeError: the file is gone (in a loading process, test_errors.py:20)",
        ),
        (Raises(KeyError("label")), "KeyError: 'label' (in a loading process, test_errors.py:20)"),
        (
            Ragged(),
            "RuntimeError: stack expects each tensor to be equal size, but got [0] at entry 0 and "
            "[1] at entry 1 (in a loading process)",
        ),
    ],
    ids=["an error", "a key", "samples of several shapes"],
)
def test_an_error_of_a_loading_process_is_its_last_line(data: Dataset[Any], told: str) -> None:
    with pytest.raises((RuntimeError, KeyError)) as raised:
        list(DataLoader(data, 2, num_workers=1))

    assert explained(raised.value) == told


def test_an_error_of_the_users_own_code_names_its_line() -> None:
    with pytest.raises(AttributeError) as raised:
        list(DataLoader(Raises(AttributeError("no such thing")), 2))

    assert explained(raised.value) == (
        "AttributeError: no such thing (test_errors.py:20; HYDRA_FULL_ERROR=1 shows where)"
    )
