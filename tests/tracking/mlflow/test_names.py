"""Names and lengths are those that this version of MLflow takes, without importing MLflow."""

import pytest
from mlflow.utils import validation
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from cadence.tracking.mlflow.names import BATCH, NAME_LENGTH, PARAM_LENGTH, PARENT, can_be_named


def test_the_limits_are_mlflows() -> None:
    """Tried with MLflow 3.17.2."""
    assert (NAME_LENGTH, PARAM_LENGTH, BATCH, PARENT) == (
        validation.MAX_ENTITY_KEY_LENGTH,
        validation.MAX_PARAM_VAL_LENGTH,
        validation.MAX_PARAMS_TAGS_PER_BATCH,
        MLFLOW_PARENT_RUN_ID,
    )


@pytest.mark.parametrize(
    "name",
    [
        *(
            "val/loss",
            "a b",
            "a.b-c_d:e",
            "\u00e9",
            "",
            ".",
            "..",
            "../a",
            "/a",
            "a/",
            "a//b",
            "./a",
        ),
        *("a/../b", "a&b", "f1 (macro)", "a\nb", "...", "..a", "a" * 250, "a" * 251),
    ],
)
def test_a_name_is_taken_where_mlflow_takes_it(name: str) -> None:
    taken = (
        len(name) <= validation.MAX_ENTITY_KEY_LENGTH
        and bool(validation.validate_param_and_metric_name(name))
        and not validation.path_not_unique(name)
    )

    assert can_be_named(name, "metric") == taken
