"""From a run's folder to a server that fails in every way: nothing is lost, nothing is doubled."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as some
from waiting import until

from cadence.tracking import upload as delivery
from cadence.tracking.metrics_file import LoggedMetric, MetricsFile
from cadence.tracking.run_file import RunFile, TrackedRun, UploadState
from cadence.tracking.upload import BackgroundUpload, Upload, UploadError, pause

FINE, BEFORE, AFTER = "takes it", "dies before it takes it", "dies before it answers"


def saved(folder: Path) -> UploadState:
    file = RunFile.load(folder)
    assert file is not None
    return file.run.upload


def run_file(folder: Path) -> RunFile:
    """Return the run that the folder holds, or a new one."""
    run = TrackedRun(
        key="key", uri="memory:", experiment="e", name="n", params={}, tags={}, texts={},
        status="FINISHED", ended=1,
    )  # fmt: skip
    return RunFile.load(folder) or RunFile(folder, run)


class ShakyServer:
    """Keeps what it is told, like MLflow's store, and fails as it is told to beforehand."""

    def __init__(self, fates: Sequence[str] = (), takes: int = 10**9) -> None:
        self.runs: list[str] = []
        self.described: set[str] = set()
        self.ended: dict[str, str | None] = {}
        self.points: list[LoggedMetric] = []
        self.sizes: list[int] = []
        self._fates = iter(fates)
        self._takes = takes

    def found(self, key: str) -> str | None:
        return key if key in self.runs else None

    def create(self, run: TrackedRun) -> str:
        with self._fate():
            self.runs.append(run.key)
        return run.key

    def take_over(self, run_id: str, run: TrackedRun) -> None:
        with self._fate():
            assert run_id in self.runs

    def describe(self, run_id: str, run: TrackedRun) -> None:
        with self._fate():
            self.described.add(run_id)

    def send(self, run_id: str, points: Sequence[LoggedMetric]) -> None:
        self.sizes.append(len(points))
        if len(points) > self._takes:
            raise UploadError("too slow")
        with self._fate():
            self.points += [point for point in points if point not in self.points]

    def end(self, run_id: str, run: TrackedRun, files: Sequence[Path]) -> None:
        with self._fate():
            self.ended[run_id] = run.status

    def _fate(self) -> "_Fate":
        return _Fate(next(self._fates, FINE))


class _Fate:
    def __init__(self, fate: str) -> None:
        self._fate = fate

    def __enter__(self) -> None:
        if self._fate == BEFORE:
            raise UploadError(BEFORE)

    def __exit__(self, *_: object) -> None:
        if self._fate == AFTER:
            raise UploadError(AFTER)


def points(steps: range) -> list[LoggedMetric]:
    return [LoggedMetric("train/loss", 1 / (step + 1), step, 1_000 + step) for step in steps]


def filled(folder: Path, steps: range) -> MetricsFile:
    journal = MetricsFile(folder)
    journal.append(points(steps))
    journal.flush()
    return journal


def all_told(folder: Path, journal: MetricsFile, server: ShakyServer) -> bool:
    """Deliver everything once, by a process that starts anew; return whether nothing failed."""
    telling = Upload(run_file(folder), folder, journal, server)
    try:
        telling.begin()
        for _ in iter(telling.send_batch, 0):
            pass
        telling.end()
    except UploadError:
        return False
    assert telling.is_complete
    return True


