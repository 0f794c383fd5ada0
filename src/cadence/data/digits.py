"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 grey levels, in the package."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cadence.data.split import checked_share
from cadence.data.tensors import Data, TensorData


def digits(validation_share: float = 0.2, split_seed: int = 0) -> Data:
    """Return the digits as float32 images [1, 8, 8] in [0, 1] and their classes 0 to 9.

    Args:
        validation_share: Share of each class held out, in (0, 1).
        split_seed: Chooses which; it is not the seed of the run, so that runs compare.

    Raises:
        ValueError: ``validation_share`` is not in (0, 1), or leaves one side without some class.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    classes = torch.from_numpy(bunch.target).long()
    share = checked_share(validation_share)
    try:
        train, held_out = train_test_split(
            torch.arange(len(classes)).numpy(),
            test_size=share,
            random_state=split_seed,
            stratify=bunch.target,
        )
    except ValueError as error:
        raise ValueError(
            f"data.validation_share={share}: of {len(classes):,} digits each class needs one to "
            "train on and one to hold out; try data.validation_share=0.2"
        ) from error
    return Data(
        train=TensorData(images[train], classes[train]),
        validation=TensorData(images[held_out], classes[held_out]),
        input_shape=(1, 8, 8),
        outputs=10,
    )
