"""From gradients to weights: clip, refuse, step, schedule, zero; each once per window."""

import logging
import math
import re
from copy import deepcopy

import pytest
import torch
from oracles import SIZES, STEP_SIZES, cut, gradients, regression_pair, same, weights
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import LBFGS, SGD, Adam, Optimizer

from cadence import accumulate, windows
from cadence.engine.accumulation import Accumulated, Accumulator
from cadence.engine.update import DivergedError, Outcome, Update, stop_if_diverged, total_norm
from cadence.objectives import Regression
from cadence.plan.clock import Clock
from cadence.plan.schedule import constant

NAN, INF = math.nan, math.inf
START = Clock()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def one_weight(optimizer: type[Optimizer] = SGD) -> tuple[nn.Parameter, Optimizer]:
    weight = nn.Parameter(torch.tensor([2.0]))
    return weight, optimizer([weight], lr=0.5)


def found(loss: float = 1.0, items: int = 1) -> Accumulated:
    return Accumulated(torch.tensor(loss), items)


def asked(
    update: Update, weight: nn.Parameter, gradient: float, loss: float = 1.0, clock: Clock = START
) -> Outcome:
    """Ask for an update of one weight with this gradient, from a window of four samples."""
    weight.grad = torch.full_like(weight, gradient)
    return update.apply(found(loss), clock, samples=4)


def test_the_optimizer_steps_once_and_the_gradient_is_empty_after() -> None:
    weight, optimizer = one_weight()

    outcome = asked(Update(optimizer, schedule=constant()), weight, 3.0, loss=7.0)

    assert weight.item() == 2 - 0.5 * 3
    assert weight.grad is None
    assert outcome == Outcome(applied=True, loss=7.0, grad_norm=3.0, lr=0.5)


def test_the_outcome_tells_the_mean_loss_of_the_items() -> None:
    weight, optimizer = one_weight()
    weight.grad = torch.zeros_like(weight)

    outcome = Update(optimizer, schedule=constant()).apply(found(10.0, 4), START, 4)

    assert outcome.loss == 2.5


@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 100.0, None])
def test_clipping_is_torchs_over_all_parameters_together(clip_norm: float | None) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=1.0)
    result = accumulate(model, Regression(), cut(regression_pair(8), (4, 4)))
    plain = deepcopy(model)
    for parameter, gradient in zip(plain.parameters(), gradients(model), strict=True):
        parameter.grad = gradient

    norm = clip_grad_norm_(plain.parameters(), INF if clip_norm is None else clip_norm)
    SGD(plain.parameters(), lr=1.0).step()
    update = Update(optimizer, schedule=constant(), clip_norm=clip_norm)
    outcome = update.apply(result, START, 8)

    assert outcome.grad_norm == pytest.approx(norm.item(), rel=1e-14)  # the norm before clipping
    for ours, theirs in zip(weights(model), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)


