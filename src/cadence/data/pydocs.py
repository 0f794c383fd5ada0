"""The Python language reference, which every CPython carries, as bytes."""

from pydoc_data.topics import topics

from cadence.data.tensors import Data
from cadence.data.text import language_modelling


def pydocs(context: int = 128, validation_share: float = 0.1) -> Data:
    """Return the Python language reference as samples for language modelling.

    Inputs and targets are [samples, context], int64 in [0, 256). The length of the text
    differs a little between versions of Python; 3.11 has 465,000 characters.

    Args:
        context: Tokens of input in a sample, at least 1.
        validation_share: Share of the text held out, its tail, in (0, 1).

    Raises:
        ValueError: ``context`` is too large for one sample of each split, or ``validation_share``
            is not in (0, 1).
    """
    reference = "\n".join(topics[name] for name in sorted(topics))
    return language_modelling(reference.encode(), context, validation_share, "data=pydocs")
