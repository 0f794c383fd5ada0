"""Made-up classification data of any size and shape, the same for the same seed."""

import torch

from cadence.data.split import held_out
from cadence.data.tensors import Data, TensorData


def synthetic(
    samples: int = 10_000,
    shape: tuple[int, ...] = (1, 28, 28),
    classes: int = 10,
    noise: float = 1.0,
    validation_share: float = 0.1,
    split_seed: int = 0,
) -> Data:
    """Return samples scattered around one random centre for each class.

    The inputs are [samples, *shape], float32, and the targets [samples], int64.

    Args:
        samples: Samples in all, at least 2.
        shape: The shape of one input.
        classes: Classes, at least 2; each sample's class is drawn evenly.
        noise: Standard deviation of the inputs around their centre, at least 0; that of the centres
            is 1.
        validation_share: Share held out, in (0, 1).
        split_seed: Makes centres, samples and split, apart from the run's seed.

    Raises:
        ValueError: ``samples`` are fewer than 2, or ``validation_share`` is not in (0, 1).
    """
    if samples < 2:
        raise ValueError(
            f"data.samples={samples}: one to train on and one to hold out are needed; try "
            "data.samples=10000"
        )
    cut = samples - held_out(samples, validation_share)
    generator = torch.Generator().manual_seed(split_seed)
    centres = torch.randn(classes, *shape, generator=generator)
    targets = torch.randint(classes, (samples,), generator=generator)
    inputs = centres[targets] + noise * torch.randn(samples, *shape, generator=generator)
    return Data(
        train=TensorData(inputs[:cut], targets[:cut]),
        validation=TensorData(inputs[cut:], targets[cut:]),
        input_shape=tuple(shape),
        outputs=classes,
    )
