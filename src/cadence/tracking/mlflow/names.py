"""What MLflow documents of the names and texts that it takes; nothing here imports MLflow."""

import logging
import posixpath
import re
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

NAME_LENGTH = 250
"""Characters of the name of a param, tag or metric."""

PARAM_LENGTH = 6000
"""Characters of a param's value."""

BATCH = 100
"""Params, or tags, of one ``log_batch``."""

PARENT = "mlflow.parentRunId"
"""The tag that makes a run the child of another."""

_NAME = re.compile(r"[/\w.\- :]*")


@cache
def can_be_named(key: str, kind: str) -> bool:
    """Return whether MLflow takes a param or metric of this name; one it does not is told once."""
    takes = (
        len(key) <= NAME_LENGTH
        and _NAME.fullmatch(key) is not None
        and posixpath.normpath(key) == key
        and not key.startswith(("/", ".."))
        and key != "."
    )
    if not takes:
        log.warning("%s: MLflow takes no %s of this name; it stays in the run folder", key, kind)
    return bool(takes)


def param_text(value: Any) -> str:
    """Return a param's value as MLflow takes it: None is null, and nothing is too long."""
    return "null" if value is None else str(value)[:PARAM_LENGTH]
