"""The model that goes to MLflow: by what its objective gives it, and never at the run's cost."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from conftest import CommandLine
from oracles import as_a_user_calls_it
from torch import Tensor, nn

from cadence.objectives import Classification, LanguageModelling, MeanLoss, Regression
from cadence.tracking.mlflow.example import example_inputs

REMEDY = "train with track.log_model=false"


class Twice:
    """An objective that shows its model two views, each a call of its own."""

    def items(self, batch: Any) -> int:
        return len(batch)

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        first: Tensor = model(batch * 2)
        second: Tensor = model(batch * 3)
        return (first - second).square().sum()


@pytest.mark.parametrize(
    ("model", "objective", "batch", "expected"),
    [
        (
            nn.Linear(3, 1),
            Regression(),
            {"targets": torch.ones(2), "inputs": torch.arange(6.0).view(2, 3)},
            torch.arange(6.0).view(2, 3),
        ),
        (
            nn.Embedding(9, 9),
            LanguageModelling(),
            torch.tensor([[1, 2, 3], [4, 5, 6]]),
            torch.tensor([[1, 2], [4, 5]]),
        ),
        (nn.Linear(3, 1), Twice(), torch.ones(2, 3), torch.full((2, 3), 2.0)),
    ],
    ids=["a dict with its targets first", "bare tokens", "two calls"],
)
def test_the_example_is_what_the_objective_gives_the_model(
    model: nn.Module, objective: Any, batch: Any, expected: Tensor
) -> None:
    assert torch.equal(example_inputs(model, objective, batch), expected)


class Called:
    """An objective that calls its model as it is told."""

    def __init__(self, *inputs: Any, **named: Any) -> None:
        self._inputs, self._named = inputs, named

    def items(self, batch: Any) -> int:
        return len(batch)

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        model(*self._inputs, **self._named)
        return torch.zeros(())


class PutsOut(nn.Module):
    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._outputs


class Uncalled(Called):
    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        return torch.zeros(())


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("outputs", "objective", "told"),
    [
        (ONE, Called(ONE, ONE), "the objective calls the model with 2 inputs"),
        (ONE, Called(ONE, mask=ONE), "the objective calls the model with 2 inputs"),
        (ONE, Called(inputs=ONE), "the objective calls the model with inputs by name"),
        (ONE, Called({"a": ONE}), "the objective calls the model with a dict"),
        ((ONE, ONE), Called(ONE), "the model puts out a tuple"),
        ({"logits": ONE}, Called(ONE), "the model puts out a dict"),
        (ONE, Uncalled(), "the objective never calls the model"),
    ],
)
def test_a_model_of_other_than_one_tensor_to_one_tensor_is_refused_before_it_trains(
    outputs: Any, objective: Any, told: str
) -> None:
    with as_a_user_calls_it(), pytest.raises(ValueError, match="log_model") as refused:
        example_inputs(PutsOut(outputs), objective, ONE)

    assert str(refused.value) == (
        f"track.log_model=true: {told}, and MLflow keeps a model of one tensor to one tensor; "
        f"{REMEDY}"
    )


def test_to_look_at_the_example_changes_nothing_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    example_inputs(model, MeanLoss(nn.CrossEntropyLoss()), (torch.rand(2, 3), torch.tensor([0, 1])))
    example_inputs(model, Classification(), (torch.ones(2, 3), torch.tensor([0, 1])))

    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks


def test_a_run_whose_model_mlflow_does_not_take_is_finished_and_a_resume_logs_it(
    command: CommandLine, tmp_path: Path
) -> None:
    uri, run = f"sqlite:///{tmp_path}/mlruns/mlflow.db", tmp_path / "run"
    blocked = tmp_path / "mlruns" / "artifacts" / "models"
    blocked.parent.mkdir(parents=True)
    blocked.touch()

    ended = command("trainer.max_epochs=1", f"track.uri={uri}", "track.log_model=true")

    assert ended.returncode == 0, ended.stderr
    assert f"run folder    {run}\n" in ended.stdout
    (said,) = ended.stderr.splitlines()
    assert "WARNING: track.log_model=true: MLflow did not take the model (" in said
    assert said.endswith(
        f"); the run and its checkpoints are whole: python -m src.train resume={run} logs it"
    )
    summary = json.loads((run / "summary.json").read_text())
    tracked = mlflow.MlflowClient(uri).get_run(summary["mlflow_run_id"])
    assert (summary["status"], tracked.info.status) == ("FINISHED", "FINISHED")

    blocked.unlink()
    again = command(f"resume={run}")

    assert again.returncode == 0, again.stderr
    mlflow.set_tracking_uri(uri)
    model = mlflow.pytorch.load_model(f"runs:/{summary['mlflow_run_id']}/model")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    tracked = mlflow.MlflowClient(uri).get_run(summary["mlflow_run_id"])
    assert tracked.info.status == "FINISHED"
