"""Passwords and tokens: not one byte of them is in what a run leaves behind or says."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, CommandLine
from serving import MlflowServer, free_port

from cadence.redaction import redact_files, redact_logs, redacted
from cadence.track import open_client


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pass@host:5000/path", "http://me:***@host:5000/path"),
        ("http://:pass@host", "http://:***@host"),
        ("postgresql+psycopg://me:a/b@c:d@host/db", "postgresql+psycopg://me:***@host/db"),
        ("https://host/?a=1&token=pass&b=2", "https://host/?a=1&token=***&b=2"),
        ("https://host?ACCESS_TOKEN=pass", "https://host?ACCESS_TOKEN=***"),
        (r"http\://me\:pa\,ss@host\:1", r"http\://me\:***@host\:1"),
        (r"https\://host?token\=pass", r"https\://host?token\=***"),
        ("sqlite:///runs.db?mode=ro&password=it's", "sqlite:///runs.db?mode=ro&password=***'s"),
        ("{'uri': 'http://me:pass@host'}, b@c", "{'uri': 'http://me:***@host'}, b@c"),
        ("two http://a:p@h, http://b:q@h", "two http://a:***@h, http://b:***@h"),
        ("http://me:***@host", "http://me:***@host"),
    ],
)
def test_the_password_and_the_token_of_an_address_are_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////srv/mlruns/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1",
        "postgresql+psycopg://cadence@127.0.0.1:5432/postgres",
        "trainer.step_size=16",
        "tokens=5, key=3",
        "mail me@host: at 12:30",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_only_files_with_a_secret_are_written_again(tmp_path: Path) -> None:
    open_file, secret = tmp_path / "open.yaml", tmp_path / "secret.yaml"
    open_file.write_text("uri: http://host\n")
    secret.write_text("- track.uri=http://me:pass@host\n")
    before = open_file.stat().st_mtime_ns

    redact_files([open_file, secret])

    assert open_file.stat().st_mtime_ns == before
    assert secret.read_text() == "- track.uri=http://me:***@host\n"
    assert {file.name for file in tmp_path.iterdir()} == {"open.yaml", "secret.yaml"}


@pytest.fixture
def redacting() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    redact_logs()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("redacting")
def test_no_log_record_shows_a_secret_in_its_message_or_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ValueError("http://me:pass@host")
    except ValueError:
        logging.getLogger("any").warning("%s", "http://me:pass@there", exc_info=True)

    assert "http://me:***@there" in caplog.text
    assert "ValueError: http://me:***@host" in caplog.text
    assert "pass@" not in caplog.text


def holding(folder: Path, secret: str) -> list[Path]:
    """Return every file under a folder that holds a text."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if secret.encode() in file.read_bytes()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MlflowServer, Path]]:
    folder = tmp_path_factory.mktemp("server")
    server = MlflowServer(folder)
    server.start()
    yield server, folder
    server.kill()


def test_no_byte_of_a_password_is_in_what_a_run_leaves_behind(
    command: CommandLine, server: tuple[MlflowServer, Path], tmp_path: Path
) -> None:
    uri = server[0].uri.replace("http://", "http://me:pass-word@")

    ended = command("trainer.max_samples=64", f"track.uri={uri}")

    assert ended.returncode == 0, ended.stderr
    assert "pass-word" not in ended.stdout + ended.stderr
    assert (tmp_path / "run" / ".hydra" / "overrides.yaml").is_file()
    assert holding(tmp_path, "me:***@")
    assert holding(tmp_path, "pass-word") == []
    assert holding(server[1], "me:***@")
    assert holding(server[1], "pass-word") == []


@pytest.mark.slow
def test_no_byte_of_a_password_is_in_what_a_sweep_leaves_behind(
    server: tuple[MlflowServer, Path], tmp_path: Path
) -> None:
    uri = server[0].uri.replace("http://", "http://me:pass-word@")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "src.train", "--multirun", "trainer.step_size=1,2"),
            *("trainer.max_samples=64", f"hydra.sweep.dir={tmp_path}/sweep", f"track.uri={uri}"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert "pass-word" not in ended.stdout + ended.stderr
    assert {file.name for file in holding(tmp_path, ":***@")} >= {"tracking.json"}
    assert {file.name for file in holding(tmp_path, "CADENCE_TRACK_URI")} >= {
        *("config.yaml", "hydra.yaml", "overrides.yaml", "multirun.yaml"),
    }
    assert holding(tmp_path, "pass-word") == []
    assert holding(server[1], "pass-word") == []


def test_no_byte_of_a_password_is_in_what_a_failed_run_says(
    command: CommandLine, tmp_path: Path
) -> None:
    host = f"127.0.0.1:{free_port()}"

    ended = command(f"track.uri=http://me:pass-word@{host}")

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: track.uri=http://me:***@{host}: no MLflow server")
    assert "pass-word" not in ended.stdout + ended.stderr
    assert holding(tmp_path, "Traceback")
    assert holding(tmp_path, "pass-word") == []


@pytest.mark.parametrize(
    "address",
    [
        "http://me:pass/word@127.0.0.1:9",
        "http://me:pass-word@127.0.0.1:port",
        "postgresql+psycopg://me:pass/word@127.0.0.1:9/db",
        "nothing://me:pass-word@127.0.0.1",
    ],
)
def test_an_address_that_is_refused_is_named_without_its_password(
    tmp_path: Path, address: str
) -> None:
    with pytest.raises(ValueError, match="track") as refused:
        open_client(address)

    assert "word" not in str(refused.value)
