"""Text as bytes, from the user's own file."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from cadence.data.split import held_out
from cadence.data.tensors import Data, Samples, TensorData

BYTES = 256
"""The vocabulary: every value of a byte."""


def text(path: str, context: int = 128, validation_share: float = 0.1) -> Data:
    """Return a file's bytes as samples for language modelling.

    Inputs and targets are [samples, context], int64 in [0, 256); each target is the input one
    place on.

    Args:
        path: Any file, in any encoding.
        context: Tokens of input in a sample, at least 1.
        validation_share: Share of the file held out, its tail, in (0, 1).

    Raises:
        ValueError: The file is missing, cannot be read, or is too short for one sample of each
            split; or ``validation_share`` is not in (0, 1).
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"data.path={path}: there is no such file; give the path of a text file")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ValueError(f"data.path={path}: cannot be read ({error.strerror})") from error
    return language_modelling(raw, context, validation_share, f"data.path={path}")


def language_modelling(raw: bytes, context: int, validation_share: float, name: str) -> Data:
    """Return bytes as samples for language modelling, inputs and targets [samples, context], int64.

    Args:
        raw: The text.
        context: Tokens of input in a sample, at least 1.
        validation_share: Share of the text held out, its tail, in (0, 1).
        name: What errors call the text.

    Raises:
        ValueError: ``raw`` is too short for one sample of each split, or ``validation_share`` is
            not in (0, 1).
    """
    tokens = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
    cut = len(tokens) - held_out(len(tokens), validation_share)
    train, tail = tokens[:cut], tokens[cut:]
    if min(len(train), len(tail)) < context + 1:
        raise ValueError(
            f"{name}: {len(tokens)} bytes are too few for a sample of {context + 1} in each of "
            f"training and validation (data.validation_share={validation_share}); lower "
            "data.context or give a longer text"
        )
    return Data(
        train=_blocks(train, context),
        validation=_blocks(tail, context),
        input_shape=(context,),
        outputs=BYTES,
        items_per_sample=context,
    )


def _blocks(tokens: UInt8[Tensor, " tokens"], context: int) -> TensorData:
    """Split text into samples [context + 1]; the last token of each is the first of the next.

    So every token but the first is a target once, up to a rest shorter than a sample.
    """
    return TensorData(tokens.unfold(0, context + 1, context), prepare=_inputs_and_targets)


def _inputs_and_targets(batch: Samples) -> Samples:
    (tokens,) = batch
    wide = tokens.long()
    return wide[:, :-1], wide[:, 1:]
