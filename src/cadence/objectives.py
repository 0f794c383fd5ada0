"""What a model is trained for: a mini-batch -> its items and the sum of their losses.

An item is what the loss averages over: a sample in classification and regression, a target token
in language modelling. Sums and counts, never means, are what makes a window's gradient exact: one
division, by the items truly in the window, comes at the end.

Losses that couple samples (contrastive losses, or a model with BatchNorm) are not the same under
any splitting into micro-batches; give such an objective ``couples_samples = True``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from cadence.data.batch import Batch, sample_count, tensors

HALF = (torch.bfloat16, torch.float16)

IGNORED = -100
"""The target that marks an item as absent, as in torch.nn.functional.cross_entropy."""

MOST_ITEMS = 2**53
"""Up to which float64 holds every whole number, so that sums of items are exact."""

Items: TypeAlias = int | float
"""How many items there are, or the sum of their weights."""


@runtime_checkable
class Objective(Protocol):
    """The contract between a loss and a window; any class with these two methods keeps it.

    A class may also have ``couples_samples = True`` (the loss of one sample depends on the others
    in its micro-batch) and the method of `ReportsTotals`.
    """

    def items(self, batch: Any) -> int | float | Tensor:
        """Return the items in a mini-batch, or their weights' sum; 0 = it takes no part in the
        update."""

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the sum, not the mean, of the losses of the items in a mini-batch, 0-d."""


