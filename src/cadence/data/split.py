"""How much of a data set is held out."""


def checked_share(share: float) -> float:
    """Return a share to hold out unchanged if it is one.

    Raises:
        ValueError: It is not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(
            f"data.validation_share={share}: the share held out must be above 0 and below 1; try "
            "data.validation_share=0.1"
        )
    return share


def held_out(samples: int, share: float) -> int:
    """Return how many of some samples are held out: at least one, and not all.

    Args:
        samples: Samples in all, at least 2.
        share: The share of them, in (0, 1).

    Raises:
        ValueError: ``share`` is not in (0, 1).
    """
    return max(1, int(samples * checked_share(share)))
