"""Whether the gradient of a window depends on how the window is split, and why.

`certificate` compares the splits and says PASS or FAIL; `compare` and `relative_error` measure;
`trial_passes`, `copies` and `precision` run passes on copies in a finer dtype; `causes` finds out
why by switching suspects off: `training_mode`, `hooks`, `reduction`, and at last `sample_coupling`.
`printed` writes a certificate on the terminal.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadence.certify.certificate import Certificate, certify

__all__ = ["Certificate", "certify"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cadence.certify' has no attribute {name!r}")
    return getattr(import_module("cadence.certify.certificate"), name)
