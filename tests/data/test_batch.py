"""Mini-batches: their samples, and what taking them apart and joining them keeps."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import FORMS, Pair, as_a_user_calls_it
from torch import Tensor

from cadence.data.batch import Batch, first_samples, moved, rebatched, sample_count, tensors

lengths = st.lists(st.integers(min_value=0, max_value=7), max_size=12)
forms = st.sampled_from(sorted(FORMS))
counts = st.integers(min_value=0, max_value=60)

NOT_A_BATCH = "a mini-batch is a tensor, or a tuple, list, named tuple or dict of tensors, not str"
NOT_A_TENSOR = (
    "a mini-batch holds tensors only, not int; convert it in the data set or in the loader's "
    "collate_fn"
)
UNEQUAL = "a mini-batch's tensors share dimension 0, the samples; got lengths [2, 3]"
SCALAR = "a mini-batch's tensors need a dimension 0, the samples; one is 0-d"


def numbered(sizes: Sequence[int], form: str, width: int = 2) -> list[Batch]:
    """Return mini-batches whose inputs are the numbers of their samples, and targets minus them."""
    numbers = torch.arange(sum(sizes), dtype=torch.float64).split(list(sizes))
    return [FORMS[form](part[:, None].expand(-1, width), -part) for part in numbers]


def content(batches: Sequence[Batch]) -> list[float]:
    """Return the numbers of all samples in order, after a look that each kept its target."""
    found = [tensors(batch) for batch in batches]
    for one, other in found:
        inputs, targets = (one, other) if one.dim() == 2 else (other, one)
        assert torch.equal(inputs, -targets[:, None].expand_as(inputs))
    return [number for parts in found for number in max(parts, key=Tensor.dim)[:, 0].tolist()]


@given(lengths, forms, st.integers(min_value=1, max_value=20))
def test_rebatching_keeps_order_and_content_and_fills_all_but_the_last(
    sizes: list[int], form: str, size: int
) -> None:
    batches = list(rebatched(numbered(sizes, form), size))

    total = sum(sizes)
    assert content(batches) == list(range(total))
    assert [sample_count(batch) for batch in batches] == [
        min(size, total - start) for start in range(0, total, size)
    ]
    assert {type(batch) for batch in batches} <= {type(numbered([1], form)[0])}


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([2, 3])), max_size=12), st.integers(1))
def test_rebatching_keeps_neighbours_apart_that_cannot_be_joined(
    shapes: list[tuple[int, int]], size: int
) -> None:
    wide = [torch.full((samples, width), index) for index, (samples, width) in enumerate(shapes)]

    batches = list(rebatched(wide, size))

    expected = [
        min(size, total - start)
        for _, run in groupby(shapes, key=lambda shape: shape[1])
        for total in [sum(samples for samples, _ in run)]
        for start in range(0, total, size)
    ]
    assert [len(tensors(batch)[0]) for batch in batches] == expected
    rows = [row.tolist() for batch in batches for row in tensors(batch)[0]]
    assert rows == [row.tolist() for batch in wide for row in batch]


@pytest.mark.parametrize(
    "neighbours",
    [
        (torch.ones(2, 3), torch.ones(2, 4)),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64)),
        (torch.ones(2, 3), (torch.ones(2, 3),)),
        ((torch.ones(2),), (torch.ones(2), torch.ones(2))),
        ({"a": torch.ones(2), "b": torch.zeros(2)}, {"b": torch.zeros(2), "a": torch.ones(2)}),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
    ],
    ids=["width", "dtype", "form", "number", "order of keys", "keys"],
)
def test_mini_batches_of_another_kind_are_never_joined(neighbours: tuple[Batch, Batch]) -> None:
    assert [sample_count(batch) for batch in rebatched(neighbours, 100)] == [2, 2]


@given(lengths, forms, counts)
def test_the_first_samples_are_exactly_those_asked_for(
    sizes: list[int], form: str, count: int
) -> None:
    batches = list(first_samples(numbered(sizes, form), count))

    assert content(batches) == list(range(min(count, sum(sizes))))
    whole = [sample_count(batch) for batch in batches[:-1]]
    assert whole == sizes[: len(whole)]  # only the last is cut


@given(lengths, forms)
def test_without_a_count_all_mini_batches_come_as_they_are(sizes: list[int], form: str) -> None:
    stream = numbered(sizes, form)
    assert all(a is b for a, b in zip(first_samples(stream, None), stream, strict=True))


@given(lengths, counts)
def test_no_mini_batch_is_taken_from_the_stream_that_is_not_needed(
    sizes: list[int], count: int
) -> None:
    stream = iter(numbered(sizes, "tuple"))

    taken = len(list(first_samples(stream, count)))

    assert len(list(stream)) == len(sizes) - taken


@pytest.mark.parametrize("form", FORMS)
def test_every_form_counts_its_samples(form: str) -> None:
    assert sample_count(FORMS[form](torch.ones(5, 2), torch.ones(5))) == 5
    assert sample_count(torch.ones(4, 2)) == 4


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ("words", TypeError, NOT_A_BATCH),
        ((torch.ones(2), 3), TypeError, NOT_A_TENSOR),
        ({}, TypeError, "a mini-batch holds at least one tensor; this one is empty"),
        ((torch.ones(2), torch.ones(3)), ValueError, UNEQUAL),
        (torch.tensor(1.0), ValueError, SCALAR),
    ],
)
def test_what_is_no_mini_batch_is_refused(batch: Any, error: type[Exception], message: str) -> None:
    with as_a_user_calls_it(), pytest.raises(error, match=f"^{re.escape(message)}$"):
        sample_count(batch)


def test_a_mini_batch_that_is_there_already_is_not_copied() -> None:
    here = Pair(torch.ones(2), torch.zeros(2))
    assert moved(here, torch.device("cpu")) is here


@pytest.mark.parametrize("form", FORMS)
def test_a_mini_batch_moves_whole_and_keeps_its_form(form: str) -> None:
    batch = FORMS[form](torch.ones(2, 3), torch.zeros(2))

    away = moved(batch, torch.device("meta"))

    assert type(away) is type(batch)
    assert [part.device.type for part in tensors(away)] == ["meta", "meta"]
    assert [part.shape for part in tensors(away)] == [part.shape for part in tensors(batch)]