@given(fates=some.lists(some.sampled_from([FINE, BEFORE, AFTER]), max_size=20))
def test_whatever_fails_each_point_arrives_once_in_one_run(
    tmp_path_factory: pytest.TempPathFactory, fates: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    server = ShakyServer(fates)
    with patch.object(delivery, "BATCH", 10), closing(filled(folder, range(25))) as journal:
        until(lambda: all_told(folder, journal, server), "everything is uploaded", every=0)

    assert server.runs == ["key"]
    assert server.described == {"key"}
    assert server.ended == {"key": "FINISHED"}
    assert server.points == points(range(25))


def test_what_was_delivered_is_not_sent_again(tmp_path: Path) -> None:
    server = ShakyServer()
    with closing(filled(tmp_path, range(10))) as journal:
        assert all_told(tmp_path, journal, server)
        assert all_told(tmp_path, journal, server)

    assert server.sizes == [10]


def test_a_server_too_slow_for_a_thousand_points_gets_fewer_at_once(tmp_path: Path) -> None:
    server = ShakyServer(takes=300)
    with closing(filled(tmp_path, range(1000))) as journal:
        telling = Upload(run_file(tmp_path), tmp_path, journal, server)
        telling.begin()
        for _ in range(2):
            with pytest.raises(UploadError):
                telling.send_batch()
        assert telling.send_batch() == 250

    assert server.sizes == [1000, 500, 250]
    assert server.points == points(range(250))


@given(
    delivered=some.integers(0, 12),
    resumed=some.integers(0, 11),
    fate=some.sampled_from([FINE, BEFORE, AFTER]),
)
def test_a_session_that_goes_back_misses_and_doubles_nothing_on_the_server(
    tmp_path_factory: pytest.TempPathFactory, delivered: int, resumed: int, fate: str
) -> None:
    """It died after a number of points were delivered, and perhaps before the answer was noted."""
    folder = tmp_path_factory.mktemp("run")
    server = ShakyServer()
    with closing(MetricsFile(folder)) as journal:
        for step in range(12):
            journal.append(points(range(step, step + 1)))
            journal.flush()
            if step < delivered:
                assert all_told(folder, journal, server)
        server._fates = iter([fate])
        all_told(folder, journal, server)
    server._fates = iter([])

    with closing(MetricsFile(folder)) as journal:
        journal.rewind(resumed, keep=saved(folder).sending)
        anew = [point._replace(timestamp=9_000) for point in points(range(resumed + 1, 20))]
        journal.append(anew)
        journal.flush()
        assert all_told(folder, journal, server)
        in_the_file = journal.read(0, 100)[0]

    assert [point.step for point in in_the_file] == list(range(20))
    assert server.points == in_the_file


def test_a_journal_that_lost_its_end_is_delivered_from_its_beginning(tmp_path: Path) -> None:
    server = ShakyServer()
    with closing(filled(tmp_path, range(10))) as journal:
        assert all_told(tmp_path, journal, server)
        journal.clear()
        journal.append(points(range(9, 12)))
        journal.flush()
        assert all_told(tmp_path, journal, server)

    assert server.points == points(range(12))


@pytest.mark.usefixtures("quick_delivery")
def test_an_outage_is_said_once_and_its_end_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = ShakyServer([FINE, FINE, BEFORE, BEFORE, AFTER])
    with closing(filled(tmp_path, range(3))) as journal:
        telling = Upload(run_file(tmp_path), tmp_path, journal, server)
        telling.begin()
        courier = BackgroundUpload(telling)
        until(
            lambda: server.points and saved(tmp_path).points >= journal.size,
            "everything is uploaded",
        )
        assert courier.finish()

    assert caplog.messages == [
        "dies before it takes it; what it is to be told waits in the run folder",
        "MLflow is back, and has taken what waited",
    ]
    assert server.points == points(range(3))
    assert server.ended == {"key": "FINISHED"}


class HangingServer(ShakyServer):
    """Takes the run, and never answers when it is sent points, until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.released = threading.Event(), threading.Event()
        self.answered = threading.Event()

    def send(self, run_id: str, points: Sequence[LoggedMetric]) -> None:
        self.asked.set()
        self.released.wait()
        super().send(run_id, points)
        self.answered.set()


@pytest.fixture
def hanging() -> Iterator[HangingServer]:
    server = HangingServer()
    yield server
    server.released.set()


@pytest.mark.usefixtures("quick_delivery")
def test_a_server_that_never_answers_neither_holds_up_the_run_nor_its_end(
    tmp_path: Path, hanging: HangingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "END_SECONDS", 0.05)
    with closing(filled(tmp_path, range(3))) as journal:
        telling = Upload(run_file(tmp_path), tmp_path, journal, hanging)
        telling.begin()
        courier = BackgroundUpload(telling)
        assert hanging.asked.wait(60)
        journal.append(points(range(3, 6)))
        journal.flush()

        assert not courier.finish()
        assert journal.read(0, 100)[0] == points(range(6))


@pytest.mark.usefixtures("quick_delivery")
def test_an_answer_after_the_runs_end_writes_nothing_under_whoever_delivers_the_rest(
    tmp_path: Path, hanging: HangingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "END_SECONDS", 0.05)
    with closing(filled(tmp_path, range(3))) as journal:
        telling = Upload(run_file(tmp_path), tmp_path, journal, hanging)
        telling.begin()
        others = set(threading.enumerate())
        courier = BackgroundUpload(telling)
        (left_behind,) = set(threading.enumerate()) - others
        assert hanging.asked.wait(60)
        assert not courier.finish()
        whole = UploadState(described=True, points=journal.size, ended=True)
        others_file = RunFile.load(tmp_path)
        assert others_file is not None
        others_file.update(upload=whole)

        hanging.released.set()
        left_behind.join(60)

        assert hanging.answered.is_set()
        assert not hanging.ended
        assert saved(tmp_path) == whole
        assert not telling.is_complete


def test_nothing_is_sent_that_is_not_noted_to_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ShakyServer()
    with closing(filled(tmp_path, range(3))) as journal:
        telling = Upload(run_file(tmp_path), tmp_path, journal, server)
        telling.begin()
        found = journal.read(0, 100)

        def read(start: int, limit: int) -> tuple[list[LoggedMetric], int]:
            telling.leave()  # as the run's end may, at any moment
            return found

        monkeypatch.setattr(journal, "read", read)

        assert telling.send_batch() == 0
    assert not server.points
    assert saved(tmp_path).sending == 0


def test_the_pause_between_tries_doubles_up_to_a_minute() -> None:
    assert [pause(failures) for failures in (0, 1, 2, 3, 7, 8, 5000)] == [5, 1, 2, 4, 64, 64, 64]
