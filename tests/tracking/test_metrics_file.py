"""The file of a run's points: what is in it outlives everything, and waits for nobody."""

import json
import math
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cadence.tracking.metrics_file import BUFFERED, FILE, LoggedMetric, MetricsFile


def points(steps: range, key: str = "train/loss") -> list[LoggedMetric]:
    return [LoggedMetric(key, 1 / (step + 1), step, 1_000 + step) for step in steps]


def held(folder: Path) -> list[LoggedMetric]:
    with closing(MetricsFile(folder)) as journal:
        return journal.read(0, 10**9)[0]


def test_points_come_back_as_they_were_even_those_that_are_no_numbers(tmp_path: Path) -> None:
    values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    kept = [LoggedMetric("train/loss", value, step, 7) for step, value in enumerate(values)]

    with closing(MetricsFile(tmp_path)) as journal:
        journal.append(kept)
        journal.flush()

    assert list(map(repr, held(tmp_path))) == list(map(repr, kept))


def test_each_line_is_one_object_of_strict_json(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append(
            [LoggedMetric("val/loss", 0.5, 128, 9), LoggedMetric("val/loss", math.nan, 256, 10)]
        )
        journal.flush()

    assert (tmp_path / FILE).read_text() == (
        '{"key": "val/loss", "value": 0.5, "step": 128, "timestamp": 9}\n'
        '{"key": "val/loss", "value": "NaN", "step": 256, "timestamp": 10}\n'
    )


@pytest.mark.parametrize(
    "damaged", [b"\0\0\n", b"\xff\n", b"[1]\n", b'{"key": "val/loss"}\n', b'{"key"\n', b"\n"]
)
def test_a_damaged_line_is_named_and_not_passed_over(tmp_path: Path, damaged: bytes) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append(points(range(2)))
        journal.flush()
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes() + damaged)

    with pytest.raises(ValueError, match="holds no number of a run") as error:
        held(tmp_path)

    assert str(error.value) == (
        f"{file}: a line holds no number of a run: {damaged!r}; take it out, the others stand"
    )


@given(cut=some.integers(0, 600))
def test_a_death_at_any_byte_costs_at_most_the_line_that_was_being_written(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    with closing(MetricsFile(folder)) as journal:
        journal.append(points(range(8)))
        journal.flush()
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")

    with closing(MetricsFile(folder)) as journal:
        journal.append(points(range(8, 10)))
        journal.flush()

    assert held(folder) == points(range(left)) + points(range(8, 10))


def test_any_number_of_points_is_read_in_order_piece_by_piece(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append(points(range(25)))
        journal.flush()
        pieces, start = [], 0
        for _ in range(5):
            piece, start = journal.read(start, 7)
            pieces.append(piece)

    assert [len(piece) for piece in pieces] == [7, 7, 7, 4, 0]
    assert [point for piece in pieces for point in piece] == points(range(25))
    assert start == (tmp_path / FILE).stat().st_size


def test_no_more_points_than_the_buffer_holds_ever_wait_in_memory(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        waiting = []
        for step in range(20 * BUFFERED + 3):
            journal.append(points(range(step, step + 1)))
            waiting.append(journal.waiting)

    assert max(waiting) < BUFFERED
    assert len(held(tmp_path)) == 20 * BUFFERED


def test_a_second_journal_of_the_same_run_is_refused(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)), pytest.raises(ValueError, match="its run is") as refused:
        MetricsFile(tmp_path)

    assert str(refused.value) == (
        f"{tmp_path}: its run is still going on, or being delivered; wait for it"
    )
    MetricsFile(tmp_path).close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the disk be full: no file of this process grows beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_whole_lines_and_what_it_did_not_take_waits(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append(points(range(3)))
        journal.flush()
        before = (tmp_path / FILE).read_bytes()
        journal.append(points(range(3, 9)))
        with files_of_at_most(len(before) + 100), pytest.raises(OSError, match="too large") as full:
            journal.flush()
        assert full.value.filename == str(tmp_path / FILE)
        assert (tmp_path / FILE).read_bytes() == before
        assert journal.waiting == 6
        journal.flush()

    assert held(tmp_path) == points(range(9))


def bytes_of(journal: MetricsFile, lines: int) -> int:
    return journal.read(0, lines)[1]


def test_going_back_drops_later_points_that_no_server_can_have(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append(points(range(10, 101, 10)))
        journal.flush()
        journal.rewind(40, keep=bytes_of(journal, 6))
        journal.append(points(range(50, 131, 10)))
        journal.flush()

    assert held(tmp_path) == points(range(10, 131, 10))


def test_what_comes_again_is_passed_over_key_by_key(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append([*points(range(5)), *points(range(2), "val/loss")])
        journal.flush()
        journal.rewind(0, keep=journal.size)
        again = [LoggedMetric("train/loss", -1.0, step, 5_000) for step in range(1, 7)]
        journal.append([*again, *points(range(1, 4), "val/loss"), *points(range(1), "new")])
        journal.flush()

    assert held(tmp_path) == [
        *points(range(5)),
        *points(range(2), "val/loss"),
        *again[4:],
        *points(range(2, 4), "val/loss"),
        *points(range(1), "new"),
    ]


def test_what_is_measured_anew_stands_beside_the_last_step_that_is_held(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append(points(range(3), "memory/peak_mib"))
        journal.flush()
        journal.rewind(1, keep=journal.size)
        anew = [LoggedMetric("memory/peak_mib", -1.0, step, 5_000) for step in range(1, 4)]
        journal.append(anew, again=True)
        journal.flush()

    assert held(tmp_path) == [*points(range(3), "memory/peak_mib"), *anew[1:]]


def test_nothing_is_passed_over_before_a_run_goes_back(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append([*points(range(3)), *points(range(3))])
        journal.flush()

    assert held(tmp_path) == [*points(range(3)), *points(range(3))]


def test_a_file_holds_nothing_but_json_after_going_back(tmp_path: Path) -> None:
    with closing(MetricsFile(tmp_path)) as journal:
        journal.append(points(range(4)))
        journal.flush()
        journal.rewind(2, keep=0)

    lines = (tmp_path / FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert not list(tmp_path.glob("*.part"))
