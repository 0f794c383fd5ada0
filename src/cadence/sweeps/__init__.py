"""A search over runs: an Optuna study, its Pareto front and its report.

``definition`` is what a study searches and ``points`` its space; ``study`` opens a study and closes
what a dead sweep left; ``next_points`` chooses what runs next; ``locks`` keep a second process out.
``trials`` reads a study, ``pareto_front`` and ``knee`` compare its points, ``prediction`` checks
their throughputs, and ``report``, ``figures`` and ``printed`` show the answer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadence.sweeps.report import Report, load, write_report

_FILES = {"Report": "report", "load": "report", "write_report": "report"}

__all__ = ["Report", "load", "write_report"]


def __getattr__(name: str) -> Any:
    """Import a public name where it is used: Optuna and matplotlib take seconds to import."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
