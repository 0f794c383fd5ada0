"""What makes one sample's gradient depend on the others beside it.

BatchNorm and contrastive losses are not the same under any other splitting of a window, so for them
the mini-batches stay as they are, unless the user allows another meaning of the training.
"""

from collections.abc import Iterable

from torch import nn

from cadence.engine.private_torch import batch_norms
from cadence.objectives import Objective, with_objective


def coupling(model: nn.Module, objective: Objective) -> str | None:
    """Return the name of what couples the samples of a micro-batch; None = nothing known to.

    Args:
        model: Looked at in its present mode, and with it what modules the objective has: a
            BatchNorm in evaluation mode couples nothing.
        objective: It couples samples if it says so by an attribute ``couples_samples``.
    """
    if getattr(objective, "couples_samples", False):
        return type(objective).__name__
    modules = with_objective(model, objective).modules()
    norms = (module for module in modules if isinstance(module, batch_norms()))
    coupled = (norm for norm in norms if norm.training or norm.running_mean is None)
    return next((type(norm).__name__ for norm in coupled), None)


def check_boundaries(coupled_by: str, microbatch_size: int, minibatches: Iterable[int]) -> None:
    """Refuse a micro-batch size that would split or join mini-batches whose samples are coupled.

    Args:
        coupled_by: What `coupling` found.
        microbatch_size: Samples per forward and backward, at least 1.
        minibatches: The samples in each mini-batch of a window, in their order.

    Raises:
        ValueError: A micro-batch would not be a mini-batch.
    """
    *full, last = minibatches
    if any(samples != microbatch_size for samples in full) or last > microbatch_size:
        raise ValueError(
            f"trainer.microbatch_size={microbatch_size}: {coupled_by} couples the samples of a "
            "mini-batch, so other boundaries would train something else; keep null, or set "
            "trainer.allow_batch_coupling=true to accept that"
        )
