"""What a command that takes a config says of itself, before Hydra lists its groups and keys."""

from collections.abc import Sequence

from cadence.config import project

HELP = {"-h", "--help"}


def with_own_help(arguments: Sequence[str], words: str) -> list[str]:
    """Return a command line; one that asks for help has told a command's own words first.

    They take the place of those that conf/config.yaml has for ``src.train``.

    Args:
        arguments: What the user typed.
        words: What the command says of itself.
    """
    if not HELP & {*arguments}:
        return list(arguments)
    print(project.as_typed(words))
    given = [argument for argument in arguments if not argument.startswith("run=")]
    return [*given, "hydra.help.header="]
