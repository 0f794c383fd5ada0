"""Passwords and tokens: not one byte of them is in what a run leaves behind or says."""

import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, CommandLine
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from serving import MlflowServer, free_port

from cadence.cli.plan import kept_config
from cadence.system.secrets import in_one_line, redact_files, redact_logs, redacted, redacted_tree
from cadence.tracking.mlflow.client import open_client


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
        ("http://me@corp.com:s3cret@host:5000", "http://me@corp.com:***@host:5000"),
        ("postgresql://me@corp.com:s3cret@host/db", "postgresql://me@corp.com:***@host/db"),
        ("https://T0KEN@host/api", "https://***@host/api"),
        (r"https\://T0KEN@host", r"https\://***@host"),
        ("http://me:pa?ss#w/o@rd@host", "http://me:***@host"),
        ("http://host?pass=p&auth=q&x=1", "http://host?pass=***&auth=***&x=1"),
        ("http://host?credentials=p;passphrase=q", "http://host?credentials=***;passphrase=***"),
        ("http://host/path#token=p", "http://host/path#token=***"),
        (
            "http://host/?next=%2Fa%3Ftoken%3Dp%26x%3D1",
            "http://host/?next=%2Fa%3Ftoken%3D***%26x%3D1",
        ),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC+18%3BUID%3Dme%3BPWD%3Dp%3BEncrypt%3Dyes",
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC+18%3BUID%3Dme%3BPWD%3D***%3BEncrypt%3Dyes",
        ),
        (
            "mssql+pyodbc:///?odbc_connect=PWD%3D%7Bp%3Bq%7D%3BUID%3Dme",
            "mssql+pyodbc:///?odbc_connect=PWD%3D***%3BUID%3Dme",
        ),
        ("odbc_connect=Driver=x;PWD={p;q};UID=me", "odbc_connect=Driver=x;PWD=***;UID=me"),
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
        "https://host/project@1.0",
        "git@github.com:me/project.git",
        "http://host?author=me&passes=3&authors=2",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


SECRET = "S3CRET"
PLAIN = st.text("abcXYZ09._~-", min_size=1, max_size=8)
RAW = st.text("abc09/?#@:%&;=+.-", max_size=4)


@given(PLAIN, st.sampled_from(["", "@corp.com"]), RAW, RAW, PLAIN)
def test_whatever_characters_surround_it_no_part_of_a_password_is_left(
    user: str, domain: str, before: str, after: str, host: str
) -> None:
    for scheme in ("http", "https", "postgresql+psycopg", "mysql"):
        address = f"{scheme}://{user}{domain}:{before}{SECRET}{after}@{host}"
        for text in (address, f"track.uri={address}", f"said '{address}', and more"):
            assert SECRET not in redacted(text)
            assert redacted(redacted(text)) == redacted(text)
            assert host in redacted(text)


@given(
    st.sampled_from(["pass", "auth", "my_token", "api-key", "PASSWORD", "credentials", "db.pwd"]),
    st.sampled_from([("?", "="), ("&", "="), (";", "="), ("#", "="), ("%3B", "%3D"), ("?", "\\=")]),
    PLAIN,
)
def test_whatever_its_name_and_its_place_no_part_of_a_token_is_left(
    name: str, around: tuple[str, str], path: str
) -> None:
    mark, equals = around
    text = f"http://host/{path}{mark}{name}{equals}{SECRET}"

    assert redacted(text) == text.replace(SECRET, "***")


def test_every_string_of_a_tree_is_redacted_and_nothing_else_changes() -> None:
    tree = {"a": ["http://me:pass@host", 3, None], "b": {"c": ("http://me:pass@host", 0.5, True)}}

    assert redacted_tree(tree) == {
        "a": ["http://me:***@host", 3, None],
        "b": {"c": ("http://me:***@host", 0.5, True)},
    }


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
    assert {file.name for file in holding(tmp_path, ":***@")} >= {"run.json"}
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
        "http://me:S3C/RET@127.0.0.1:9",
        "http://me:S3C-RET@127.0.0.1:port",
        "postgresql+psycopg://me:S3C/RET@127.0.0.1:9/db",
        "nothing://me:S3C-RET@127.0.0.1",
        "http://me:S3C?RET@127.0.0.1:9",
        "http://me:S3C#RET@127.0.0.1:9",
        "http://me:[S3C-RET]@127.0.0.1:9",
        "http://me:S3C\uff0fRET@127.0.0.1:9",
        "postgresql+psycopg://me:S3C@RET@127.0.0.1:9/db",
    ],
)
def test_an_address_that_is_refused_is_named_without_its_password(
    tmp_path: Path, address: str
) -> None:
    with pytest.raises(ValueError, match="track") as refused:
        open_client(address)

    told = redacted("".join(traceback.format_exception(refused.value)))
    assert "S3C" not in told
    assert "RET" not in told


@pytest.mark.parametrize("raw", ["/", "?", "#"])
def test_a_password_with_a_raw_character_is_told_how_to_write_it(
    command: CommandLine, tmp_path: Path, raw: str
) -> None:
    ended = command(f"track.uri='http://me:S3C{raw}RET@127.0.0.1:9'")

    assert ended.returncode == 1
    assert ended.stderr == (
        "error: track.uri=http://me:***@127.0.0.1:9: it is no address; is its port a number? In a "
        "password write / ? # @ [ ] as %2F %3F %23 %40 %5B %5D\n"
    )
    assert holding(tmp_path, "S3C") == holding(tmp_path, "RET") == []


def test_the_traceback_that_is_asked_for_shows_no_password(
    command: CommandLine, tmp_path: Path
) -> None:
    address = f"http://me:pass-word@127.0.0.1:{free_port()}"
    ended = command(f"track.uri={address}", environment={"HYDRA_FULL_ERROR": "1"})

    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert "http://me:***@127.0.0.1" in ended.stderr
    assert "pass-word" not in ended.stderr + ended.stdout


def test_an_error_of_thousands_of_characters_is_one_short_line() -> None:
    said = in_one_line(RuntimeError("the first line\n" + 18_000 * "x"))

    assert said.startswith("the first line xxx")
    assert (len(said), said[-4:]) == (1000, " ...")


def test_what_cannot_be_encoded_is_a_question_mark_in_an_error() -> None:
    assert in_one_line(RuntimeError("file b\udcffad")) == "file b?ad"


def test_a_password_in_a_list_is_kept_in_no_checkpoint() -> None:
    cfg = OmegaConf.create({"data": {"mirrors": ["http://me:pass-word@host", "http://host"]}})

    assert kept_config(cfg, 1)["data.mirrors"] == ["http://me:***@host", "http://host"]
