"""Mini-batches: their samples, and what taking them apart and joining them keeps."""

import re
from collections import OrderedDict, UserDict
from collections.abc import Iterator, Mapping, Sequence
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
NO_TENSOR = "a mini-batch holds at least one tensor; this one has none"
UNEQUAL = "a mini-batch's tensors share dimension 0, the samples; got lengths [2, 3]"
UNEQUAL_NESTED = (
    "a mini-batch's tensors share dimension 0, the samples, and lists have an entry for each; got "
    "lengths [2, 3]"
)
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
        (("words", 3), TypeError, NO_TENSOR),
        ({"x": torch.ones(2), "more": {"y": torch.ones(3)}}, ValueError, UNEQUAL_NESTED),
        ((torch.ones(2), {"y": torch.tensor(1.0)}), ValueError, SCALAR),
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


class Encoding(UserDict[str, Any]):
    """A mapping of its own type whose entries are attributes too, as transformers' are."""

    def __init__(self, data: Mapping[str, Any], source: str = "") -> None:
        super().__init__(data)
        self.source = source

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Frozen(Mapping[str, Any]):
    """A mapping that cannot be changed."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = dict(data)

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


@pytest.mark.parametrize("kind", [dict, OrderedDict, Encoding, Frozen])
def test_a_mapping_keeps_its_type_and_is_not_changed(kind: Any) -> None:
    batch = kind({"inputs": torch.arange(5.0), "labels": torch.arange(5)})

    parts = list(rebatched([batch, batch], 4))

    assert [type(part) for part in parts] == [kind] * 3
    assert [part["labels"].tolist() for part in parts] == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4]]
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4]


def test_a_mappings_attributes_stay() -> None:
    batch = Encoding({"labels": torch.arange(4)}, source="a file")

    for part in rebatched([batch], 2):
        assert part.source == "a file"  # type: ignore[union-attr]
        assert part.labels is part["labels"]  # type: ignore[union-attr,call-overload]


def nested(samples: int, first: int = 0) -> dict[str, Any]:
    numbers = torch.arange(first, first + samples)
    return {
        "pixels": (numbers[:, None].float(), (numbers * 2, {"deep": numbers * 3})),
        "ids": [f"sample {number}" for number in numbers.tolist()],
        "ragged": [torch.ones(int(number) + 10) for number in numbers],
        "temperature": 0.5,
        "split": "train",
    }


def numbers_of(batch: Any) -> list[int]:
    """Return the numbers of a nested mini-batch's samples, after a look that all of it agrees."""
    numbers = batch["pixels"][0][:, 0].long()
    assert torch.equal(batch["pixels"][1][0], numbers * 2)
    assert torch.equal(batch["pixels"][1][1]["deep"], numbers * 3)
    assert batch["ids"] == [f"sample {number}" for number in numbers.tolist()]
    assert [len(each) - 10 for each in batch["ragged"]] == numbers.tolist()
    assert (batch["temperature"], batch["split"]) == (0.5, "train")
    found: list[int] = numbers.tolist()
    return found


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 9))
def test_nested_mini_batches_are_split_and_joined_with_all_that_belongs_to_a_sample(
    sizes: list[int], size: int
) -> None:
    total = sum(sizes)
    batches = [nested(count, sum(sizes[:index])) for index, count in enumerate(sizes)]

    parts = list(rebatched(batches, size))

    assert [sample_count(batch) for batch in batches] == sizes
    assert [number for part in parts for number in numbers_of(part)] == list(range(total))
    assert [sample_count(part) for part in parts[:-1]] == [size] * (len(parts) - 1)


def test_a_list_that_may_be_either_is_not_guessed_at() -> None:
    batch = {"x": torch.ones(2), "both": [torch.ones(2), torch.zeros(2)]}

    assert sample_count(batch) == 2
    assert list(rebatched([batch, batch], 2)) == [batch, batch]
    with pytest.raises(TypeError, match=r"^a mini-batch of 2 samples has a list of 2 tensors of"):
        list(rebatched([batch], 1))
    sure = {"x": torch.ones(2), "both": (torch.ones(2), torch.zeros(2))}
    assert [len(part["both"][1]) for part in rebatched([sure], 1)] == [1, 1]  # type: ignore[call-overload]


def test_what_belongs_to_all_samples_keeps_mini_batches_apart_where_it_differs() -> None:
    warm, cold = nested(2), {**nested(2, 2), "temperature": 0.1}

    assert [part["temperature"] for part in rebatched([warm, cold], 4)] == [0.5, 0.1]  # type: ignore[call-overload]


def test_a_nested_mini_batch_moves_with_the_tensors_of_single_samples() -> None:
    away: Any = moved(nested(3), torch.device("meta"))

    held = [away["pixels"][0], away["pixels"][1][0], away["pixels"][1][1]["deep"], *away["ragged"]]
    assert {part.device.type for part in held} == {"meta"}
    assert away["ids"] == nested(3)["ids"]


def test_a_sparse_tensor_is_not_split_and_says_so() -> None:
    batch = torch.eye(4).to_sparse(), torch.ones(4)

    with pytest.raises(TypeError, match=r"layout torch.sparse_coo cannot be split into micro-batc"):
        list(rebatched([batch], 2))
    assert list(rebatched([batch], 4)) == [batch]
