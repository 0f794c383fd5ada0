"""MLflow's client: opened, its errors in one line, its experiment found or made."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cadence.tracking import address
from cadence.tracking.mlflow import database

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's UI open the experiment on model training."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with its own 7 a dead server is noticed in 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the URL may hold a password
}
"""What MLflow's client reads from the environment alone; what a user sets there stays."""

REFUSALS = (MlflowException, SQLAlchemyError, OSError)
"""What MLflow's client raises when a server or a database does not take something."""


def open_client(uri: str) -> mlflow.MlflowClient:
    """Return a client of an MLflow server or database.

    Raises:
        ValueError: Nothing answers at ``uri``.
    """
    address.check(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _quiet_libraries()
    with refused(uri), database.one_at_a_time(uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the migrations that make a new database
        database.make_whole(uri)
        return mlflow.MlflowClient(uri)


def _quiet_libraries() -> None:
    """Keep migrations, retries and tracebacks of what is told in one line off the console."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def refused(uri: str) -> Iterator[None]:
    """Turn what MLflow's client raises into a ValueError that names the key and a remedy."""
    try:
        yield
    except REFUSALS as error:
        raise address.cannot_log(uri, error) from error


def experiment_id(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """Return the id of an experiment, which is made if it is not there.

    Raises:
        ValueError: It was deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            folder = address.artifact_folder(uri)
            return str(client.create_experiment(name, folder, EXPERIMENT_TAGS))
        except MlflowException:  # another run may have made it just now
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(f"track.experiment={name}: it was deleted in MLflow; restore it there, or "
                         "choose another name")  # fmt: skip
    for key, value in EXPERIMENT_TAGS.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)
