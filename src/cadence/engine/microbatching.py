"""How a window's forward and backward passes are run: fast, within memory, and never re-splitting
what must stay together.
"""

import logging
from collections.abc import Sequence

import torch
from torch import nn
from torch.amp import GradScaler

from cadence.data.batch import Batch, sample_count, samples_in
from cadence.engine.accumulation import Accumulated, Accumulator, Summed, checked_microbatch_size
from cadence.engine.autotune import Auto, Tuner
from cadence.engine.coupling import check_boundaries, coupling
from cadence.engine.noise_scale import is_measured
from cadence.engine.out_of_memory import MemoryLimit, RecoveringAccumulator
from cadence.engine.threads import DefaultThreads
from cadence.objectives import Objective, with_objective
from cadence.plan.numbers import whole_number

log = logging.getLogger(__name__)


class Microbatching:
    """Runs one window after another, and learns how to run the next.

    Args:
        microbatch_size: Samples per forward and backward, at least 1; None = one mini-batch;
            ``auto`` = the fastest that fits, found while training.
        threads: Threads of an operation on the CPU, at least 1; None = by the work of a window, see
            `cadence.engine.threads`; ``auto`` = the fewest up to torch's number that are as fast as
            any.
        allow_batch_coupling: Whether mini-batches may be split and joined even where that changes
            what is trained; see `cadence.engine.coupling`.
        autocast: As in `cadence.accumulate`.
        scaler: As in `cadence.accumulate`.

    Raises:
        TypeError, ValueError: ``microbatch_size`` or ``threads`` is not possible.
    """

    def __init__(
        self,
        microbatch_size: int | Auto | None,
        threads: int | Auto | None,
        *,
        allow_batch_coupling: bool,
        autocast: torch.dtype | None,
        scaler: GradScaler | None,
    ) -> None:
        fixed = None if microbatch_size == "auto" else microbatch_size
        self.microbatch_size: int | None = checked_microbatch_size(fixed)
        """Samples per forward and backward of the last window; None = one mini-batch."""
        self._is_auto = microbatch_size == "auto"
        self._allow_batch_coupling = allow_batch_coupling
        self._autocast, self._scaler = autocast, scaler
        self.limit = MemoryLimit()
        """What is known to fit into memory."""
        self._tuner = Tuner(microbatch_size, _checked_threads(threads), self.limit)
        self._coupled_by: str | None = None
        self._is_timed = self._is_first = False

    def begin(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        summed: Summed | None = None,
        measured: Sequence[nn.Parameter] = (),
    ) -> None:
        """Take a model as it is now, with its parameters, buffers and modes.

        Args:
            model: The model, on its device.
            objective: What to count and sum.
            summed: As in `cadence.engine.accumulation.Accumulator`.
            measured: The parameters whose gradients by parts are measured in some windows; see
                `cadence.engine.noise_scale`. None of them = nothing is measured.
        """
        self._is_first = True
        self._tuner.begin(model)
        self._is_one_of_several = summed is not None
        self._measured = measured
        self._said_unmeasurable = False
        self._coupled_by = None if self._allow_batch_coupling else coupling(model, objective)
        if self._coupled_by is not None and self._is_auto:
            log.warning(
                "trainer.microbatch_size=auto: %s couples the samples of a mini-batch, so the "
                "mini-batches stay as they are; trainer.allow_batch_coupling=true accepts other "
                "boundaries",
                self._coupled_by,
            )
            self._tuner.keep_minibatches()
        accumulate = Accumulator(
            model, objective, autocast=self._autocast, scaler=self._scaler, summed=summed
        )
        self._accumulate = RecoveringAccumulator(
            accumulate,
            with_objective(model, objective),
            self.limit,
            may_split=self._coupled_by is None,
        )

    def __call__(
        self,
        window: Sequence[Batch],
        step_size: int,
        *,
        items: float | None = None,
        windows_before: int = 0,
    ) -> Accumulated:
        """Run a window; see `cadence.accumulate`. ``.grad`` must be empty before.

        Args:
            window: The mini-batches of one update, or this process's part of them.
            step_size: The mini-batches of a full window, or of that part.
            items: As in `cadence.engine.accumulation.Accumulator`.
            windows_before: The windows of the run before it.

        Raises:
            ValueError: The micro-batch size would split or join mini-batches that must not be.
            DoesNotFitError: Not even one sample fits into memory.
        """
        self._is_timed = False
        if samples_in(window) == 0:  # there is nothing to choose for
            return self._accumulate(window, None, items=items)
        is_first, self._is_first = self._is_first, False
        size = self._tuner.choose(window, step_size).microbatch_size
        if self._coupled_by is not None and size is not None:
            check_boundaries(self._coupled_by, size, map(sample_count, window))
        if self._measured and self._is_measured(window, size, windows_before):
            if _in_one_pass(window, size) and not self._is_one_of_several:
                size = -(-samples_in(window) // 2)
            return self._accumulate(window, size, items=items, measured=self._measured)
        accumulated = self._accumulate(window, size, items=items)
        self._is_timed = not is_first
        self.microbatch_size = self._accumulate.size
        return accumulated

    def put_buffers_back(self) -> None:
        """Let the model's buffers be as before the last window, whose update was refused."""
        self._accumulate.put_buffers_back()

    @property
    def default_threads(self) -> DefaultThreads | None:
        """The threads of an operation by its work; None = the caller named them, or ``auto``."""
        return self._tuner.default_threads

    @property
    def is_searching(self) -> bool:
        """Whether the fastest setting for windows like the last is still being looked for."""
        return self._tuner.is_searching

    def took(self, seconds: float, samples: int) -> None:
        """Learn from the time of the last window, update included.

        Not if it was measured or empty, nor from the first one, in which much is done for the first
        time.
        """
        if self._is_timed:
            self._tuner.took(seconds, samples)

    def _is_measured(self, window: Sequence[Batch], size: int | None, windows_before: int) -> bool:
        # Several processes measure the same windows, each with at least one part to add.
        in_one_pass = _in_one_pass(window, size) and not self._is_one_of_several
        if not is_measured(windows_before, in_one_pass=in_one_pass):
            return False
        if not in_one_pass or (self._coupled_by is None and samples_in(window) > 1):
            return True
        if not self._said_unmeasurable:
            self._said_unmeasurable = True
            log.warning(
                "trainer.noise_scale=true: a window of a single mini-batch that must not be split "
                "has no parts to compare (%s); trainer.step_size=2 gives it two",
                self._coupled_by or "it is one sample",
            )
        return False


def _checked_threads(threads: int | Auto | None) -> int | Auto | None:
    if threads is None or threads == "auto":
        return threads
    what, remedy = "threads of an operation", "use None for torch's own number, or auto"
    return whole_number("threads", threads, what, remedy)


def _in_one_pass(window: Sequence[Batch], size: int | None) -> bool:
    return len(window) == 1 if size is None else samples_in(window) <= size
