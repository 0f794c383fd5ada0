"""Any error of a run as one line that names the key, the value and the remedy."""

import dataclasses
import difflib
import errno
import re

from cadence.config.keys import keys, meaning
from cadence.config.schema import Config
from cadence.system.secrets import in_one_line


class ConfigError(ValueError):
    """The user asked for something impossible; the message names key, value and remedy."""


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
        is_hydras = unknown.group(1).startswith("hydra.") and added
        hint = f"; to add it, give {added.group(1)}" if is_hydras and added else ""
        return unknown_key(unknown.group(1)) + hint
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
    ours = isinstance(error, ValueError | OSError | MemoryError) or type(
        error
    ).__module__.startswith(("cadence.", "src.", "hydra.", "omegaconf."))
    if ours:
        return in_one_line(error)
    return f"{type(error).__name__}: {in_one_line(error)} (HYDRA_FULL_ERROR=1 shows where)"


def unknown_key(key: str) -> str:
    """Return that there is no such key, and the one that was meant or where to look."""
    group, _, _ = key.partition(".")
    if group == "hydra":
        return f"{key}: there is no such key"
    if key in keys():
        return f"{key}: the chosen option of {group} has no such key; see --cfg job {group}=NAME"
    if key == group:
        near = difflib.get_close_matches(key, [field.name for field in dataclasses.fields(Config)])
    else:
        near = difflib.get_close_matches(key, [k for k in keys() if k.startswith(f"{group}.")])
    hint = f"did you mean {near[0]}?" if near else "see python -m src.train --cfg job"
    return f"{key}: there is no such key; {hint}"
