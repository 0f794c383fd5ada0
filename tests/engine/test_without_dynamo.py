"""Optimizers of torch without its tracer's import: the same numbers, and nothing left out."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, Adam, AdamW, NAdam, Optimizer, RMSprop

from cadence.engine import without_dynamo
from cadence.engine.private_torch import step
from cadence.engine.without_dynamo import GUARDED, spare_dynamo, step_without_dynamo

WITHOUT = """
import json, sys
import torch
from cadence.engine.private_torch import step
from cadence.engine.without_dynamo import spare_dynamo

spare_dynamo()
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
optimizer.load_state_dict(optimizer.state_dict())
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(1, 3)).square().sum().backward()
    step(optimizer)
print(json.dumps(["torch._dynamo" in sys.modules, model.weight.tolist()]))
"""


def trained(
    optimizer_of: Callable[..., Optimizer], make_step: Callable[[Optimizer], object]
) -> tuple[list[Any], dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = optimizer_of(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        make_step(optimizer)
    return model.weight.tolist(), optimizer.state_dict()


def test_an_optimizer_works_without_the_tracers_import_and_gives_the_same_weights() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=550
    )
    assert ended.returncode == 0, ended.stderr
    has_dynamo, weights = json.loads(ended.stdout)

    assert not has_dynamo  # torch 2.13 guards by __wrapped__; another torch may need the import
    assert weights == trained(lambda p: AdamW(p, fused=True), lambda o: o.step())[0]


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW, NAdam, RMSprop, Adafactor])
def test_a_step_without_the_guard_is_the_step_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, optimizer: type[Optimizer]
) -> None:
    weights, state = trained(optimizer, lambda made: made.step())
    monkeypatch.setattr(without_dynamo, "is_dynamo_loaded", lambda: False)

    again, state_again = trained(optimizer, step)

    assert again == weights
    assert repr(state_again) == repr(state)


def test_gradients_flow_through_the_step_of_a_differentiable_optimizer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def look(*_: object) -> None:
        seen.append(torch.is_grad_enabled())
        raise LookupError

    monkeypatch.setattr(without_dynamo, "is_dynamo_loaded", lambda: False)
    monkeypatch.setattr(SGD, "_init_group", look)
    for differentiable in (False, True):
        optimizer = SGD([nn.Parameter(torch.ones(1))], differentiable=differentiable)
        with pytest.raises(LookupError):
            step(optimizer)

    assert seen == [False, True]
    assert torch.is_grad_enabled()


def test_a_step_that_torch_does_not_guard_comes_back_as_it_is() -> None:
    def own(optimizer: Optimizer) -> None:
        """Do nothing."""

    assert step_without_dynamo(own) is own


def test_torchs_own_method_runs_once_something_may_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []

    def guarded() -> None:
        called.append("guarded")

    guarded.__wrapped__ = lambda: called.append("inside")  # type: ignore[attr-defined]
    method = without_dynamo._unguarded(guarded)
    for is_loaded in (True, False):
        monkeypatch.setattr(without_dynamo, "is_dynamo_loaded", partial(bool, is_loaded))
        method()

    assert called == ["guarded", "inside"]


@pytest.mark.parametrize("name", GUARDED)
def test_the_methods_keep_their_names_and_words(name: str) -> None:
    before = getattr(Optimizer, name)
    spare_dynamo()
    after = getattr(Optimizer, name)

    assert (after.__name__, after.__doc__) == (before.__name__, before.__doc__)
