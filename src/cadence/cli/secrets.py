"""Passwords that a user types: into the environment, and out of what a multirun writes and sends.

    python -m src.train --multirun hydra/launcher=submitit_slurm track.uri=http://me:pass@host ...

A launcher writes the overrides into the files of its jobs, and a sweeper into the study. They get
``track.uri=${oc.env:CADENCE_TRACK_URI}``, which each job reads in its own environment: launchers
hand the environment on.
"""

import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from cadence.system.secrets import redacted

MULTIRUN = {"-m", "--multirun"}


def with_secrets_in_environment(arguments: Sequence[str]) -> list[str]:
    """Return a command line without secrets, if it is a multirun's; else as it is.

    Args:
        arguments: What the user typed.
    """
    if not MULTIRUN & set(arguments):
        return list(arguments)
    return [_from_environment(one) if redacted(one) != one else one for one in arguments]


def _from_environment(argument: str) -> str:
    value = OverridesParser.create().parse_override(argument).value()
    if not isinstance(value, str):
        return argument
    key, _, _ = argument.partition("=")
    name = "CADENCE_" + re.sub(r"\W+", "_", key).strip("_").upper()
    os.environ[name] = value
    return f"{key}=${{oc.env:{name}}}"
