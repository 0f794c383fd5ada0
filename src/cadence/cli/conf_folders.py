"""The folders of the user's own config files: typed, of the project, or of the run that goes on.

Each of them becomes part of ``hydra.searchpath``, which a run keeps in its .hydra/hydra.yaml.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cadence.config import project
from cadence.config.checks import quoted
from cadence.config.errors import ConfigError

KEPT = ".hydra/hydra.yaml"
"""The file of a run's folder that says where its config was looked for."""

SEARCH_PATH = "hydra.searchpath="

FLAGS = ("--config-dir", "-cd")

FILE = "file://"


def with_conf_folders(arguments: Sequence[str], run: Path | None = None) -> list[str]:
    """Return a command line whose one ``hydra.searchpath`` has all folders of config files.

    cadence's own conf/ comes before them, and in their order: what is typed, the run's, and the
    conf/ of the project.

    Args:
        arguments: What the user typed.
        run: The folder of the run that goes on or is evaluated; None means no run.

    Raises:
        ConfigError: A folder is not there.
    """
    rest, typed = _parted(arguments)
    missing = [place for place in typed if not _is_there(place)]
    if missing:
        raise ConfigError(f"--config-dir={missing[0].removeprefix(FILE)}: there is no such folder")
    places = [*typed, *(_kept_by(run, is_said=bool(typed)) if run else ())]
    own = project.own_conf()
    if own is not None:
        places.append(f"{FILE}{own}")
    if not places:
        return rest
    listed = ",".join(quoted(place) if _is_file(place) else place for place in _once(places))
    return [*rest, f"{SEARCH_PATH}[{listed}]"]


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line without folders, and the folders."""
    rest, places = [], []
    words = iter(arguments)
    for word in words:
        flag, _, value = word.partition("=")
        if flag in FLAGS:
            folder = value or next(words, "")
            places.append(f"{FILE}{Path(folder).absolute()}")
        elif word.startswith(SEARCH_PATH):
            found = OverridesParser.create().parse_override(word).value()
            places += [str(place) for place in (found if isinstance(found, list) else [found])]
        else:
            rest.append(word)
    return rest, places


def _kept_by(run: Path, *, is_said: bool) -> Iterator[str]:
    """Yield the folders that a run was composed from, but for cadence's own.

    Only folders are taken: a package, as ``pkg://`` names one, would be imported.

    Args:
        run: Its folder.
        is_said: Whether the user says where config files are: then a folder may be gone.

    Raises:
        ConfigError: A folder is gone, or lies in the run's folder, which others may have sent.
    """
    file = run / KEPT
    kept = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
    for place in OmegaConf.select(kept, "hydra.searchpath") or ():
        if not _is_file(str(place)):
            continue
        folder = Path(str(place).removeprefix(FILE)).resolve()
        if folder.is_relative_to(run.resolve()):
            raise ConfigError(f"{file}: {folder} is in the run's own folder; it is not looked at")
        if folder.is_dir():
            yield f"{FILE}{folder}"
        elif not is_said:
            raise ConfigError(
                f"{run}: the run's config is in {folder}, which is not there any more; say where "
                "it is by --config-dir="
            )


def _is_file(place: str) -> bool:
    return place.startswith((FILE, "/"))


def _is_there(place: str) -> bool:
    return not _is_file(place) or Path(place.removeprefix(FILE)).is_dir()


def _once(places: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(places))
