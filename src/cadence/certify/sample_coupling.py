"""Which module mixes the samples of a micro-batch: it computes them otherwise in other company."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cadence.certify.relative_error import difference, norm
from cadence.certify.trial_passes import TrialPasses, tensors_in
from cadence.data.batch import Batch, rebatched, sample_count


class Coupling(NamedTuple):
    """Whether a module's outputs depend on the split."""

    module: str | None
    """The path of the first one that computes the same samples otherwise; None = none does."""
    model_cleared: bool
    """Whether the model's own outputs were compared, and are the same."""


class _Call(NamedTuple):
    module: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def find_coupling(trial: TrialPasses, sizes: Sequence[int | None]) -> Coupling:
    """Compare what each module makes of the same samples, in one pass and in micro-batches."""
    batch = max(trial.one_pass, key=sample_count)
    whole = _calls(trial, batch)
    cleared = False
    for size in sizes:
        if size is None or size >= sample_count(batch):
            continue
        try:
            parts = [_calls(trial, part) for part in rebatched([batch], size)]
        except Exception:
            continue  # a size that cannot be computed says nothing about the others
        if any([call.module for call in part] != [call.module for call in whole] for part in parts):
            continue
        for call, *split in zip(whole, *parts, strict=True):
            outputs = _same(call.outputs, [part.outputs for part in split], trial.tolerance)
            inputs = _same(call.inputs, [part.inputs for part in split], trial.tolerance)
            if inputs and outputs is False:
                return Coupling(call.module, model_cleared=False)
            if call.module == "":
                cleared = outputs is True
    return Coupling(None, cleared)


def _calls(trial: TrialPasses, batch: Batch) -> list[_Call]:
    """Return what each module was given and returned, in the order in which they ended."""
    calls: list[_Call] = []

    def record(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs = [tensor.clone() for tensor in tensors_in((args, kwargs))]
        calls.append(_Call(name, inputs, [tensor.clone() for tensor in tensors_in(output)]))

    with ExitStack() as stack:
        for name, module in trial.model.named_modules():
            hook = module.register_forward_hook(partial(record, name), with_kwargs=True)
            stack.callback(hook.remove)
        trial.total(batch)
    return calls


def _same(whole: list[Tensor], parts: list[list[Tensor]], tolerance: float) -> bool | None:
    """Return whether the parts, put together, are the whole; None = shapes do not tell."""
    if any(len(part) != len(whole) for part in parts):
        return None
    verdicts = []
    of_samples = any(tensor.dim() for tensor in whole)
    for index, tensor in enumerate(whole):
        if of_samples and not tensor.dim():
            continue  # a loss beside the outputs is the objective's business
        joined = _joined(tensor, [part[index] for part in parts])
        verdicts.append(None if joined is None else _close(joined, tensor, tolerance))
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _joined(whole: Tensor, parts: list[Tensor]) -> Tensor | None:
    """Join the parts along the dimension that makes them as large as the whole; None = none does.

    What is no sample's, such as the positions of tokens, is as large in each part.
    """
    if all(part.shape == whole.shape for part in parts):
        return parts[0]
    for dim in range(whole.dim()):
        others = {part.movedim(dim, 0).shape[1:] for part in parts}
        if others == {whole.movedim(dim, 0).shape[1:]}:
            joined = torch.cat(parts, dim)
            return joined if joined.shape == whole.shape else None
    return None


def _close(found: Tensor, true: Tensor, tolerance: float) -> bool:
    return norm(difference(found, true)) <= tolerance * norm(true)
