"""Random numbers of several processes that need not be kept to be drawn again.

At the start of each window every process sets its generators from the seed, its own number and how
far the run is. So a run that goes on draws what an undisturbed one draws, though only process 0's
checkpoint is kept, and dropout differs from process to process.
"""

import random
from typing import NamedTuple

import numpy as np
import torch


class RandomStreams(NamedTuple):
    """What the random numbers of one process come from."""

    seed: int
    """The run's seed, the same on every process."""
    rank: int
    """Which process, from 0."""

    def own(self, epoch: int, minibatches: int) -> None:
        """Set every generator to this process's numbers at a window.

        Args:
            epoch: Epochs ended.
            minibatches: Mini-batches of the epoch before the window.
        """
        _set_all(self.seed, epoch, minibatches, self.rank + 1)

    def common(self, epoch: int, minibatches: int) -> None:
        """Set every generator to what all processes share there, as to draw one common order."""
        _set_all(self.seed, epoch, minibatches, 0)

    def generator(self, epoch: int, minibatches: int) -> torch.Generator:
        """Return a generator of this process's own numbers there."""
        (seed,) = _mixed(self.seed, epoch, minibatches, self.rank + 1)
        return torch.Generator().manual_seed(seed)


def _set_all(*entropy: int) -> None:
    (seed,) = _mixed(*entropy)
    random.seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)
    torch.manual_seed(seed)


def _mixed(*entropy: int) -> list[int]:
    mixed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return [int(mixed[0] >> np.uint64(1))]
