"""Which samples are held out: as scikit-learn chooses them, without its import."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cadence.data.digits import read_digits
from cadence.data.split import stratified


def of_sklearn(classes: np.ndarray, share: float, seed: int) -> list[np.ndarray]:
    from sklearn.model_selection import train_test_split

    return train_test_split(
        np.arange(len(classes)), test_size=share, random_state=seed, stratify=classes
    )


def test_the_digits_are_scikit_learns_bit_for_bit() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, classes = read_digits()

    assert torch.equal(images, torch.from_numpy(bunch.images).float().unsqueeze(1) / 16)
    assert torch.equal(classes, torch.from_numpy(bunch.target).long())
    assert (images.dtype, classes.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_digits_are_split_as_scikit_learn_does(share: float, seed: int) -> None:
    _, classes = read_digits()

    ours, theirs = (split(classes.numpy(), share, seed) for split in (stratified, of_sklearn))

    for our, their in zip(ours, theirs, strict=True):
        assert np.array_equal(our, their)


@settings(max_examples=200)
@given(
    classes=st.lists(st.integers(-3, 3), min_size=2, max_size=40),
    share=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_classes_are_split_or_refused_as_scikit_learn_does(
    classes: list[int], share: float, seed: int
) -> None:
    labels = np.array(classes, np.int64)
    try:
        theirs = of_sklearn(labels, share, seed)
    except ValueError:
        with pytest.raises(ValueError, match="do not fit on both sides"):
            stratified(labels, share, seed)
        return
    for our, their in zip(stratified(labels, share, seed), theirs, strict=True):
        assert np.array_equal(our, their)


def test_digits_without_scikit_learns_data_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cadence.data.digits.find_spec", lambda name: None)

    with pytest.raises(FileNotFoundError, match=r"^data=digits: .*pip install"):
        read_digits()
