"""Data sets: one file each (arrays, digits, pydocs, synthetic, text), and what they share.

A data set is any callable that returns a `Data`; conf/data/NAME.yaml names it as ``_target_``.
tensors.py has `Data` and the data set in memory, split.py what is held out, loading.py the loaders,
worker.py the processes that load samples, and batch.py all that takes a mini-batch apart. The names
below are loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadence.data.loading import InMemoryLoader, loader
    from cadence.data.tensors import Data, TensorData

__all__ = ["Data", "InMemoryLoader", "TensorData", "loader"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cadence.data' has no attribute {name!r}")
    file = "tensors" if name in ("Data", "TensorData") else "loading"
    return getattr(import_module(f"cadence.data.{file}"), name)
