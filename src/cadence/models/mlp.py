"""A multilayer perceptron."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(input_shape: Sequence[int], outputs: int, hidden: Sequence[int] = (128,)) -> nn.Sequential:
    """Return a multilayer perceptron with ReLU between its linear layers.

    It maps float inputs [samples, *input_shape] to [samples, outputs].

    Args:
        input_shape: The shape of one sample, which is flattened.
        outputs: Width of the output.
        hidden: Widths of the hidden layers, in order; none makes a linear model.
    """
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()] if len(input_shape) > 1 else []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
