"""A schedule of step_size on the command line: the one that is given last holds as a whole.

Hydra merges a dict into one that is there already: those of a recipe, of a run that goes on, and of
the command line would become one schedule that nobody asked for. It cannot merge into a number.
"""

import re
from collections.abc import Sequence

NO_SCHEDULE = "++trainer.step_size=1"
"""The override after which there is nothing to merge with; a sweep knows it from the next one."""

_STEP_SIZE = re.compile(r"\+{0,2}trainer\.step_size=.*", re.DOTALL)


def with_one_schedule(arguments: Sequence[str]) -> list[str]:
    """Return a command line whose last schedule of step_size replaces all others.

    Args:
        arguments: What the user typed, after the overrides of the run that goes on, if one does.
    """
    given = [number for number, word in enumerate(arguments) if _STEP_SIZE.fullmatch(word)]
    if not given or "{" not in arguments[given[-1]]:
        return list(arguments)
    *earlier, last = given
    before = [word for number, word in enumerate(arguments[:last]) if number not in earlier]
    return [*before, NO_SCHEDULE, *arguments[last:]]
