"""Any error of a run as one line that names the key, the value and the remedy."""

import dataclasses
import difflib
import errno
import re
import sysconfig
import traceback
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cadence.config.keys import keys, meaning
from cadence.config.schema import Config
from cadence.system.secrets import in_one_line, redacted


class ConfigError(ValueError):
    """The user asked for something impossible; the message names key, value and remedy."""


class SweepError(ConfigError):
    """No trial of the sweep could have a result; the message says why and what to do."""


def explained(error: Exception) -> str:
    """Return any error of a run as one line that names the key, the value and the remedy."""
    text = str(error)
    missing = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if missing:
        group, option = missing.groups()
        listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)
        options = listed.group(1).split() if listed else []
        return f"{group}={option}: no such option; choose one of {', '.join(options)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        added = re.search(r"To append to your config use (.*)", text)
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
        is_open = unknown.group(1).startswith("hydra.") or _is_users_own(cause)
        hint = f"; to add it, give {added.group(1)}" if is_open and added else ""
        return unknown_key(unknown.group(1), cause) + hint
    merged = re.search(r"Error merging override (\S+?)=(.*)", text)
    if merged:
        key, value = merged.groups()
        words = meaning(key)
        problem = f"must be {words}" if words else in_one_line(error.__cause__ or error)
        return f"{key}={value}: {problem}"
    removed = re.search(r"Error merging override ~(\S+)", text)
    if removed:
        return f"~{removed.group(1)}: a run needs this key; give it a value instead"
    if "Config group override must be a string or a list" in text:
        return "a config group is null; give one of its options, see python -m src.train --help"
    return _explained_beyond_config(error)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def _explained_beyond_config(error: Exception) -> str:
    """Return an error that no key of the config is to blame for; one that is ours says it all."""
    if isinstance(error.__cause__, OSError) and str(error).startswith("Unable to configure"):
        return _explained_beyond_config(error.__cause__)  # logging's own error names no file
    if isinstance(error, OSError) and error.errno in (*DISK_FULL, *NOT_WRITABLE):
        freed = "free some space, or " if error.errno in DISK_FULL else ""
        where = f"{error.filename}: " if error.filename else ""
        return (
            f"{where}{error.strerror}; {freed}choose another folder by hydra.run.dir= (of a sweep: "
            "hydra.sweep.dir=)"
        )
    from_worker = _from_worker(error)
    if from_worker:
        return from_worker
    ours = isinstance(error, ValueError | OSError | MemoryError) or type(
        error
    ).__module__.startswith(("cadence.", "src.", "hydra.", "omegaconf."))
    if ours:
        return in_one_line(error)
    line = _users_line(error)
    at = f"{line}; " if line else ""
    return f"{type(error).__name__}: {in_one_line(error)} ({at}HYDRA_FULL_ERROR=1 shows where)"


WORKER = re.compile(r"Caught \w+ in (?:DataLoader worker process \d+|pin memory thread[^.]*)\.\n")
"""How torch begins the text of an error that a loading process had, its traceback after it."""

FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _from_worker(error: Exception) -> str | None:
    """Return an error of a loading process without its traceback; None = it is none."""
    text = str(error)
    if not WORKER.match(text):
        return None
    last = text.strip().splitlines()[-1]
    frames = [(file, int(line)) for file, line in FRAME.findall(text)]
    where = next((frame for frame in reversed(frames) if _is_users(frame[0])), None)
    at = f", {Path(where[0]).name}:{where[1]}" if where else ""
    return f"{redacted(last)} (in a loading process{at})"


def _users_line(error: BaseException) -> str | None:
    """Return the file and the line of the user's own code that an error came from, if any did."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if _is_users(frame.filename)), None)
    return f"{Path(where.filename).name}:{where.lineno}" if where else None


def _is_users(file: str) -> bool:
    """Return whether a file is neither Python's, nor an installed package's, nor cadence's."""
    others = (*sysconfig.get_paths().values(), str(Path(__file__).parents[1]))
    return not file.startswith(("<", *others)) and Path(file).parent.name != "src"


LIKENESS = 0.7
"""How alike two names must be, from 0 to 1, for the one to be meant by the other."""


def unknown_key(key: str, lacking: OmegaConfBaseException | None = None) -> str:
    """Return that there is no such key, and the one that was meant or where to look.

    Args:
        key: The dotted key that was given.
        lacking: Names the composed node that lacks the key; None means that the schemas tell.
    """
    group, _, _ = key.partition(".")
    if group == "hydra":
        return f"{key}: there is no such key"
    if key in keys():
        return f"{key}: the chosen option of {group} has no such key; see --cfg job {group}=NAME"
    above, name, names = _apart(key, lacking)
    near = difflib.get_close_matches(name, names, n=1, cutoff=LIKENESS)
    hint = f"did you mean {above}{near[0]}?" if near else "see python -m src.train --cfg job"
    return f"{key}: there is no such key; {hint}"


def _apart(key: str, lacking: OmegaConfBaseException | None) -> tuple[str, str, list[str]]:
    """Return a key's known beginning, the name that is unknown there, and the names that are."""
    if lacking is not None and isinstance(lacking.parent_node, DictConfig):
        inside, dot, name = str(lacking.full_key).rpartition(".")
        return f"{inside}{dot}", name, [str(known) for known in lacking.parent_node]
    group, dot, name = key.rpartition(".")
    if not dot:
        return "", key, [field.name for field in dataclasses.fields(Config)]
    above = f"{group}."
    return above, name, [known.removeprefix(above) for known in keys() if known.startswith(above)]


def _is_users_own(lacking: OmegaConfBaseException | None) -> bool:
    """Return whether the node that lacks a key has no schema, so that any key can be added."""
    return (
        lacking is not None
        and isinstance(lacking.parent_node, DictConfig)
        and OmegaConf.get_type(lacking.parent_node) is dict
    )