def test_the_norm_of_all_gradients_is_torchs() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5, dtype=torch.float64), torch.randn(())]

    assert total_norm(tensors) == pytest.approx(get_total_norm(tensors).item(), rel=1e-6)
    assert total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == 5
    assert total_norm([]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_finite_gradient_in_half_precision_has_a_finite_norm(dtype: torch.dtype) -> None:
    """300 * sqrt(90000) = 90000, above float16's largest number, 65504."""
    norm = total_norm([torch.full((90_000,), 300.0, dtype=dtype)])

    assert norm == pytest.approx(90_000, rel=1e-3)


@pytest.mark.parametrize(
    ("gradient", "loss", "told"),
    [
        (NAN, 1.0, "loss 1, gradient norm nan"),
        (INF, 1.0, "loss 1, gradient norm inf"),
        (-INF, 1.5, "loss 1.5, gradient norm inf"),
        (3.0, NAN, "loss nan, gradient norm 3"),
        (3.0, INF, "loss inf, gradient norm 3"),
    ],
)
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_what_is_not_finite_is_refused_and_nothing_moves(
    caplog: pytest.LogCaptureFixture,
    gradient: float,
    loss: float,
    told: str,
    clip_norm: float | None,
) -> None:
    weight, optimizer = one_weight(Adam)
    update = Update(optimizer, schedule=constant(), clip_norm=clip_norm)
    asked(update, weight, 1.0)  # now Adam has a state
    before, state = weight.detach().clone(), deepcopy(optimizer.state_dict()["state"])
    caplog.clear()

    outcome = asked(update, weight, gradient, loss, Clock(samples=12))

    assert not outcome.applied
    assert torch.equal(weight, before)
    assert _same_state(optimizer, state)
    assert weight.grad is None
    assert caplog.record_tuples == [
        (
            "cadence.engine.update",
            logging.WARNING,
            f"samples=12: {told}; the update is refused, the weights stay",
        )
    ]
    asked(update, weight, 1.0)
    assert not torch.equal(weight, before)  # and the run goes on
    assert not _same_state(optimizer, state)


def test_more_refusals_in_a_row_than_are_borne_end_the_run() -> None:
    clock = START
    outcome = Outcome(applied=False, loss=0.25, grad_norm=NAN, lr=0.1)
    for items, applied in ((8, False), (8, False), (8, True), (8, False), (0, False), (8, False)):
        clock = clock.after_window(batches=2, samples=8, items=items, applied=applied)
        stop_if_diverged(clock, outcome, max_skipped=2)  # never three refused since one applied

    message = (
        "samples=56: loss 0.25, gradient norm nan: 3 windows in a row were refused because their "
        "loss or gradient is not finite; begin anew with a lower optimizer.lr, "
        "trainer.clip_norm=1, or device.precision=fp32"
    )
    clock = clock.after_window(batches=2, samples=8, items=8, applied=False)
    with pytest.raises(DivergedError, match=f"^{re.escape(message)}$"):
        stop_if_diverged(clock, outcome, max_skipped=2)


def test_a_window_without_any_item_makes_no_update(caplog: pytest.LogCaptureFixture) -> None:
    weight, optimizer = one_weight(Adam)
    update = Update(optimizer, schedule=constant())

    outcome = update.apply(found(0.0, items=0), Clock(samples=8), samples=4)

    assert not outcome.applied
    assert math.isnan(outcome.loss)
    assert math.isnan(outcome.grad_norm)
    assert weight.item() == 2
    assert optimizer.state_dict()["state"] == {}
    assert caplog.messages == ["samples=8: a window without any item; no update"]


def test_the_schedule_stands_still_while_updates_are_refused() -> None:
    weight, optimizer = one_weight()
    update = Update(optimizer, schedule=lambda samples: samples)
    clock, lrs = START, []

    for gradient in (1.0, NAN, 1.0, 1.0):
        outcome = asked(update, weight, gradient, clock=clock)
        clock = clock.after_window(batches=1, samples=4, items=4, applied=outcome.applied)
        lrs.append(outcome.lr)

    # Windows of 4 samples, read in their middle: after 2, 6 and 10 samples; 6 is tried again.
    assert lrs == [0.5 * 2, 0.5 * 6, 0.5 * 6, 0.5 * 10]
    assert (clock.samples, clock.samples_applied, clock.updates_skipped) == (16, 12, 1)


@pytest.mark.parametrize("step_size", STEP_SIZES)
def test_a_linear_schedule_gives_every_step_size_the_same_lr_in_all(step_size: int) -> None:
    """From 1 straight down to 0 after 64 samples: over 32 it sums to 32 - 32^2 / 128 = 24."""
    weight, optimizer = one_weight()
    update = Update(optimizer, schedule=lambda samples: 1 - samples / 64)
    clock, total = START, 0.0

    for window in windows(SIZES, step_size):
        weight.grad = torch.zeros_like(weight)
        lr = update.apply(found(), clock, sum(window)).lr
        clock = clock.after_window(len(window), sum(window), sum(window), applied=True)
        total += lr * sum(window)

    assert clock.samples == 32
    assert total == pytest.approx(0.5 * 24, rel=1e-14)


def test_the_schedule_scales_each_groups_own_learning_rate() -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = SGD([{"params": [first], "lr": 1.0}, {"params": [second], "lr": 0.1}])
    update = Update(optimizer, schedule=lambda samples: 0.5)

    for _ in range(2):  # the factor is on the first rates, not on those it left behind
        first.grad, second.grad = torch.ones(1), torch.ones(1)
        outcome = update.apply(found(), START, 1)

    assert outcome.lr == 0.5
    assert first.item() == pytest.approx(-1.0)
    assert second.item() == pytest.approx(-0.1)


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_a_group_that_joins_a_run_follows_schedule_and_scaling_as_the_others_do(
    scaling: str, factor: float
) -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = SGD([{"params": [first], "lr": 1.0}])
    update = Update(optimizer, schedule=lambda samples: 0.5, step_size=1, scaling=scaling)
    update.follow(4)

    optimizer.add_param_group({"params": [second], "lr": 0.1})
    for _ in range(2):
        update.follow(4)
        first.grad, second.grad = torch.ones(1), torch.ones(1)
        update.apply(found(), START, 1)

    assert first.item() == pytest.approx(-1.0 * factor)
    assert second.item() == pytest.approx(-0.1 * factor)


def test_an_optimizer_that_runs_the_model_by_itself_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(ValueError, match=r"^LBFGS runs the model by itself, .*; try "):
        Update(LBFGS([weight]), schedule=constant())


def test_a_clip_norm_that_would_turn_the_gradient_around_is_refused() -> None:
    _, optimizer = one_weight()
    message = "clip_norm=-1.0: the largest gradient norm must be above 0; use None for no clipping"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Update(optimizer, schedule=constant(), clip_norm=-1.0)


def test_a_loss_scale_that_overflows_skips_the_update_halves_and_recovers() -> None:
    # One weight w = 0 in float32, run in float16, whose largest number is 65504. Input 1, target
    # -1: the gradient of (w x - y)^2 is 2, times the scale of 65536 too large, of 32768 too, of
    # 16384 just not. The learning rate of 1/4 then makes w = -1/2.
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    scaler = GradScaler("cpu", init_scale=65536.0)
    optimizer = SGD(model.parameters(), lr=0.25)
    update = Update(optimizer, schedule=constant(), clip_norm=5.0, scaler=scaler)
    window = [(torch.ones(1, 1), -torch.ones(1, 1))]
    clock, seen = START, []

    for _ in range(4):
        result = accumulate(model, Regression(), window, autocast=torch.float16, scaler=scaler)
        outcome = update.apply(result, clock, samples=1)
        clock = clock.after_window(1, 1, 1, outcome.applied)
        seen.append((outcome.applied, outcome.grad_norm, scaler.get_scale(), model.weight.item()))
        assert model.weight.grad is None

    assert seen == [
        (False, INF, 32768.0, 0.0),
        (False, INF, 16384.0, 0.0),
        (True, 2.0, 16384.0, -0.5),
        (True, 1.0, 16384.0, -0.75),
    ]
    assert (clock.updates, clock.updates_skipped, clock.samples_applied) == (2, 2, 2)


def _same_state(optimizer: Optimizer, state: dict[int, dict[str, Tensor]]) -> bool:
    now = optimizer.state_dict()["state"]
    return all(same(now[index].values(), state[index].values()) for index in state)


def test_a_process_without_items_in_its_first_window_has_a_loss_scale_to_unscale_by() -> None:
    weight, optimizer = one_weight()
    scaler = GradScaler("cpu", init_scale=4.0)
    accumulate_here = Accumulator(
        nn.Linear(1, 1), Regression(), scaler=scaler, summed=lambda told, half: told
    )
    update = Update(optimizer, schedule=constant(), scaler=scaler)

    accumulate_here((), items=4)
    outcome = asked(update, weight, 12.0)  # as the others left it: 3, times their scale

    assert (outcome.applied, outcome.grad_norm) == (True, 3.0)
    assert weight.item() == 2 - 0.5 * 3


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_a_sparse_gradient_updates_as_the_dense_one_does(clip_norm: float | None) -> None:
    table = torch.randn(5, 3, dtype=torch.float64)
    updated = []
    for is_sparse in (False, True):
        embedding = nn.Embedding.from_pretrained(table.clone(), freeze=False, sparse=is_sparse)
        update = Update(
            SGD(embedding.parameters(), lr=0.5), schedule=constant(), clip_norm=clip_norm
        )
        for words in ([1, 1, 4], [4, 2]):  # some more than once, in two micro-batches
            embedding(torch.tensor(words)).square().sum().backward()
        outcome = update.apply(found(items=5), START, samples=5)
        updated.append((embedding.weight.detach(), outcome.grad_norm))

    (dense, dense_norm), (sparse, sparse_norm) = updated
    assert sparse_norm == pytest.approx(dense_norm, rel=1e-12)
    assert torch.allclose(sparse, dense, rtol=1e-12)
    assert not torch.equal(sparse, table)
