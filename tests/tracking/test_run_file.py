"""One file of a run's folder holds its id, status and upload state, and old folders still do."""

import json
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cadence.tracking.run_file import DamagedRunFileError, RunFile, TrackedRun, UploadState

RUN = TrackedRun(
    key="key", uri="memory:", experiment="e", name="n", params={"a": "1"}, tags={}, texts={}
)
STATE = UploadState(described=True, sending=20, points=10)
FORMER = {
    **{"key": "key", "uri": "memory:", "experiment": "e", "name": "n", "params": {"a": "1"}},
    **{"tags": {}, "texts": {}, "run_id": None, "parent": None, "parent_folder": None},
    **{"began": 3, "ended": None, "status": None, "reason": None, "files": []},
}
FORMER_UPLOAD = {"run_id": "id", "described": True, "sending": 20, "points": 10, "ended": False}


def loaded(folder: Path) -> TrackedRun:
    file = RunFile.load(folder)
    assert file is not None
    return file.run


def test_every_change_is_in_the_folder_and_nothing_else_is(tmp_path: Path) -> None:
    file = RunFile(tmp_path, RUN)
    file.update(run_id="id", status="KILLED")
    file.update_upload(points=10, sending=20)

    assert loaded(tmp_path) == file.run
    assert (file.run.run_id, file.run.status, file.run.upload.points) == ("id", "KILLED", 10)
    assert [found.name for found in tmp_path.iterdir()] == ["run.json"]


def test_a_status_and_an_upload_that_are_saved_at_once_are_both_kept(tmp_path: Path) -> None:
    file = RunFile(tmp_path, RUN)

    def upload() -> None:
        for points in range(50):
            file.update_upload(points=points)

    uploading = threading.Thread(target=upload)
    uploading.start()
    for ended in range(50):
        file.update(ended=ended)
    uploading.join(60)

    assert (loaded(tmp_path).ended, loaded(tmp_path).upload.points) == (49, 49)


def test_a_folder_that_was_made_before_is_read_and_its_two_files_become_one(tmp_path: Path) -> None:
    (tmp_path / "tracking.json").write_text(json.dumps(FORMER))
    (tmp_path / "delivered.json").write_text(json.dumps(FORMER_UPLOAD))

    file = RunFile.load(tmp_path)

    assert file is not None
    assert (file.run.run_id, file.run.began, file.run.upload) == ("id", 3, STATE)
    assert {found.name for found in tmp_path.iterdir()} == {"tracking.json", "delivered.json"}
    file.update(status="KILLED")
    assert [found.name for found in tmp_path.iterdir()] == ["run.json"]
    assert loaded(tmp_path) == file.run


def test_a_folder_that_was_made_before_and_never_uploaded_takes_over_the_run_it_names(
    tmp_path: Path,
) -> None:
    (tmp_path / "tracking.json").write_text(json.dumps({**FORMER, "run_id": "the trial's"}))

    assert loaded(tmp_path).run_id == "the trial's"
    assert loaded(tmp_path).upload == UploadState()


@pytest.mark.parametrize("damaged", ["", "[]", '{"sent": 1}'])
def test_where_the_upload_state_of_before_is_damaged_all_may_have_been_taken(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tracking.json").write_text(json.dumps(FORMER))
    (tmp_path / "delivered.json").write_text(damaged)

    assert loaded(tmp_path).upload.sending == sys.maxsize
    assert caplog.messages == [
        f"{tmp_path / 'delivered.json'}: damaged; MLflow is sent again what it may have been sent "
        "already"
    ]


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"key": 1', '{"other": 1}'])
def test_a_damaged_run_file_is_refused_and_named(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "run.json").write_text(damaged)

    with pytest.raises(DamagedRunFileError, match=r"run\.json: damaged \("):
        RunFile.load(tmp_path)


def test_a_run_without_its_id_and_upload_state_begins_anew(tmp_path: Path) -> None:
    held = asdict(RUN)
    del held["run_id"], held["upload"]
    (tmp_path / "run.json").write_text(json.dumps(held))

    assert loaded(tmp_path) == RUN


def test_no_secret_that_is_put_in_is_held_in_memory_or_in_the_folder(tmp_path: Path) -> None:
    secret = "http://me:pass-word@host"
    run = replace(RUN, uri=secret, params={"a": secret}, tags={"b": secret}, texts={"c": secret})
    file = RunFile(tmp_path, run)
    file.update(reason=f"ValueError: {secret}")

    assert "pass-word" not in repr(file.run) + (tmp_path / "run.json").read_text()
    assert file.run.reason == "ValueError: http://me:***@host"
    assert file.run.params == {"a": "http://me:***@host"}
