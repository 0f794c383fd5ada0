"""A model and every random state, left as they were by what is only tried."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from cadence.engine.device import device_of


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave every random state as it was, and the model, run itself where it cannot be copied."""
    with _random_states_kept(device_of(model)), _model_kept(model):
        yield


@contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    accelerated = device.type != "cpu"
    devices = [device] if accelerated else []
    kind = device.type if accelerated else "cuda"
    try:
        with torch.random.fork_rng(devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


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
