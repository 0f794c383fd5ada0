"""Where a run goes on: its folder, its overrides, and what may differ from then.

python -m src.train resume=mlruns/runs/2026-11-22/16-27-19-882000
python -m src.train resume=last trainer.max_epochs=80
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cadence.cli.conf_folders import with_conf_folders
from cadence.config.changes import changes
from cadence.config.checks import quoted
from cadence.config.errors import ConfigError
from cadence.config.keys import is_marked
from cadence.config.schema import RESUMABLE
from cadence.system.atomic_write import copy_atomically, write_atomically
from cadence.system.secrets import HIDDEN, redacted

if TYPE_CHECKING:
    from cadence.checkpoint.state import State

log = logging.getLogger(__name__)

KEY = "resume="
KEPT = ".hydra"
"""What a run keeps of its config, in its folder."""

CONFIG = "config.yaml"
"""The config of a run as it is, in its folder, for a person to read."""

OVERRIDES = f"{KEPT}/overrides.yaml"

WINDOW = "distributed.window"
"""Mini-batches per update, all processes together, as a checkpoint keeps it beside the config."""


def with_resume(arguments: Sequence[str], runs: Path) -> list[str]:
    """Return a command line that goes on where ``resume=`` says.

    The overrides that the run began with come first, and its own folder, so that those given now
    win. Config files are looked for where the run's were.

    Args:
        arguments: What the user typed.
        runs: Where the run folders are, for ``resume=last``.

    Raises:
        ConfigError: There is no such run.
    """
    given = [argument for argument in arguments if argument.startswith(KEY)]
    wanted = given[-1].removeprefix(KEY) if given else "null"
    if wanted in ("null", ""):
        return with_conf_folders(arguments)
    folder = run_folder("resume", wanted, runs)
    now = [argument for argument in arguments if argument not in given]
    before = began_with(folder)
    for key, _, value in (override.partition("=") for override in before):
        if HIDDEN in value and not any(word.startswith(f"{key}=") for word in now):
            raise ConfigError(
                f"{KEY}{wanted}: the secret in {key} is kept nowhere; give {key}= again"
            )
    own = f"hydra.run.dir={quoted(folder)}"
    return with_conf_folders([*before, own, *now, f"{KEY}{quoted(folder)}"], folder)


def run_folder(key: str, wanted: str, runs: Path) -> Path:
    """Return the folder of a run.

    Args:
        key: What an error calls it.
        wanted: Its path, or ``last``: the run that was started last.
        runs: Where the run folders are, for ``last``.

    Raises:
        ConfigError: There is no such run.
    """
    if wanted == "last":
        overrides = sorted(runs.glob(f"*/*/{OVERRIDES}"), key=lambda file: file.stat().st_mtime)
        if not overrides:
            raise ConfigError(f"{key}=last: there is no run in {runs} yet; give a run's folder")
        return overrides[-1].parents[1]
    folder = Path(wanted.strip("'\"")).absolute()
    if not (folder / OVERRIDES).is_file():
        raise ConfigError(
            f"{key}={wanted}: {folder} is no run folder (it has no {OVERRIDES}); give the folder "
            "of a run, or last"
        )
    return folder


def began_with(folder: Path) -> list[str]:
    """Return the overrides that a run began with.

    Raises:
        ConfigError: There are others among them than Hydra keeps there, which could run code.
    """
    overrides = [str(override) for override in OmegaConf.load(folder / OVERRIDES)]
    for override in overrides:
        if override.lstrip("+~").startswith(("-", "hydra")):
            raise ConfigError(
                f"{folder / OVERRIDES}: {override} is no override of a run; take it out"
            )
    return [override for override in overrides if not override.startswith(KEY)]


def check_changes(state: "State", now: Mapping[str, Any]) -> None:
    """Say what differs from the config that a run began with, and refuse what may not.

    Raises:
        ConfigError: It would be another training.
    """
    was = {key: value for key, value in state.config.items() if key != WINDOW}
    of_then = {key: now[key] for key in now if key in was or not key.startswith("distributed.")}
    changed = list(changes(was, of_then))
    refused = [change for change in changed if not _may_change(change)]
    if refused:
        raise ConfigError(
            f"resume: it would be another training ({'; '.join(refused)}); give what the run began "
            "with, or begin a new one without resume="
        )
    for change in changed:
        if not change.startswith(("resume", "track.")):
            log.warning("resume: %s", change)


def _may_change(change: str) -> bool:
    """Return whether a run may go on with a change, in words that begin with the key."""
    return is_marked(change.partition(": ")[0], RESUMABLE)


def where_a_trial_goes_on(folder: Path, there: str) -> str | None:
    """Return its own folder, if its engine had it begun there before; None = it begins."""
    from cadence.checkpoint.folder import has_begun
    from cadence.tracking.metrics_file import FILE as JOURNAL

    is_own = Path(there) == folder
    if has_begun(folder) or (is_own and (folder / JOURNAL).exists()):
        return str(folder)
    return None if is_own else there


def state_to_go_on_from(resume: str | None, kept: Mapping[str, Any]) -> "State | None":
    """Return the state that ``resume=`` names; None = the run begins.

    Args:
        resume: The folder of a run; None = of none.
        kept: The config as checkpoints keep it.

    Raises:
        ConfigError: It would be another training.
        ValueError: No checkpoint there can be read.
    """
    if resume is None:
        return None
    from cadence.checkpoint.folder import FOLDER, has_begun, latest

    if not has_begun(Path(resume)):
        log.warning("resume=%s: no checkpoint was saved there yet; it begins", resume)
        return None
    state = latest(Path(resume) / FOLDER)
    check_changes(state, kept)
    return state


def take_over(folder: Path, cfg: DictConfig, *, begins: bool) -> None:
    """Let a folder be that of a run which nothing refuses any more: its config is kept there.

    Each file is redacted, and whole or not at all.

    Args:
        folder: The run's folder.
        cfg: Its config.
        begins: Whether the run begins: then what is left there is another run's, and goes.

    Raises:
        OSError: The disk does not take it.
    """
    from cadence.checkpoint.folder import forget
    from cadence.metrics.summary import FILE as SUMMARY

    if begins:
        forget(folder)
        (folder / SUMMARY).unlink(missing_ok=True)
    resolved = OmegaConf.to_yaml(cfg, resolve=True)
    write_atomically(folder / CONFIG, redacted(resolved))
    (folder / KEPT).mkdir(exist_ok=True)
    hydra_config = HydraConfig.instance().cfg
    files = {"config": cfg, "hydra": hydra_config, "overrides": HydraConfig.get().overrides.task}
    for name, told in files.items():
        write_atomically(folder / KEPT / f"{name}.yaml", redacted(OmegaConf.to_yaml(told)))


def take_along(there: Path, here: Path) -> None:
    """Copy numbers and best model of a run that goes on elsewhere, as an interrupted trial does.

    Raises:
        ConfigError: Another run is there.
    """
    from cadence.checkpoint.folder import BEST, FOLDER, has_begun
    from cadence.tracking.metrics_file import FILE as JOURNAL

    if here.samefile(there):
        return
    if has_begun(here):
        raise ConfigError(
            f"hydra.run.dir={here}: another run is there; choose a new folder, or go on with that "
            f"run by resume={here}"
        )
    (here / FOLDER).mkdir(exist_ok=True)
    for name in (JOURNAL, f"{FOLDER}/{BEST}"):
        if (there / name).exists():
            copy_atomically(there / name, here / name)
