"""The short ways through torch do what the ordinary ones do, and give way to whoever looks on."""

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracles import cut, regression_pair, same, weights
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

from cadence import Trainer
from cadence.engine import private_torch
from cadence.objectives import Regression
from cadence.training.noise_scale import NoiseScaleEstimate

TRIED = ("2.13.0",)
"""The versions of torch that have every private name below as it is used."""

WITH_A_TRIAL: dict[str, Callable[[Any], bool]] = {
    "autograd.graph._engine_run_backward": private_torch._adds_to_grad,
    "_foreach_norm": private_torch._is_norm,
    "_foreach_copy_": private_torch._copies,
    "_foreach_zero_": private_torch._zeroes,
}

ELSEWHERE = (
    "optim.Optimizer.profile_hook_step.__code__.co_consts",
    "autograd.profiler._is_profiler_enabled",
    "_C._autograd._profiler_enabled",
    "nn.modules.batchnorm._BatchNorm",
)

OF_OPTIMIZERS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
"""In torch.optim.optimizer, which torch.optim does not show."""

of_a_tried_torch = pytest.mark.skipif(
    torch.__version__.split("+")[0] not in TRIED, reason="this version of torch was not tried"
)


@of_a_tried_torch
@pytest.mark.parametrize("name", WITH_A_TRIAL)
def test_a_private_name_does_in_the_tried_versions_what_its_trial_asks(name: str) -> None:
    assert WITH_A_TRIAL[name](private_torch.private(name))


@of_a_tried_torch
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_private_name_is_there_in_the_tried_versions(name: str) -> None:
    assert private_torch.private(name) is not None


@of_a_tried_torch
def test_the_private_names_of_an_instance_are_there_in_the_tried_versions() -> None:
    weight, optimizer = with_gradient()
    before = private_torch.version_of(weight)
    with torch.no_grad():
        weight += 1

    assert private_torch.version_of(weight) == before + 1  # type: ignore[operator]
    assert all(hasattr(sys.modules["torch.optim.optimizer"], name) for name in OF_OPTIMIZERS)
    assert optimizer._optimizer_step_pre_hooks == optimizer._optimizer_step_post_hooks == {}
    assert private_torch._own_step(optimizer) is not None
    assert nn.Linear(1, 1)._compiled_call_impl is None


def test_an_import_needs_no_private_name() -> None:
    holders = "".join(
        f"del torch.{name}\n" for name in (*WITH_A_TRIAL, *ELSEWHERE) if "__code__" not in name
    )
    hidden = "".join(f"del sys.modules['torch.optim.optimizer'].{name}\n" for name in OF_OPTIMIZERS)
    program = f"import sys\nimport torch\n{holders}{hidden}\nimport cadence.training.trainer"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def put_in_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Any], None]]:
    """Let torch have something else under one of its private names; None = nothing."""
    ordinary = private_torch.private

    def put(name: str, found: Any) -> None:
        monkeypatch.setattr(
            private_torch, "private", lambda asked: found if asked == name else ordinary(asked)
        )
        forget()

    def forget() -> None:
        private_torch._working.cache_clear()
        private_torch._wrappers_of_step.cache_clear()

    yield put
    forget()


def _refuses(*_: Any, **__: Any) -> None:
    raise TypeError("other arguments")


def _does_nothing(*_: Any, **__: Any) -> None:
    pass


def trained() -> list[Any]:
    """Return the weights, loss and noise scale of a run that goes through every shortcut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    optimizer = AdamW(model.parameters(), lr=0.01)
    trainer = Trainer(
        model, optimizer, Regression(), 2, "cpu", clip_norm=1.0, callbacks=[NoiseScaleEstimate()]
    )
    result = trainer.fit(cut(regression_pair(48), [4] * 12), epochs=25)
    return [*(each.tolist() for each in weights(model)), result.train_loss, result.reported]


@pytest.mark.parametrize("there", [None, _refuses, _does_nothing])
@pytest.mark.parametrize("name", [*WITH_A_TRIAL, "optim.Optimizer.profile_hook_step.__code__"])
def test_a_run_has_the_same_bits_without_a_private_name_or_with_another_under_it(
    name: str, there: Any, put_in_place: Callable[[str, Any], None]
) -> None:
    shortest = trained()
    put_in_place(name, there)

    assert trained() == shortest


@pytest.mark.parametrize(
    "name", ["_C._autograd._profiler_enabled", "nn.modules.batchnorm._BatchNorm"]
)
def test_a_run_has_the_same_bits_where_torch_cannot_tell(
    name: str, put_in_place: Callable[[str, Any], None]
) -> None:
    shortest = trained()
    put_in_place(name, None)

    assert trained() == shortest


@pytest.mark.parametrize("there", [None, _refuses, _does_nothing])
def test_the_public_ways_of_many_tensors_have_the_same_bits(
    there: Any, put_in_place: Callable[[str, Any], None]
) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(7), torch.randn(3, 5, dtype=torch.float64), torch.randn(())]
    shortest = private_torch.norms(tensors)
    put_in_place("_foreach_norm", there)

    assert same(private_torch.norms(tensors), shortest)

    copies = [torch.empty_like(tensor) for tensor in tensors]
    put_in_place("_foreach_copy_", there)
    private_torch.copy_each(copies, tensors)
    assert same(copies, tensors)

    put_in_place("_foreach_zero_", there)
    private_torch.zero_each(copies)
    assert same(copies, [torch.zeros_like(tensor) for tensor in tensors])


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
        private_torch.step(optimizer)
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
    private_torch.step(optimizer)

    assert_close(weight.detach(), torch.tensor([0.95, 2.1]))


@pytest.mark.parametrize("of_all_threads", [False, True])
def test_a_step_that_is_profiled_is_in_the_profile(of_all_threads: bool) -> None:
    _, optimizer = with_gradient()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        experimental_config=_ExperimentalConfig(profile_all_threads=of_all_threads),
    ) as profile:
        private_torch.step(optimizer)

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
    private_torch.step(optimizer)
    private_torch.step(optimizer)
    handle.remove()
    private_torch.step(optimizer)

    assert calls == [optimizer, optimizer]
    assert_close(weight.detach(), torch.tensor([0.85, 2.3]))


def test_a_step_that_a_learning_rate_scheduler_counts_is_counted() -> None:
    _, optimizer = with_gradient()
    scheduler = StepLR(optimizer, step_size=1)
    private_torch.step(optimizer)
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
    private_torch.step(optimizer)

    assert patched_class == [optimizer]


def test_a_backward_adds_what_torchs_adds() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    for _ in range(2):
        private_torch.backward((weight**2).sum(), torch.tensor(0.25, dtype=torch.float64))

    assert_close(weight.grad, torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_a_backward_without_a_graph_is_torchs_own_error() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        private_torch.backward(torch.tensor(1.0), torch.tensor(1.0))


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
    private_torch.backward(loss, torch.tensor(1.0))

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
        private_torch.backward(weight * 2, torch.tensor(1.0))

    assert "backward" in watching.seen
    assert weight.grad == 2
