"""What an objective gives its model: the example by which a model is logged."""

from typing import Any

import torch
from torch import Tensor, nn

from cadence.data.batch import Batch, moved
from cadence.engine.device import device_of, uncompiled
from cadence.engine.preserve import preserved
from cadence.objectives import Objective


def example_inputs(model: nn.Module, objective: Objective, batch: Batch) -> Tensor:
    """Return the inputs of a batch as its objective gives them to a model, on the host.

    The model is called in evaluation mode; it and every random state stay as they are. Of several
    calls it is the first.

    Args:
        model: The model; a compiled one is called as it was before.
        objective: What calls it.
        batch: A few samples.

    Raises:
        ValueError: It is not one tensor that goes in, or not one that comes out.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    looking = model.register_forward_hook(
        lambda _, inputs, named, outputs: calls.append((inputs, named, outputs)), with_kwargs=True
    )
    try:
        with preserved(model), uncompiled(model), torch.no_grad():
            model.eval()
            objective.total_loss(model, moved(batch, device_of(model)))
    finally:
        looking.remove()
    problem = _problem(*calls[0]) if calls else "the objective never calls the model"
    if problem is not None:
        raise ValueError(
            f"track.log_model=true: {problem}, and MLflow keeps a model of one tensor to one "
            "tensor; train with track.log_model=false"
        )
    inputs: Tensor = calls[0][0][0]
    return inputs.detach().cpu().clone()


def _problem(inputs: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> str | None:
    """Return why a call is none that MLflow could make; None = it is one."""
    if len(inputs) + len(named) != 1:
        return f"the objective calls the model with {len(inputs) + len(named)} inputs"
    if named:
        return "the objective calls the model with inputs by name"
    if not isinstance(inputs[0], Tensor):
        return f"the objective calls the model with a {type(inputs[0]).__name__}"
    if not isinstance(outputs, Tensor):
        return f"the model puts out a {type(outputs).__name__}"
    return None
