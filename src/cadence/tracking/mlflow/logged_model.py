"""A trained model as MLflow keeps models: loadable by name, with its signature and an example."""

import logging
from importlib.metadata import version

import mlflow
import torch
from mlflow.models import infer_signature
from torch import Tensor, nn

from cadence.engine.device import device_of, uncompile


def log_model(uri: str, run_id: str, model: nn.Module, inputs: Tensor) -> str:
    """Log a model with a run, so that ``mlflow.pytorch.load_model`` loads it.

    The run's status stays as it is.

    Args:
        uri: MLflow's tracking URI.
        run_id: The run.
        model: The model, as it is; it is logged in evaluation mode, not compiled, and stays so.
        inputs: What `cadence.tracking.mlflow.example.example_inputs` returned: its example and its
            signature's.

    Returns:
        What `mlflow.pytorch.load_model` takes.

    Raises:
        MlflowException, SQLAlchemyError, OSError: MLflow does not take it, or knows no such run.
        Exception: Whatever pickling a user's own class raises.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uncompile(model)
    model.eval()
    with torch.inference_mode():
        outputs = model(inputs.to(device_of(model)))
    example = inputs.cpu().numpy()
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    run = client.get_run(run_id)
    begun = client.create_logged_model(
        run.info.experiment_id, "model", source_run_id=run_id, params=run.data.params
    )
    logged = mlflow.pytorch.log_model(
        model,
        name="model",
        model_id=begun.model_id,
        run_id=run_id,  # not within start_run, which would end the run anew, however this ends
        signature=infer_signature(example, outputs.float().cpu().numpy()),
        input_example=example,
        pip_requirements=[f"torch=={version('torch').partition('+')[0]}"],
    )
    return str(logged.model_uri)
