"""Ray Train's trainer, in a form that another thread can give up on.

`ray.shutdown` takes the core of Ray away: a thread that is inside a call of it at that moment crashes the
whole process. `TorchTrainer.fit` is one call that lasts as long as the training, so the waiting is done here
instead, in short turns.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController

from jobs.placement.scaling_policy import scaling_policy

TURN_S = 0.2
SPARED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""What Ray Train would start a process for, which takes seconds, and again with each group of workers: we
pass it no data sets, and the driver itself frees what a dead controller had reserved."""
SETTINGS = {ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0"}
"""Nor is its watcher of preemptions needed: each worker watches for its own node."""


class GivenUp(RuntimeError):
    """The training was given up on before it ended."""


class Trainer(TorchTrainer):
    """A `TorchTrainer` whose `fit` raises `GivenUp` soon after the event `give_up` is set.

    It is told of nodes to avoid, by their ids, since Ray Train counts on the room that they have; and whether
    the cluster is ``embedded`` in this process and nobody else's.
    """

    def __init__(
        self, *args: Any, give_up: threading.Event, avoid: Collection[str], embedded: bool, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._give_up, self._avoid, self._embedded = give_up, avoid, embedded

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, SPARED)]

    def _initialize_and_run_controller(self, **options: Any) -> Result:
        """Runs the controller on this node, as Ray Train does, but waits for it in turns."""
        options["scaling_policy"] = scaling_policy(self.scaling_config, self._avoid, embedded=self._embedded)
        controller = (
            ray.remote(TrainController)
            .options(
                num_cpus=0,
                label_selector={ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()},
                runtime_env={"env_vars": {**SETTINGS, **get_env_vars_to_propagate()}},
            )
            .remote(**options)
        )
        self._wait(controller.run.remote())
        result: Result = self._wait(controller.get_result.remote())
        return result

    def _wait(self, answer: Any) -> Any:
        while not ray.wait([answer], timeout=TURN_S)[0]:
            if self._give_up.is_set():
                raise GivenUp
        return ray.get(answer)
