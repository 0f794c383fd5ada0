"""Data sets: one file each, and what they share.

A data set is any callable that returns a `Data`; conf/data/NAME.yaml names it as ``_target_``.
"""

from cadence.data.loading import InMemoryLoader, loader
from cadence.data.tensors import Data, TensorData

__all__ = ["Data", "InMemoryLoader", "TensorData", "loader"]
