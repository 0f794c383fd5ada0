"""Where and how a model is computed changes nothing of what is trained, certified or kept."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CommandLine
from oracles import same
from torch import Tensor, nn
from warm import Warm

from cadence.certify.certificate import certify
from cadence.checkpoint.file_format import read
from cadence.checkpoint.folder import FOLDER
from cadence.data.batch import Batch
from cadence.engine.device import compile_forward, is_compiled, uncompile
from cadence.objectives import Classification


class Chooses(nn.Module):
    """A model whose instances have a forward of their own."""

    def __init__(self, forward: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.forward = forward or self.doubled

    def doubled(self, inputs: Tensor) -> Tensor:
        found: Tensor = 2 * self.layer(inputs)
        return found


class MeanOfClasses(Classification):
    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)


@pytest.fixture
def translated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile translate by tracing alone, without a C++ compiler, in milliseconds."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("translated")
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 2), Chooses, lambda: Chooses(torch.sin)])
def test_what_was_compiled_computes_the_same_and_is_the_models_own_again(
    make: Callable[[], nn.Module],
) -> None:
    model, inputs = make(), torch.randn(4, 3)
    own, expected = model.forward, model(inputs)
    assert not is_compiled(model)

    compile_forward(model)

    assert is_compiled(model)
    assert torch.equal(model(inputs), expected)
    uncompile(model)
    assert not is_compiled(model)
    assert model.forward == own


def test_a_forward_of_the_models_own_is_not_taken_for_a_compiled_one() -> None:
    model = Chooses()
    uncompile(model)
    assert model.forward == model.doubled


@pytest.mark.usefixtures("translated")
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 4), partial(nn.Sequential, nn.Linear(3, 4))])
def test_a_compiled_model_has_the_certificate_that_it_has_uncompiled(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    model = make()
    window = [(torch.randn(4, 3), torch.randint(4, (4,))) for _ in range(2)]
    plain = [certify(model, each(), window) for each in (Classification, MeanOfClasses)]
    compile_forward(model)

    found = [certify(model, each(), window) for each in (Classification, MeanOfClasses)]

    for one, other in zip(found, plain, strict=True):
        assert (one.comparisons, one.causes) == (other.comparisons, other.causes)
        assert one.notes == ("the model is certified as it is without torch.compile", *other.notes)
    assert [certificate.passed for certificate in found] == [True, False]
    assert is_compiled(model)


def test_a_loss_that_does_not_come_from_the_model_is_no_pass() -> None:
    elsewhere = nn.Linear(3, 4)

    class Elsewhere(Classification):
        def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return super().total_loss(elsewhere, batch)

    window = [(torch.randn(4, 3), torch.randint(4, (4,))) for _ in range(2)]

    with pytest.raises(ValueError, match=r"^no parameter gets a gradient from the window, so "):
        certify(nn.Linear(3, 4), Elsewhere(), window)


@pytest.mark.slow
def test_a_compiled_run_trains_resumes_and_logs_as_an_uncompiled_one(
    warm: Warm, command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    runs = {name: tmp_path / name for name in ("plain", "compile", "channels_last")}
    given = ("model=cnn", "trainer.max_samples=256", "trainer.max_epochs=null",
             f"track.uri={tracking_uri}", "track.log_model=true")  # fmt: skip
    for name, folder in runs.items():
        own = () if name == "plain" else (f"device.{name}=true",)
        ended = command(*given, *own, f"hydra.run.dir={folder}")
        assert ended.returncode == 0, ended.stderr

    states = {name: read(folder / FOLDER / "last.pt") for name, folder in runs.items()}
    for name in ("compile", "channels_last"):
        for key, plain in states["plain"].model.items():
            torch.testing.assert_close(states[name].model[key], plain, rtol=1e-3, atol=1e-5)
    import mlflow  # only here: a GPU machine may lack it

    mlflow.set_tracking_uri(tracking_uri)
    logged = mlflow.pytorch.load_model(f"runs:/{states['compile'].mlflow_run_id}/model")
    best = read(runs["compile"] / FOLDER / "best.pt")
    assert not is_compiled(logged)
    assert same(logged.state_dict().values(), best.model.values())

    resumed = warm.run(
        "src.train", [f"resume={runs['compile']}", "trainer.max_samples=512"], tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr
    assert read(runs["compile"] / FOLDER / "last.pt").clock.samples == 512
    certified = command("model=cnn", "device.compile=true", module="src.certify")
    assert certified.returncode == 0, certified.stderr
    assert "note     the model is certified as it is without torch.compile" in certified.stdout
