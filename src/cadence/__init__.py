"""cadence: PyTorch training with the mini-batches per update as an exact, first-class dial.

    from cadence import Callback, Trainer, accumulate, windows

The names are loaded when first used, so that a command line that only prints its help does not
wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadence.engine.accumulation import accumulate
    from cadence.plan.window import windows
    from cadence.training.callback import Callback
    from cadence.training.trainer import Trainer

__all__ = ["Callback", "Trainer", "accumulate", "windows"]


def __getattr__(name: str) -> Any:
    modules = {
        "Callback": "training.callback",
        "Trainer": "training.trainer",
        "accumulate": "engine.accumulation",
        "windows": "plan.window",
    }
    if name not in modules:
        raise AttributeError(f"module 'cadence' has no attribute {name!r}")
    return getattr(import_module(f"cadence.{modules[name]}"), name)
