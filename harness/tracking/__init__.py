"""The record of a run: metrics.jsonl always, and its copy in MLflow. The only package that imports mlflow.

MLflow is slow (seconds to open a store, 10-20 ms a call) and may be missing or out of reach, so one background
thread does everything that touches it. Where it fails the run goes on: metrics.jsonl holds the same figures.
"""

from harness.tracking.experiment import Experiment
from harness.tracking.runs import Recorded, Status, recorded, settle
from harness.tracking.stores import OFF, check, require, ui

__all__ = ["OFF", "Experiment", "Recorded", "Status", "check", "recorded", "require", "settle", "ui"]
