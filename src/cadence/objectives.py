"""What a model is trained for: a mini-batch -> its items and the sum of their losses.

An item is what the loss averages over: a sample in classification and regression, a target token
in language modelling. Sums and counts, never means, are what makes a window's gradient exact: one
division, by the items truly in the window, comes at the end.

Losses that couple samples (contrastive losses, or a model with BatchNorm) are not the same under
any splitting into micro-batches; give such an objective ``couples_samples = True``.
"""

import math
from collections.abc import Callable, Mapping
from operator import index
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from cadence.data.batch import Batch, sample_count, tensors

HALF = (torch.bfloat16, torch.float16)

IGNORED = -100
"""The target that marks an item as absent, as in torch.nn.functional.cross_entropy."""


@runtime_checkable
class Objective(Protocol):
    """The contract between a loss and a window; any class with these two methods keeps it.

    A class may also have ``couples_samples = True`` (the loss of one sample depends on the others
    in its micro-batch) and the method of `ReportsTotals`.
    """

    def items(self, batch: Any) -> int:
        """Return the items in a mini-batch; 0 = it takes no part in the update."""

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the sum, not the mean, of the losses of the items in a mini-batch, 0-d."""


@runtime_checkable
class ReportsTotals(Protocol):
    """An objective that reports more than its loss in an evaluation."""

    def totals(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return what evaluation reports, each summed over items; ``loss`` is among it."""


def items_in(objective: Objective, batch: Batch) -> int:
    """Return the items that an objective counts in a mini-batch, as a Python number.

    Raises:
        TypeError: It gave something else than a whole number.
    """
    found = objective.items(batch)
    try:
        return index(found)
    except TypeError as error:
        raise TypeError(
            f"{type(objective).__name__}.items gave {found!r}; it must return a whole number, such "
            "as int((targets != -100).sum())"
        ) from error


class Classification:
    """Cross-entropy over classes; an item is a sample (or a pixel, where targets have pixels).

    Args:
        label_smoothing: Share of each target spread over all classes, in [0, 1).
        ignore_index: The target value that marks an item as absent.

    A mini-batch is (inputs, targets): as a tuple, a list, a named tuple, a dict with these names,
    or any dict of two entries in this order. Targets are class indices, int64, [samples, *rest].
    The model maps inputs to logits [samples, classes, *rest].
    """

    def __init__(self, label_smoothing: float = 0.0, ignore_index: int = IGNORED) -> None:
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def items(self, batch: Batch) -> int:
        """Return the number of targets that are not ``ignore_index``.

        Raises:
            ValueError: The mini-batch is not (inputs, targets).
        """
        _, targets = _inputs_and_targets(batch)
        return _count(targets, self.ignore_index)

    def total_loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum of the items' cross-entropies, in nats.

        Raises:
            ValueError: The mini-batch is not (inputs, targets), or the targets are no whole numbers
                or of another shape than the logits without their classes.
        """
        inputs, targets = _inputs_and_targets(batch)
        return self._sum(model(inputs), targets)

    def totals(self, model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the sums of ``loss`` (nats) and ``accuracy`` (right answers).

        Raises:
            ValueError: As in `total_loss`.
        """
        inputs, targets = _inputs_and_targets(batch)
        logits = model(inputs)
        loss = self._sum(logits, targets)
        right = ((logits.argmax(1) == targets) & (targets != self.ignore_index)).sum()
        return {"loss": loss, "accuracy": right.float()}

    def _sum(
        self, logits: Float[Tensor, "samples classes *rest"], targets: Int[Tensor, "samples *rest"]
    ) -> Float[Tensor, ""]:
        if targets.is_floating_point() or targets.dim() != logits.dim() - 1:
            raise ValueError(
                f"the targets are {targets.dtype} of shape {list(targets.shape)}, and classes are "
                "whole numbers, one for each sample; for numbers choose "
                "data.objective._target_=cadence.objectives.Regression"
            )
        return F.cross_entropy(
            _at_least_float32(logits),
            targets,
            reduction="sum",
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )


