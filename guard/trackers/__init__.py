"""Trackers: a run's figures, incidents and files in TensorBoard, W&B, MLflow, trackio or a CSV file.

trackers = Trackers([TrackConfig(kind="tensorboard", folder="tb")], name="my-run")
...
report = guard.step()
trackers.observe(report)
...
trackers.close("succeeded")

``trackers``: all trackers of a run: in the background, and whatever fails is counted
``config``: the options of one tracker
``base``: what a tracker has to do
``csv_file``: a CSV file
``tensorboard_files``: event files of TensorBoard
``run_id``: the id of a run, so that a restarted job continues it
``mlflow_run``: a run of MLflow
``wandb_run``: a run of W&B, or of trackio, which has the same calls
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from guard.trackers.base import Tracker
    from guard.trackers.config import TrackConfig
    from guard.trackers.trackers import Trackers

__all__ = ["TrackConfig", "Tracker", "Trackers"]

__getattr__ = lazy(__name__, {"TrackConfig": "config", "Tracker": "base", "Trackers": "trackers"})
