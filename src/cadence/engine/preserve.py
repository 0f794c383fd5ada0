"""A model and every random state, left as they were by what is only tried."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cadence.checkpoint.random_state import random_state_kept
from cadence.engine.device import device_of


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave every random state as it was, and the model, run itself where it cannot be copied."""
    with random_state_kept(device_of(model)), _model_kept(model):
        yield


@contextmanager
def _model_kept(model: nn.Module) -> Iterator[None]:
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        fill_buffers(model, buffers)
        for module, mode in training:
            module.training = mode


def fill_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Copy numbers into the buffers of these names, where the shapes are the same."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.copy_(buffers[name])
