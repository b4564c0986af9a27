"""A student as an MLflow model: a torch.export program, and a version of a registered one."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.tracking.runs import MAX_TAG, Store, truncate

if TYPE_CHECKING:
    from torch import nn


def log_model(store: Store, module: nn.Module, shape: tuple[int, int, int]) -> str:
    """Logs `module` for float images [-1, C, H, W], unless an earlier end of this run did; returns the model's id."""
    import torch

    earlier = store.client.get_run(store.run_id).outputs
    if earlier and earlier.model_outputs:
        return str(earlier.model_outputs[0].model_id)
    with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        import mlflow.pytorch
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        dtype = next(module.parameters()).dtype
        example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)  # 2: 1 would fix B
        x, y = example.numpy(), module(example).numpy()
        takes, gives = (Schema([TensorSpec(array.dtype, (-1, *array.shape[1:]))]) for array in (x, y))
        logged = store.client.create_logged_model(store.experiment_id, name="student", source_run_id=store.run_id)
        model = Model(logged.artifact_location, store.run_id, model_uuid=logged.model_id, model_id=logged.model_id)
        status = LoggedModelStatus.FAILED
        try:
            mlflow.pytorch.save_model(
                module, f"{folder}/model", mlflow_model=model, signature=ModelSignature(takes, gives), input_example=x,
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"], serialization_format="pt2",
            )  # fmt: skip
            store.client.log_model_artifacts(logged.model_id, f"{folder}/model")
            status = LoggedModelStatus.READY
        finally:
            store.client.finalize_logged_model(logged.model_id, status)
        step = max(store.last.values(), default=0)
        store.client.log_outputs(store.run_id, [LoggedModelOutput(logged.model_id, step)])
        return str(logged.model_id)


def register(store: Store, model_id: str, name: str, tags: Mapping[str, Any]) -> None:
    """The model as a version of the registered model `name`, unless this run has one there."""
    from mlflow.exceptions import MlflowException

    client = store.client
    try:
        client.create_registered_model(name)
    except MlflowException:  # unless it is there already, the next call says what is wrong
        client.get_registered_model(name)
    if any(version.run_id == store.run_id for version in client.search_model_versions(f"name='{name}'")):
        return
    texts = {key: truncate(value, MAX_TAG) for key, value in tags.items()}
    # A server looks the model up in its own store; without one MLflow would do so where its environment says.
    served = client.tracking_uri.startswith("http")
    source = f"models:/{model_id}" if served else client.get_logged_model(model_id).artifact_location
    client.create_model_version(name, source, store.run_id, texts, model_id=model_id)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings, and restores the root logger, which the import of mlflow.pytorch reconfigures."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