@runtime_checkable
class ReportsTotals(Protocol):
    """An objective that reports more than its loss in an evaluation."""

    def totals(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return what evaluation reports, each summed over items; ``loss`` is among it."""


def checked_objective(objective: Any) -> Objective:
    """Return an objective, if it is one.

    Raises:
        TypeError: It has no ``items`` and ``total_loss``, as a loss of torch's has not.
    """
    if isinstance(objective, Objective):
        return objective
    name = getattr(objective, "__name__", type(objective).__name__)
    if callable(objective):
        example = f"MeanLoss(nn.{name}())" if hasattr(nn, name) else f"MeanLoss({name})"
        raise TypeError(
            f"{name} is a loss, and an objective has items and total_loss; wrap it: "
            f"cadence.objectives.{example}"
        )
    raise TypeError(
        f"{name} is no objective: it must have items(batch) and total_loss(model, batch)"
    )


def items_in(objective: Objective, batch: Batch) -> Items:
    """Return the items that an objective counts in a mini-batch, as a Python number.

    Raises:
        TypeError: It gave something else than a number, or a 0-d tensor of one.
        ValueError: The number is below 0, not finite, or too large to count exactly.
    """
    found: Any = objective.items(batch)
    number = found.item() if getattr(found, "ndim", None) == 0 else found
    said = f"{type(objective).__name__}.items gave {found!r}; it must return"
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if not is_number:
        raise TypeError(
            f"{said} the number of items or the sum of their weights, such as "
            "int((targets != -100).sum())"
        )
    if not 0 <= number <= MOST_ITEMS:  # NaN as well
        raise ValueError(f"{said} a finite number, at least 0 and at most 2**53")
    return int(number) if isinstance(number, Integral) else float(number)


def modules_of(objective: Objective) -> list[nn.Module]:
    """Return the modules that an objective is or holds, as a loss with parameters does."""
    if isinstance(objective, nn.Module):
        return [objective]
    found: list[nn.Module] = []
    for value in vars(objective).values() if hasattr(objective, "__dict__") else ():
        parts = value.values() if isinstance(value, dict) else value
        held = parts if isinstance(value, dict | list | tuple) else [value]
        found += [each for each in held if isinstance(each, nn.Module)]
    return found


def modules_beside(model: nn.Module, objective: Objective) -> list[nn.Module]:
    """Return the modules of an objective that are none of the model's."""
    of_model = {id(module) for module in model.modules()}
    return [module for module in modules_of(objective) if id(module) not in of_model]


def with_objective(model: nn.Module, objective: Objective) -> nn.Module:
    """Return a module of all that is trained, moved and kept: the model and what an objective has.

    Where the objective has no module beside the model's, it is the model itself.
    """
    others = modules_beside(model, objective)
    return nn.ModuleList([model, *others]) if others else model


class Classification:
    """Cross-entropy over classes; an item is a sample (or a pixel, where targets have pixels).

    Args:
        label_smoothing: Share of each target spread over all classes, in [0, 1).
        ignore_index: The target value that marks an item as absent.
        weight: The weight of each class, [classes], at least 0: then an item counts as much as its
            class weighs, in the loss and in the accuracy. None = each counts 1.

    A mini-batch is (inputs, targets): as a tuple, a list, a named tuple, a dict with these names,
    or any dict of two entries in this order. Targets are class indices, int64, [samples, *rest].
    The model maps inputs to logits [samples, classes, *rest].
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        ignore_index: int = IGNORED,
        weight: Sequence[float] | Float[Tensor, " classes"] | None = None,
    ) -> None:
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.weight = None if weight is None else torch.as_tensor(weight)

    def items(self, batch: Batch) -> Items:
        """Return the number of targets that are not ``ignore_index``, or the sum of their weights.

        Raises:
            ValueError: The mini-batch is not (inputs, targets).
        """
        _, targets = _inputs_and_targets(batch)
        return _weighed(targets, self.ignore_index, self.weight)

    def total_loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum of the items' cross-entropies, in nats.

        Raises:
            ValueError: The mini-batch is not (inputs, targets), or the targets are no whole numbers
                or of another shape than the logits without their classes.
        """
        inputs, targets = _inputs_and_targets(batch)
        return self._sum(_outputs(model, inputs), targets)

    def totals(self, model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the sums of ``loss`` (nats) and ``accuracy`` (right answers, or their weights).

        Raises:
            ValueError: As in `total_loss`.
        """
        inputs, targets = _inputs_and_targets(batch)
        logits = _outputs(model, inputs)
        loss = self._sum(logits, targets)
        right = (logits.argmax(1) == targets) & (targets != self.ignore_index)
        if self.weight is None:
            return {"loss": loss, "accuracy": right.sum().float()}
        return {"loss": loss, "accuracy": self.weight.to(targets.device)[targets[right]].sum()}

    def _sum(
        self, logits: Float[Tensor, "samples classes *rest"], targets: Int[Tensor, " samples *rest"]
    ) -> Float[Tensor, ""]:
        if targets.is_floating_point() or targets.dim() != logits.dim() - 1:
            raise ValueError(
                f"the targets are {targets.dtype} of shape {list(targets.shape)}, and classes are "
                "whole numbers, one for each sample; for numbers choose "
                "data.objective._target_=cadence.objectives.Regression"
            )
        logits = _at_least_float32(logits)
        return F.cross_entropy(
            logits,
            targets,
            weight=None if self.weight is None else self.weight.to(logits),
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
        return self._sum(_outputs(model, inputs), targets)

    def totals(self, model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the sums of ``loss`` (nats), ``bits_per_token`` and ``accuracy`` (right tokens).

        Raises:
            TypeError, ValueError: As in `total_loss`.
        """
        inputs, targets = _tokens(batch)
        logits = _outputs(model, inputs)
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
        outputs = _at_least_float32(_outputs(model, inputs))
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
        items: ``batch -> number``, what the loss averages over; None = samples, and with torch's
            own cross-entropy the targets that it does not ignore, by the weights of their classes.

    Raises:
        TypeError: ``mean_loss`` cannot be called.
        ValueError: It says by its ``reduction`` that it is no mean.
    """

    def __init__(
        self,
        mean_loss: Callable[[Any, Any], Tensor],
        items: Callable[[Batch], Items] | None = None,
    ) -> None:
        if not callable(mean_loss):
            raise TypeError(f"MeanLoss takes a loss that can be called, not {mean_loss!r}")
        reduction = _option(mean_loss, "reduction", "mean")
        if reduction not in MEANS:
            raise ValueError(
                f"MeanLoss multiplies a mean by its items, and {_named(mean_loss)} has "
                f'reduction="{reduction}"; leave it at "mean"'
            )
        self.mean_loss = mean_loss
        self._items = items or (self._divisor if _is_cross_entropy(mean_loss) else sample_count)

    def items(self, batch: Batch) -> Items:
        """Return the items the mean is taken over."""
        return self._items(batch)

    def total_loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean loss times the items.

        Raises:
            ValueError: The mini-batch is not (inputs, targets), or the loss is no single number.
        """
        inputs, targets = _inputs_and_targets(batch)
        mean = self.mean_loss(_at_least_float32(_logits(model(inputs))), targets)
        if not isinstance(mean, Tensor) or mean.dim() != 0:
            raise ValueError(
                f"{_named(self.mean_loss)} gave {_described(mean)} to MeanLoss, which takes the "
                "mean over items, a 0-d tensor"
            )
        return mean * self.items(batch)

    def _divisor(self, batch: Batch) -> Items:
        """Return what torch's cross-entropy divides by: see ``torch.nn.CrossEntropyLoss``."""
        _, targets = _inputs_and_targets(batch)
        if targets.is_floating_point():  # shares of the classes, [samples, classes, *rest]
            return targets.numel() // targets.shape[1] if targets.dim() > 1 else targets.numel()
        ignored = _option(self.mean_loss, "ignore_index", IGNORED)
        return _weighed(targets, ignored, _option(self.mean_loss, "weight", None))


MEANS = ("mean", "batchmean", "elementwise_mean")
"""What torch's losses call a mean."""


def _is_cross_entropy(loss: Any) -> bool:
    if isinstance(loss, partial):
        return loss.func in (F.cross_entropy, F.nll_loss)
    return isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or loss in (
        F.cross_entropy,
        F.nll_loss,
    )


def _option(loss: Any, name: str, default: Any) -> Any:
    """Return an option that a loss was made with: an attribute, or a partial function's keyword."""
    if isinstance(loss, partial):
        return loss.keywords.get(name, default)
    return getattr(loss, name, default)


def _named(loss: Any) -> str:
    loss = loss.func if isinstance(loss, partial) else loss
    return str(getattr(loss, "__name__", type(loss).__name__))


def _described(value: Any) -> str:
    """Return what a value is that should have been one number."""
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _outputs(model: nn.Module, inputs: Any) -> Any:
    """Return a model's outputs: a tensor, or another value that is no collection.

    Raises:
        TypeError: It returned a collection without ``logits``.
    """
    outputs = _logits(model(inputs))
    if isinstance(outputs, tuple | list | Mapping) or outputs is None:
        raise TypeError(
            f"{type(model).__name__} returned a {type(outputs).__name__}, and this objective takes "
            "a tensor of logits; return it alone, name it logits, or write an objective that takes "
            "what the model returns"
        )
    return outputs


def _logits(outputs: Any) -> Any:
    """Return the ``logits`` of outputs that have them, as those of transformers, or their only
    tensor; else the outputs as they are."""
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else None
    logits = getattr(outputs, "logits", named)
    if isinstance(logits, Tensor):
        return logits
    is_one = isinstance(outputs, tuple | list) and len(outputs) == 1
    return outputs[0] if is_one and isinstance(outputs[0], Tensor) else outputs


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


def _weighed(
    targets: Num[Tensor, "..."], ignored: int, weight: Float[Tensor, " classes"] | None
) -> Items:
    """Return the number of targets that are not ignored, or the sum of their classes' weights."""
    if weight is None:
        return _count(targets, ignored)
    counted = targets[targets != ignored]
    return float(weight.to(targets.device).double()[counted].sum())


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
