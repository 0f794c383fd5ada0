"""Which samples of a data set are held out, and how many."""

import math

import numpy as np
from jaxtyping import Int


def checked_share(share: float) -> float:
    """Return the share to hold out, unchanged.

    Raises:
        ValueError: ``share`` is not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(
            f"data.validation_share={share}: the share held out must be above 0 and below 1; try "
            "data.validation_share=0.1"
        )
    return share


def held_out(samples: int, share: float) -> int:
    """Return the number of samples held out: at least one, and not all.

    Args:
        samples: Samples in all, at least 2.
        share: Share of the samples held out, in (0, 1).

    Raises:
        ValueError: ``share`` is not in (0, 1).
    """
    return max(1, int(samples * checked_share(share)))


def stratified(
    classes: Int[np.ndarray, " samples"], share: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]:
    """Return the indices to train on and those held out, with the same share of every class.

    The same indices, in the same order, as scikit-learn's ``train_test_split(arange(samples),
    test_size=share, random_state=seed, stratify=classes)``, whose import takes seconds.

    Args:
        classes: [samples], int64, each class at least twice.
        share: Share of the samples held out, in (0, 1), rounded up to a whole sample.
        seed: Chooses the samples held out, in [0, 2**32).

    Returns:
        Indices [train] and [held_out], int64, in random order.

    Raises:
        ValueError: A side has fewer samples than there are classes, a class has one sample, or
            ``seed`` is out of range.
    """
    _, class_of, counts = np.unique(classes, return_inverse=True, return_counts=True)
    held_out_count = math.ceil(share * len(classes))
    train_count = len(classes) - held_out_count
    if min(train_count, held_out_count) < len(counts) or counts.min() < 2:
        raise ValueError(
            f"{len(counts)} classes do not fit on both sides of a split into {train_count} and "
            f"{held_out_count} samples"
        )
    generator = np.random.RandomState(seed)
    in_train = _shared_out(train_count, counts, generator)
    in_held_out = _shared_out(held_out_count, counts - in_train, generator)
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for number, count in enumerate(counts):
        shuffled = np.flatnonzero(class_of == number)[generator.permutation(count)]
        end = in_train[number] + in_held_out[number]
        train.append(shuffled[: in_train[number]])
        held_out.append(shuffled[in_train[number] : end])
    return (
        generator.permutation(np.concatenate(train)),
        generator.permutation(np.concatenate(held_out)),
    )


def _shared_out(
    total: int, counts: Int[np.ndarray, " classes"], generator: np.random.RandomState
) -> Int[np.ndarray, " classes"]:
    """Share out a number of samples over the classes in proportion to their counts.

    Samples left over by rounding down go to the classes with the largest remainders; classes with
    the same remainder are drawn.
    """
    exact = counts / counts.sum() * total
    floored = np.floor(exact)
    left_over, remainders = int(total - floored.sum()), exact - floored
    for remainder in np.unique(remainders)[::-1]:
        if left_over <= 0:
            break
        (tied,) = np.where(remainders == remainder)
        drawn = generator.choice(tied, size=min(len(tied), left_over), replace=False)
        floored[drawn] += 1
        left_over -= len(drawn)
    shares: Int[np.ndarray, " classes"] = floored.astype(np.int64)
    return shares
