"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 grey levels, in the package."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cadence.data.split import checked_share, stratified
from cadence.data.tensors import Data, TensorData

FILE = Path("datasets", "data", "digits.csv.gz")
"""Where scikit-learn keeps the digits: a line for each, 64 grey levels and the class."""

BRIGHTEST = 16
"""The largest grey level."""


def digits(validation_share: float = 0.2, split_seed: int = 0) -> Data:
    """Return the digits as float32 images [1, 8, 8] in [0, 1] and their int64 classes 0 to 9.

    Args:
        validation_share: Share of each class held out, in (0, 1).
        split_seed: Chooses the samples held out; apart from the run's seed, so that runs compare.

    Raises:
        ValueError: ``validation_share`` is not in (0, 1), or leaves one side without some class.
        FileNotFoundError: scikit-learn is not installed, or without its data.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).
    """
    images, classes = read_digits()
    share = checked_share(validation_share)
    try:
        train, held_out = stratified(classes.numpy(), share, split_seed)
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


def read_digits() -> tuple[Float[Tensor, "samples 1 8 8"], Int[Tensor, " samples"]]:
    """Return all digits in the file's order, without the import of scikit-learn's 700 modules.

    Returns:
        Images [samples, 1, 8, 8], float32 in [0, 1], and classes [samples], int64.

    Raises:
        FileNotFoundError: scikit-learn is not installed, or without its data.
    """
    sklearn = find_spec("sklearn")
    folders = (sklearn and sklearn.submodule_search_locations) or ()
    file = next((found for folder in folders if (found := Path(folder) / FILE).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            "data=digits: scikit-learn carries the digits and is not here, or without its data; "
            "pip install --force-reinstall scikit-learn"
        )
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")  # [samples, 65]
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 8, 8)
    return images.float() / BRIGHTEST, torch.from_numpy(table[:, -1]).long()