class LanguageModelling:
    """Cross-entropy of the next token; an item is a target token.

    Args:
        ignore_index: The target value that marks a token as absent (padding, a prompt).

    A mini-batch is one tensor of tokens [samples, context + 1], bare or the only one of a tuple,
    list or dict: all but the last are the inputs, all but the first the targets. Or it is (inputs,
    targets), each [samples, context], in any form that `Classification` takes. The model maps
    inputs to logits [samples, context, tokens].
    """

    def __init__(self, ignore_index: int = IGNORED) -> None:
        self.ignore_index = ignore_index

    def items(self, batch: Batch) -> int:
        """Return the number of target tokens that are not ``ignore_index``.

        Raises:
            TypeError: The mini-batch is not one.
            ValueError: It is neither tokens nor (inputs, targets).
        """
        _, targets = _tokens(batch)
        return _count(targets, self.ignore_index)

    def total_loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum of the target tokens' cross-entropies, in nats.

        Raises:
            TypeError: The mini-batch is not one.
            ValueError: It is neither tokens nor (inputs, targets), or the targets are no whole
                numbers.
        """
        inputs, targets = _tokens(batch)
        return self._sum(model(inputs), targets)

    def totals(self, model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the sums of ``loss`` (nats), ``bits_per_token`` and ``accuracy`` (right tokens).

        Raises:
            TypeError, ValueError: As in `total_loss`.
        """
        inputs, targets = _tokens(batch)
        logits = model(inputs)
        loss = self._sum(logits, targets)
        right = ((logits.argmax(-1) == targets) & (targets != self.ignore_index)).sum()
        return {"loss": loss, "bits_per_token": loss / math.log(2), "accuracy": right.float()}

    def _sum(
        self,
        logits: Float[Tensor, "samples context tokens"],
        targets: Int[Tensor, "samples context"],
    ) -> Float[Tensor, ""]:
        if targets.is_floating_point():
            raise ValueError(
                f"the targets are {targets.dtype} of shape {list(targets.shape)}, and tokens are "
                "whole numbers; convert them, such as by .long()"
            )
        return F.cross_entropy(
            _at_least_float32(logits).flatten(0, 1),
            targets.flatten(),
            reduction="sum",
            ignore_index=self.ignore_index,
        )


class Regression:
    """Squared error, averaged over a sample's outputs; an item is a sample.

    A mini-batch is (inputs, targets), in any form that `Classification` takes. Outputs and targets
    have one shape; [samples, 1] and [samples] are taken for the same.
    """

    def items(self, batch: Batch) -> int:
        """Return the number of samples.

        Raises:
            TypeError: The mini-batch is not one.
            ValueError: Its tensors differ in length.
        """
        return sample_count(batch)

    def total_loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum over samples of the mean squared error of each.

        Raises:
            ValueError: The mini-batch is not (inputs, targets), or the model's outputs and the
                targets differ in shape.
        """
        inputs, targets = _inputs_and_targets(batch)
        outputs = _at_least_float32(model(inputs))
        if targets.shape == (*outputs.shape, 1):
            targets = targets.squeeze(-1)
        if outputs.shape == (*targets.shape, 1):
            outputs = outputs.squeeze(-1)
        if outputs.shape != targets.shape:
            raise ValueError(
                f"the model's outputs {list(outputs.shape)} and the targets {list(targets.shape)} "
                "must have one shape; squared error would broadcast them"
            )
        squares = F.mse_loss(outputs, targets.to(outputs.dtype), reduction="none")
        return squares.flatten(1).mean(1).sum() if squares.dim() > 1 else squares.sum()


class MeanLoss:
    """Any plain mean loss, turned into an objective: its mean times its items is the sum.

    Args:
        mean_loss: ``(outputs, targets) -> 0-d tensor``, the mean over items, as
            ``torch.nn.CrossEntropyLoss()`` or a function of your own.
        items: ``batch -> int``, what the loss averages over; None = samples.
    """

    def __init__(
        self,
        mean_loss: Callable[[Any, Any], Tensor],
        items: Callable[[Batch], int] | None = None,
    ) -> None:
        self.mean_loss = mean_loss
        self._items = items or sample_count

    def items(self, batch: Batch) -> int:
        """Return the items the mean is taken over."""
        return self._items(batch)

    def total_loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean loss times the items.

        Raises:
            ValueError: The mini-batch is not (inputs, targets).
        """
        inputs, targets = _inputs_and_targets(batch)
        return self.mean_loss(_at_least_float32(model(inputs)), targets) * self.items(batch)


def _inputs_and_targets(batch: Batch) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) and isinstance(batch, Mapping):
        if "inputs" in batch and "targets" in batch:
            return batch["inputs"], batch["targets"]
        batch = tuple(batch.values())
    if isinstance(batch, Tensor) or len(batch) != 2:
        found = "one tensor" if isinstance(batch, Tensor) else f"{len(batch)} tensors"
        raise ValueError(f"this objective takes mini-batches of (inputs, targets), not {found}")
    inputs, targets = batch
    return inputs, targets


def _tokens(batch: Batch) -> tuple[Int[Tensor, "samples context"], Int[Tensor, "samples context"]]:
    found = tensors(batch)
    if len(found) == 1:
        return found[0][:, :-1], found[0][:, 1:]
    return _inputs_and_targets(batch)


def _count(targets: Num[Tensor, "..."], ignored: int) -> int:
    # Most mini-batches hold no ignored target, and the smallest target tells in one pass.
    if targets.numel() > 0 and targets.min().item() > ignored:
        return targets.numel()
    return int(torch.count_nonzero(targets != ignored))


def _at_least_float32(outputs: Any) -> Any:
    """Return outputs in float32 where they are in half precision; else as they are."""
    if isinstance(outputs, Tensor) and outputs.dtype in HALF:
        return outputs.float()
    return outputs
