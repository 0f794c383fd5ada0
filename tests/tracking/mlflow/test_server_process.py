"""MLflow in a process of its own does what it does in this one, and ends with who started it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from told import in_mlflow, in_order

from cadence.tracking.metrics_file import LoggedMetric
from cadence.tracking.mlflow.server_process import MlflowProcess
from cadence.tracking.run_file import TrackedRun
from cadence.tracking.upload import UploadError

RUN = TrackedRun(
    key="key", uri="", experiment="tests", name="a run", params={"a": "1", "b&": "2"}, tags={},
    texts={"a.txt": "text"}, status="FAILED", reason="why", ended=5,
)  # fmt: skip


@pytest.fixture
def process() -> Iterator[MlflowProcess]:
    process = MlflowProcess()
    yield process
    process.close()


def test_a_run_is_kept_as_by_mlflow_in_this_process_and_what_it_logs_is_logged_here(
    process: MlflowProcess, tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = [LoggedMetric("number", float(step), step, 1000 + step) for step in range(3)]
    (tmp_path / "end.txt").write_text("end")
    process.open(tracking_uri, "tests")

    run_id = process.create(RUN)
    process.describe(run_id, RUN)
    process.send(run_id, points)
    process.end(run_id, RUN, [tmp_path / "end.txt"])

    client = mlflow.MlflowClient(tracking_uri)
    run = client.get_run(run_id)
    assert process.found("key") == run_id
    assert (run.info.run_name, run.info.status, run.info.end_time) == ("a run", "FAILED", 5)
    assert (run.data.params, run.data.tags["cadence.reason"]) == ({"a": "1"}, "why")
    assert {file.path for file in client.list_artifacts(run_id)} == {"a.txt", "end.txt"}
    assert in_mlflow(tracking_uri, run_id) == in_order(points)
    assert caplog.messages == ["b&: MLflow takes no param of this name; it stays in the run folder"]


def test_what_mlflow_refuses_is_said_as_in_this_process_and_a_dead_process_is_replaced(
    process: MlflowProcess, tracking_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "no.db").write_bytes(b"no database" * 500)
    with pytest.raises(ValueError, match=r"no\.db: MLflow cannot log there \(.* correct it, or"):
        process.open(f"sqlite:///{tmp_path}/no.db", "tests")
    process.open(tracking_uri, "tests")
    with pytest.raises(UploadError, match="MLflow takes nothing") as refused:
        process.take_over("0" * 32, RUN)
    assert str(refused.value.__cause__) == f"Run with id={'0' * 32} not found"

    process._process.kill()
    with pytest.raises(UploadError, match="MLflow's process ended with code -9"):
        process.found("key")

    assert process.found("no such key") is None


PARENT = """
import sys
from cadence.tracking.mlflow.server_process import MlflowProcess
print(MlflowProcess()._process.pid, flush=True)
sys.stdin.read()
"""


def test_the_process_ends_when_the_run_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()

    child.wait(60)


def test_a_tracker_is_imported_without_mlflow_and_sqlalchemy() -> None:
    code = (
        "import sys, cadence.tracking.mlflow.tracker, cadence.tracking.address as address\n"
        "address.check('sqlite://')\n"
        "print(sorted({'mlflow', 'sqlalchemy', 'alembic', 'pandas'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout == "[]\n"
