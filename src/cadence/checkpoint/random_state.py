"""The states of the random generators: Python's, numpy's, torch's on the host and on its devices.

`RandomState` is what one process drew until now, cheap enough to be taken before every window.
`random_states` is the same of all devices, as the tensors and plain values that a checkpoint holds.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


class RandomState:
    """The states of the host's random generators and of one device's, when it was made.

    Args:
        device: The device whose generator is kept beside the host's.
        of_torch_alone: Whether Python's and numpy's are left out, which take most of the time.
    """

    def __init__(self, device: torch.device, *, of_torch_alone: bool = False) -> None:
        self._device = device
        self._torch = torch.get_rng_state()
        self._accelerator = None if device.type == "cpu" else _accelerator_state(device)
        self._others = None if of_torch_alone else (random.getstate(), np.random.get_state())

    def restore(self) -> None:
        """Put every generator that is kept back to where it was."""
        torch.set_rng_state(self._torch)
        if self._accelerator is not None:
            _set_accelerator_state(self._device, self._accelerator)
        if self._others is not None:
            python, numpy = self._others
            random.setstate(python)
            np.random.set_state(numpy)

    def is_torchs_alone(self) -> bool:
        """Return whether nothing was drawn since from Python's or numpy's generator."""
        if self._others is None:
            return True
        python, numpy = self._others
        return python == random.getstate() and all(
            map(np.array_equal, numpy, np.random.get_state())
        )


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Leave the host's random generators, and a device's, as they were."""
    state = RandomState(device)
    try:
        yield
    finally:
        state.restore()


def random_states() -> dict[str, Any]:
    """Return the state of every global random generator: Python's, numpy's, torch's per device.

    Where CUDA was not used yet, its devices have none.
    """
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": _with_tensors(numpy_state),
        "torch": torch.get_rng_state(),
        "cuda": _cuda_states(),
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put every global random generator back to where it was.

    Those of devices that this machine lacks are left out, with a warning.

    Args:
        states: What `random_states` returned.
    """
    random.setstate(states["python"])
    np.random.set_state(_with_arrays(states["numpy"]))
    torch.set_rng_state(states["torch"])
    present = torch.cuda.device_count()
    for index, cuda in enumerate(states["cuda"][:present]):
        torch.cuda.set_rng_state(cuda, index)
    has_mps = torch.backends.mps.is_available()
    if states["mps"] is not None and has_mps:
        torch.mps.set_rng_state(states["mps"])
    if len(states["cuda"]) > present or (states["mps"] is not None and not has_mps):
        log.warning(
            "the checkpoint holds random states of devices that this machine lacks: what is drawn "
            "there differs from an undisturbed run"
        )


def generator_states(generators: Sequence[Any]) -> list[Any]:
    """Return the states of random generators of torch's, numpy's or Python's, as a checkpoint
    holds them.

    Args:
        generators: Each of one of the kinds in `GENERATORS`.
    """
    return [_state_of(generator) for generator in generators]


def restore_generators(generators: Sequence[Any], states: Sequence[Any]) -> None:
    """Put random generators back to where they were; other ones than then are left, with a warning.

    Args:
        generators: In the order of then.
        states: What `generator_states` returned.
    """
    if len(generators) != len(states):
        log.warning(
            "the data loader has %d random generators and had %d: what they draw differs from an "
            "undisturbed run",
            len(generators),
            len(states),
        )
        return
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, random.Random):
            generator.setstate(state)
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(_with_arrays(state))
        else:
            generator.bit_generator.state = _with_arrays(state)


GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)
"""The kinds of random generators that a data loader may hold."""


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    is_old = isinstance(generator, np.random.RandomState)
    return _with_tensors(
        generator.get_state(legacy=False) if is_old else generator.bit_generator.state
    )


def _accelerator_state(device: torch.device) -> Tensor:
    state: Tensor = torch.get_device_module(device).get_rng_state(*_which(device))
    return state


def _set_accelerator_state(device: torch.device, state: Tensor) -> None:
    torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # which is one device, and takes no number


def _cuda_states() -> list[Tensor]:
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if used else []


def _with_tensors(state: Any) -> Any:
    """Return numpy's state of a generator with a tensor for each array, as a checkpoint has it."""
    return _replaced(state, np.ndarray, lambda array: torch.from_numpy(array.copy()))


def _with_arrays(state: Any) -> Any:
    """Return what `_with_tensors` returned as numpy wants it."""
    return _replaced(state, Tensor, Tensor.numpy)


def _replaced(tree: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """Return nested dicts with each value of a kind converted."""
    if isinstance(tree, dict):
        return {key: _replaced(value, kind, convert) for key, value in tree.items()}
    return convert(tree) if isinstance(tree, kind) else tree
