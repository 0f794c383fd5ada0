"""A model, its optimizer and its loss as Lightning wants them, and a clock of its epochs."""

import logging
import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any

import lightning
from torch import Tensor, nn
from torch.optim import Optimizer


class Module(lightning.LightningModule):
    """A model trained with a mean loss."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, mean_loss: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self._optimizer = optimizer
        self._mean_loss = mean_loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of a mini-batch, 0-d."""
        inputs, targets = batch
        return self._mean_loss(self.model(inputs), targets)

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer."""
        return self._optimizer


class EpochSeconds(lightning.Callback):
    """The time of the last epoch, from its start until the device has done all of it.

    Args:
        synchronise: What waits for the device.
    """

    def __init__(self, synchronise: Callable[[], None]) -> None:
        self._synchronise = synchronise
        self.seconds = 0.0
        self._started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._synchronise()
        self._started = perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop the clock."""
        self._synchronise()
        self.seconds = perf_counter() - self._started


def silence() -> None:
    """Keep the peers' banners and advice out of the table."""
    warnings.filterwarnings("ignore", module=r"(lightning|accelerate|torch)(\.|$)")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
