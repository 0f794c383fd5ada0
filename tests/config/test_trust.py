"""What a config may call is said outside it, and nothing that runs a command is built in."""

from pathlib import Path

import pytest

from cadence.config import project, trust
from cadence.config.errors import ConfigError


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(project.ROOT_VARIABLE, str(tmp_path))
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    return tmp_path


TRUSTED = [
    "cadence.models.mlp.mlp",
    "torch.optim.AdamW",
    "torchmetrics.Accuracy",
    "torchmetrics.classification.MulticlassF1Score",
    "timm.create_model",
    "transformers.GPT2LMHeadModel",
    "transformers.GPT2Config",
    "transformers.BertForSequenceClassification.from_pretrained",
    "transformers.AutoModelForCausalLM.from_config",
    "transformers.T5ForConditionalGeneration",
]
REFUSED = [
    "os.system",
    "torch.load",
    "cadence.system.locks.run_lock",
    "torchmetrics.functional.accuracy",
    "torchmetricsx.Accuracy",
    "timm.models.load_custom_from_hf",
    "timm.models.create_model.__globals__",
    "transformers.pipeline",
    "transformers.Trainer",
    "transformers.AutoTokenizer.from_pretrained",
    "transformers.GPT2LMHeadModel.register_for_auto_class",
    "transformers.models.gpt2.os.AModel",
]


@pytest.mark.parametrize("target", TRUSTED)
def test_optimizers_metrics_and_models_of_known_libraries_need_no_saying(target: str) -> None:
    trust.check("model", {"_target_": target})


@pytest.mark.parametrize("target", REFUSED)
def test_all_else_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\._target_=.*: refused"):
        trust.check("model", {"_target_": target})


@pytest.mark.parametrize(
    ("key", "node"),
    [
        ("trust_remote_code", {"trust_remote_code": True}),
        ("trust_remote_code", {"trust_remote_code": "yes"}),
        ("config.trust_remote_code", {"config": {"trust_remote_code": True}}),
        ("attn_implementation", {"attn_implementation": "someone/kernel"}),
        ("use_kernels", {"use_kernels": True}),
    ],
)
def test_a_trusted_model_of_transformers_may_not_run_the_code_of_a_repository(
    key: str, node: dict[str, object]
) -> None:
    target = "transformers.AutoModel.from_pretrained"

    with pytest.raises(ConfigError) as refused:
        trust.check("model", {"_target_": target, **node})

    assert str(refused.value).startswith(f"model.{key}=")
    assert f"CADENCE_TRUSTED={target}" in str(refused.value)


def test_what_runs_no_code_of_a_repository_is_left_alone() -> None:
    node = {"trust_remote_code": False, "attn_implementation": "sdpa", "use_kernels": None}

    trust.check("model", {"_target_": "transformers.AutoModel.from_pretrained", **node})


@pytest.mark.parametrize(
    "node", [{"checkpoint_path": "a.pth"}, {"model_name": "local-dir:a"}, {"_args_": ["hf-hub:a"]}]
)
def test_the_factory_of_timm_may_not_unpickle_files(node: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="refused"):
        trust.check("model", {"_target_": "timm.create_model", **node})


def test_a_nested_target_is_refused_by_its_own_key() -> None:
    outer = "cadence.objectives.MeanLoss"
    inner = {"_target_": "torch.nn.CrossEntropyLoss"}

    with pytest.raises(ConfigError) as refused:
        trust.check("data.objective", {"_target_": outer, "mean_loss": inner, "parts": [inner]})

    assert str(refused.value).startswith(
        "data.objective.mean_loss._target_=torch.nn.CrossEntropyLoss: refused"
    )


def test_the_refusal_names_both_ways_to_trust_and_both_of_them_work(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"_target_": "my_project.models.Net"}
    with pytest.raises(ConfigError) as refused:
        trust.check("model", node)
    assert f'add "my_project.models.*" to [tool.cadence] trusted in {root}/pyproject.toml' in str(
        refused.value
    )
    assert "set CADENCE_TRUSTED=my_project.models.*" in str(refused.value)

    monkeypatch.setenv("CADENCE_TRUSTED", "other.*, my_project.models.*")
    trust.check("model", node)
    monkeypatch.delenv("CADENCE_TRUSTED")

    (root / "pyproject.toml").write_text('[tool.cadence]\ntrusted = ["my_project.models.*"]\n')
    trust.check("model", node)


@pytest.mark.parametrize("pattern", ["*", ".*", "os.sys*", "", "a b.*", 3])
def test_a_pattern_that_is_no_name_is_refused(root: Path, pattern: object) -> None:
    listed = repr(pattern).replace("'", '"')
    (root / "pyproject.toml").write_text(f"[tool.cadence]\ntrusted = [{listed}]\n")

    with pytest.raises(ConfigError, match="no dotted name"):
        trust.patterns()


@pytest.mark.parametrize("text", ["[tool.cadence]\ntrusted = 'os.*'\n", "[tool"])
def test_a_project_file_that_says_nothing_readable_is_named(root: Path, text: str) -> None:
    (root / "pyproject.toml").write_text(text)

    with pytest.raises(ConfigError) as refused:
        trust.patterns()

    assert str(refused.value).startswith(f"{root}/pyproject.toml: ")
