"""A window whose micro-batch does not fit into memory is undone, and run again by smaller ones.

The window contract makes this possible: its gradient does not depend on the micro-batch's size.
"""

import logging
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from cadence.checkpoint.random_state import RandomState
from cadence.data.batch import Batch, elements_per_sample, rebatched, sample_count, samples_in
from cadence.engine.accumulation import Accumulated, Accumulator
from cadence.engine.device import device_of
from cadence.engine.private_torch import version_of
from cadence.objectives import items_in

T = TypeVar("T")

log = logging.getLogger(__name__)

_REFUSALS = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    r"could not create a primitive(?! descriptor)",  # oneDNN's, without a reason: most often this
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""Patterns of torch's messages of an allocation that failed."""

_BYTES = re.compile(r"(\d+) bytes|allocate ([\d.]+ [KMGT]iB)")


class DoesNotFitError(MemoryError):
    """A single sample's forward and backward does not fit into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        re.search(refusal, str(error)) for refusal in _REFUSALS
    )


class MemoryLimit:
    """The largest micro-batch that is known to fit, learned from those that did not.

    It is kept in numbers (the elements of a micro-batch's tensors), so that shorter inputs may have
    more samples in one.
    """

    def __init__(self) -> None:
        self._elements: int | None = None
        self.refusals = 0
        """How often something did not fit."""

    def within(self, minibatches: Sequence[Batch], size: int | None) -> int | None:
        """Return a micro-batch size that may fit: ``size`` itself, or the largest allowed.

        Args:
            minibatches: What is to be run.
            size: Samples per forward and backward; None = one mini-batch.

        Returns:
            Samples per forward and backward; None = one mini-batch, of which each may fit.
        """
        if self._elements is None:
            return size
        samples = max(map(sample_count, minibatches))
        per_sample = elements_per_sample(minibatches)
        most = max(1, self._elements // max(1, per_sample))
        if size is None:
            return None if samples <= most else most
        return min(size, most)

    def lower(
        self, minibatches: Sequence[Batch], size: int | None, error: str, may_split: bool = True
    ) -> None:
        """Learn that a micro-batch did not fit.

        Args:
            minibatches: What was run.
            size: The samples per forward and backward that did not fit; None = one mini-batch.
            error: What the allocator said.
            may_split: Whether mini-batches may be split.

        Raises:
            DoesNotFitError: There is nothing smaller to try.
        """
        total = samples_in(minibatches)
        samples = max(map(sample_count, minibatches)) if size is None else min(size, total)
        asked = _BYTES.search(error)
        said = f"{asked[0]} asked for" if asked else " ".join(error.split())
        what = f" ({said})" if said else ""
        if samples <= 1 or not may_split:
            cannot = "" if may_split else ", and what couples its samples keeps it from being split"
            raise DoesNotFitError(
                f"a forward and backward of {samples} sample{'s' * (samples != 1)} does not fit "
                f"into memory{what}{cannot}; try a smaller model, shorter inputs, "
                f"{'' if may_split else 'a smaller data.batch_size, '}or device.precision=bf16"
            )
        self.refusals += 1
        half = samples // 2
        self._elements = half * elements_per_sample(minibatches)
        log.warning(
            "%d samples per forward and backward do not fit into memory%s; at most %d from here "
            "on, with the same gradient",
            samples,
            what,
            half,
        )


class RecoveringAccumulator:
    """`cadence.engine.accumulation.Accumulator` that goes on by smaller micro-batches out of
    memory.

    What a failed try left behind is undone: gradients, the random states of torch (on the host and
    the model's device), numpy and Python, and the model's buffers, such as running means. So the
    weights are those of a run that never failed. ``.grad`` must be empty before each window.

    Args:
        accumulate: What runs a window.
        model: The model it runs.
        limit: What is known to fit; it learns from what does not.
        may_split: Whether mini-batches may be split.
    """

    def __init__(
        self, accumulate: Accumulator, model: nn.Module, limit: MemoryLimit, *, may_split: bool
    ) -> None:
        self._accumulate = accumulate
        self._limit = limit
        self._may_split = may_split
        self._undo = _Undo(model)
        self.size: int | None = None
        """Samples per forward and backward of the last window; None = one mini-batch."""

    def __call__(
        self,
        window: Sequence[Batch],
        size: int | None,
        *,
        items: float | None = None,
        measured: Sequence[nn.Parameter] = (),
    ) -> Accumulated:
        """Accumulate one window.

        Args:
            window: Its mini-batches.
            size: Samples per forward and backward; None = one mini-batch.
            items: As in `cadence.engine.accumulation.Accumulator`.
            measured: As in `cadence.engine.accumulation.Accumulator`.

        Raises:
            DoesNotFitError: Not even one sample fits.
        """
        if samples_in(window) == 0:
            self._undo.forget()
            return self._accumulate(window, items=items)
        while True:
            self.size = self._limit.within(window, size)
            self._undo.mark()
            try:
                accumulated = self._accumulate(window, self.size, items=items, measured=measured)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                refused = str(error)
            else:
                if not self._undo.is_sifted and self._has_item(window):
                    self._undo.sift()
                return accumulated
            # Only here has the error let go of the failed pass and its tensors.
            self._undo.back()
            self._limit.lower(window, self.size, refused, self._may_split)

    def _has_item(self, window: Sequence[Batch]) -> bool:
        return any(items_in(self._accumulate.objective, batch) for batch in window)

    def put_buffers_back(self) -> None:
        """Let the model's buffers be as they were before the last window."""
        self._undo.buffers_back()


def in_parts(run: Callable[[Batch], T], batch: Batch, limit: MemoryLimit) -> list[T]:
    """Return what a function returns of a mini-batch, or of parts of it that fit into memory.

    Args:
        run: What leaves nothing behind where it fails, such as a forward for evaluation.
        batch: The mini-batch.
        limit: What is known to fit; it learns from what does not.

    Raises:
        DoesNotFitError: Not even one sample fits.
    """
    while True:
        size = limit.within((batch,), None)
        try:
            return [run(part) for part in ((batch,) if size is None else rebatched((batch,), size))]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            refused = str(error)
        limit.lower((batch,), size, refused)


class _Undo:
    """What a window changes before its update, so that it can be changed back.

    Only buffers that the first window wrote to or replaced, and Python's and numpy's random states
    only if it drew from them, are copied for the ones after it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._device = device_of(model)
        self._buffers = _Buffers(model)
        self.is_sifted = False
        """Whether it is known which buffers and random states a window changes."""
        self._draws_by_torch_alone = False

    def mark(self) -> None:
        self._random = RandomState(self._device, of_torch_alone=self._draws_by_torch_alone)
        self._buffers.mark()

    def sift(self) -> None:
        """Find out what the window since the mark has changed, as those after it will."""
        self._buffers.sift()
        self._draws_by_torch_alone = self._random.is_torchs_alone()
        self.is_sifted = True

    def forget(self) -> None:
        self._buffers.forget()

    def back(self) -> None:
        self._random.restore()
        if self._device.type != "cpu":
            torch.get_device_module(self._device).empty_cache()
        self.buffers_back()
        for parameter in self._parameters:
            parameter.grad = None

    def buffers_back(self) -> None:
        self._buffers.back()


class _Buffers:
    """The buffers of a model, as they were at a mark."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copies: list[_Copy] | None = None  # None = nothing to undo
        self._changing: list[_Slot] | None = None  # None = any may change

    def mark(self) -> None:
        slots = self._present() if self._changing is None else self._changing
        self._copies = [_Copy(slot) for slot in slots]

    def sift(self) -> None:
        changed = [copy.slot for copy in self._copies or () if copy.is_changed()]
        self._changing = changed + self._new()

    def forget(self) -> None:
        self._copies = None

    def back(self) -> None:
        if self._copies is None:
            return
        if self._changing is None:
            for module, name in self._new():
                setattr(module, name, None)
        for copy in self._copies:
            copy.back()

    def _present(self) -> "list[_Slot]":
        return [
            _Slot(module, name)
            for module in self._model.modules()
            for name, _ in module.named_buffers(recurse=False, remove_duplicate=False)
        ]

    def _new(self) -> "list[_Slot]":
        """Return the buffers that were None at the mark, which torch does not name."""
        marked = {copy.slot for copy in self._copies or ()}
        return [slot for slot in self._present() if slot not in marked]


class _Slot(NamedTuple):
    """Where a buffer is."""

    module: nn.Module
    name: str


class _Copy:
    """A buffer of a module as it was: which tensor, its numbers and its version."""

    def __init__(self, slot: _Slot) -> None:
        self.slot = slot
        self._buffer: Tensor | None = getattr(*slot)
        self._was = None if self._buffer is None else self._buffer.clone()
        self._version = None if self._buffer is None else version_of(self._buffer)

    def is_changed(self) -> bool:
        if self._buffer is not getattr(*self.slot):
            return True
        if self._buffer is None or self._was is None:
            return False
        is_written = self._version is None or version_of(self._buffer) != self._version
        return is_written or not torch.equal(self._buffer, self._was)

    def back(self) -> None:
        setattr(*self.slot, self._buffer)
        if self._buffer is None or self._was is None:
            return
        if not torch.equal(self._buffer, self._was):  # an expanded one, which takes no copy, is
            with torch.no_grad():
                self._buffer.copy_(self._was)
