"""A small convolutional network."""

from collections.abc import Sequence

from torch import nn


def cnn(
    input_shape: Sequence[int],
    outputs: int,
    channels: Sequence[int] = (32, 64),
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return 3 x 3 convolutions with ReLU, halving the image after each, and a linear layer.

    The network maps float images [samples, channels, height, width] to [samples, outputs]. There is
    no BatchNorm in it, so a window may be split into any micro-batches.

    Args:
        input_shape: The shape of one sample: channels, height, width.
        outputs: Width of the output.
        channels: Channels out of each convolution, in order.
        dropout: Share of the features dropped before the linear layer, in [0, 1).

    Raises:
        ValueError: A sample is not an image, or too small to be halved so often.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"model=cnn takes images [channels, height, width]; the data has {list(input_shape)}: "
            "try model=mlp"
        )
    depth, height, width = input_shape
    layers: list[nn.Module] = []
    for out in channels:
        layers += [nn.Conv2d(depth, out, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        depth, height, width = out, height // 2, width // 2
    if height == 0 or width == 0:
        raise ValueError(
            f"model.channels={list(channels)}: an image of {list(input_shape[1:])} cannot be "
            f"halved {len(channels)} times; name fewer"
        )
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(depth * height * width, outputs)
    )
