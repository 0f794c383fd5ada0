"""The short ways through torch do what the ordinary ones do, and give way to whoever looks on."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._profiler import _ExperimentalConfig
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from cadence.engine import private_torch as direct


class _RecordingSGD(SGD):
    """Counts its steps, each of which steps as its parent does."""

    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        super().step(closure)


def with_gradient(kind: type[Optimizer] = SGD) -> tuple[nn.Parameter, Optimizer]:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([0.5, -1.0])
    return weight, kind([weight], lr=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, _RecordingSGD])
def test_a_step_is_the_optimizers_own(kind: type[Optimizer]) -> None:
    weight, optimizer = with_gradient(kind)
    expected, ordinary = with_gradient(kind)
    for _ in range(3):
        direct.step(optimizer)
        ordinary.step()

    assert torch.equal(weight, expected)
    assert getattr(optimizer, "steps", 3) == 3


def test_a_step_that_nobody_looks_at_has_no_profilers_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, optimizer = with_gradient()
    monkeypatch.delattr(torch.autograd.profiler, "record_function")

    with pytest.raises(AttributeError):
        optimizer.step()
    direct.step(optimizer)

    assert_close(weight.detach(), torch.tensor([0.95, 2.1]))


@pytest.mark.parametrize("of_all_threads", [False, True])
def test_a_step_that_is_profiled_is_in_the_profile(of_all_threads: bool) -> None:
    _, optimizer = with_gradient()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        experimental_config=_ExperimentalConfig(profile_all_threads=of_all_threads),
    ) as profile:
        direct.step(optimizer)

    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}


Register = Callable[[Optimizer, Callable[..., None]], Any]

HOOKS: dict[str, Register] = {
    "before": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "after": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
    "before any optimizer": lambda _, hook: register_optimizer_step_pre_hook(hook),
    "after any optimizer": lambda _, hook: register_optimizer_step_post_hook(hook),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS.keys())
def test_a_hook_is_called_at_each_step_until_it_is_removed(register: Register) -> None:
    calls: list[Optimizer] = []
    weight, optimizer = with_gradient()
    handle = register(optimizer, lambda one, *_: calls.append(one))
    direct.step(optimizer)
    direct.step(optimizer)
    handle.remove()
    direct.step(optimizer)

    assert calls == [optimizer, optimizer]
    assert_close(weight.detach(), torch.tensor([0.85, 2.3]))


def test_a_step_that_a_learning_rate_scheduler_counts_is_counted() -> None:
    _, optimizer = with_gradient()
    scheduler = StepLR(optimizer, step_size=1)
    direct.step(optimizer)
    scheduler.step()  # which warns, an error here, of a step that it did not see

    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.fixture
def patched_class() -> Iterator[list[Optimizer]]:
    """An optimizer's class whose step somebody wrapped, as torch itself does."""
    calls: list[Optimizer] = []
    with_gradient(AdamW)  # torch wraps it when the first one is made
    ordinary = AdamW.step

    @functools.wraps(ordinary)
    def patched(self: AdamW, closure: Any = None) -> Any:
        calls.append(self)
        return ordinary(self, closure)

    AdamW.step = patched  # type: ignore[method-assign]
    yield calls
    AdamW.step = ordinary  # type: ignore[method-assign]


def test_a_step_that_somebody_else_wrapped_goes_through_what_they_wrapped(
    patched_class: list[Optimizer],
) -> None:
    _, optimizer = with_gradient(AdamW)
    direct.step(optimizer)

    assert patched_class == [optimizer]


def test_a_backward_adds_what_torchs_adds() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    for _ in range(2):
        direct.backward((weight**2).sum(), torch.tensor(0.25, dtype=torch.float64))

    assert_close(weight.grad, torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_a_backward_without_a_graph_is_torchs_own_error() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        direct.backward(torch.tensor(1.0), torch.tensor(1.0))


class _Loss(Tensor):
    """A tensor that sees its own backward, as a subclass may."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        cls.seen.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_backward_of_a_tensor_with_its_own_is_its_own() -> None:
    weight = nn.Parameter(torch.tensor(3.0))
    loss = (weight * 2).as_subclass(_Loss)
    direct.backward(loss, torch.tensor(1.0))

    assert "backward" in _Loss.seen
    assert weight.grad == 2


class _Watching(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_a_backward_within_a_mode_is_shown_to_it() -> None:
    weight = nn.Parameter(torch.tensor(3.0))
    with _Watching() as watching:
        direct.backward(weight * 2, torch.tensor(1.0))

    assert "backward" in watching.seen
    assert weight.grad == 2
