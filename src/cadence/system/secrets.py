"""Passwords and tokens stay in memory; they are taken out where text leaves the process.

The exits: log records (`redact_logs`), the line or traceback that ends a command
(`cadence.cli.errors`), what a command prints of an address, files that Hydra writes
(`redact_files`), the config that a run and its checkpoints keep, a run's file and what MLflow is
sent of it (`cadence.tracking.run_file`), what a command or a sweep sends to MLflow without a run's
file, the errors that name a tracking address (`cadence.tracking.address`: who uses cadence from
Python has no other exit), and the errors that become part of a report (`in_one_line`).
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cadence.system.atomic_write import write_atomically

LONGEST_LINE = 1000
"""Characters of an error that a person is shown."""

HIDDEN = "***"
"""What stands where a secret was."""

_USER = re.compile(
    r"""
    (://[^\s:/?#"]*:) [^\s"]* @  # PASSWORD, up to the last @; a raw one may hold / and @
    | (?:(?<=http)|(?<=https)|(?<=http\\)|(?<=https\\)) (://) [^\s:/@?#"]+ @  # TOKEN alone
    """,
    re.VERBOSE,
)
"""Who asks, before the host of an address; Hydra writes : as \\:."""

_TOKEN = re.compile(
    r"""
    ((?: [?&;#] | %3F | %26 | %3B | %23 | \bodbc_connect\\?= )
     [\w.%-]*
     (?: pass | password | passwd | passphrase | pwd | secret | token | key | auth | credentials?
       | signature | sig )
     (?: \\?= | %3D ))
    (?: \{ [^}\s]* \} | %7B (?:(?!%7D)\S)* %7D | (?: (?!%26|%3B|%23) [^\s"'&;\#] )+ )
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""The value of a query parameter whose name says that it is secret; Hydra writes = as \\=, and an
ODBC connection within an address has its own parameters, encoded."""


_STATEMENT = re.compile(r" (\[SQL: .*\]|\(Background on this error at: \S+\))")
"""What SQLAlchemy says beyond the error itself."""


def redacted(text: str) -> str:
    """Return a text in which ``***`` stands for each password and token of an address.

    ``scheme://user:PASSWORD@host``, ``https://TOKEN@host`` and ``?token=TOKEN`` (also ``password``,
    ``auth``, ``secret``, ``key``, ``sig`` and such, and names that end so) are recognised, anywhere
    in the text. What only looks like one is hidden as well, such as a port that an @ follows in the
    same word.
    """
    without_users = _USER.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}@", text)
    return _TOKEN.sub(rf"\1{HIDDEN}", without_users)


def redacted_tree(value: Any) -> Any:
    """Return a tree of dicts, lists and tuples with each of its strings redacted."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_tree(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted_tree(part) for part in value)
    return value


def in_one_line(error: BaseException) -> str:
    """Return what an error says, in one line without secrets, nor the statement that failed.

    What cannot be encoded is a question mark there, and a line is cut that no person reads to its
    end: the log has all of it.
    """
    said = redacted(" ".join(str(error).split())) or type(error).__name__
    return shortened(_STATEMENT.sub("", said).encode(errors="replace").decode(), LONGEST_LINE)


def shortened(text: str, most: int) -> str:
    """Return a text, cut with `` ...`` where it has more characters than ``most``."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def with_its_type(error: BaseException) -> str:
    """Return an error's type and what it says, in one line without secrets."""
    return f"{type(error).__name__}: {in_one_line(error)}"


def redact_files(files: Iterable[Path]) -> None:
    """Rewrite the text files that hold a secret, each whole or not at all."""
    for file in files:
        text = file.read_text()
        clean = redacted(text)
        if clean != text:
            write_atomically(file, clean)


def redact_logs() -> None:
    """From now on let no log record of this process, tracebacks included, show a secret."""
    logging.setLogRecordFactory(_RedactedRecord)


class _RedactedRecord(logging.LogRecord):
    """A log record that is redacted where every handler formats it."""

    _trace: str | None = None

    def getMessage(self) -> str:  # noqa: N802
        """Return the message."""
        return redacted(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        """The formatted traceback, which the first formatter leaves here for the others."""
        return self._trace

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._trace = None if text is None else redacted(text)
