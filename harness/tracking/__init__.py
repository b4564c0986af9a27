"""The copy of a run in MLflow. The only package that imports mlflow.

MLflow is slow (seconds to open a store, 10-20 ms a call) and may be missing or unreachable, so one background thread
makes all calls of a run that is training. If MLflow fails, the run continues: metrics.jsonl (`harness.run.metrics`)
has the same figures.
"""

from harness.tracking.experiment import Experiment
from harness.tracking.page import DataSet
from harness.tracking.runs import RunRecord, Status, read_runs, set_final_status
from harness.tracking.stores import OFF, describe, require, ui

__all__ = [
    "OFF",
    "DataSet",
    "Experiment",
    "RunRecord",
    "Status",
    "describe",
    "read_runs",
    "require",
    "set_final_status",
    "ui",
]
