"""Ray Train's trainer and scaling policies, changed where they have no public setting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import FailureConfig, Result, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    DEFAULT_WORKER_GROUP_START_TIMEOUT_S,
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState

from jobs.ray_internals.core import on_this_node

__all__ = ["FixedScalingPolicy", "ScalingPolicy"]

POLL_S = 0.2
HEARTBEAT_S = 5.0
GROUP_START_S = DEFAULT_WORKER_GROUP_START_TIMEOUT_S
"""For so long the controller answers nothing while it starts workers."""
OMITTED_CALLBACKS = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Each starts a process, which takes seconds, again with every worker group. We pass no data sets, and the
driver frees what a dead controller had reserved."""
CONTROLLER_SETTINGS = {ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0"}
"""Each worker watches for the preemption of its own node."""

CountWorkers = Callable[[Mapping[str, Any]], int]
"""How many workers fit on the given resources, by node id."""


class TrainingAbandoned(RuntimeError):
    """The training was abandoned before it ended."""


class InterruptibleTrainer(TorchTrainer):
    """A ``TorchTrainer`` whose ``fit`` can be abandoned from another thread.

    ``ray.shutdown`` while a thread is inside a call of Ray's core crashes the process, and
    ``TorchTrainer.fit`` is one call that lasts as long as the training. So this one waits in short turns, and
    raises ``TrainingAbandoned`` soon after ``abandon`` is set. A controller that answers nothing for
    ``silent_s`` is frozen, and is killed.
    """

    def __init__(
        self,
        *args: Any,
        abandon: threading.Event,
        scaling_policy: ScalingPolicy,
        can_retry: Callable[[BaseException], bool],
        silent_s: float,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._abandon, self._policy, self._silent_s = abandon, scaling_policy, silent_s
        self._failure_policy = RetryPolicy(self.run_config.failure_config, can_retry)

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, OMITTED_CALLBACKS)]

    def fit(self) -> Result:
        """Runs the controller on this node, as Ray Train does, but with our policies, and waits in turns."""
        controller = (
            ray.remote(TrainController)
            .options(
                num_cpus=0,
                label_selector=on_this_node(),
                runtime_env={"env_vars": {**CONTROLLER_SETTINGS, **get_env_vars_to_propagate()}},
            )
            .remote(
                train_fn_ref=SentAlong(self._get_train_func()),
                scaling_policy=self._policy,
                failure_policy=self._failure_policy,
                train_run_context=self.train_run_context,
                callbacks=self._create_default_callbacks(),
                validation_config=self.validation_config,
            )
        )
        alive = Heartbeat(controller, self._silent_s)
        self._wait(controller.run.remote(), alive)
        result: Result = self._wait(controller.get_result.remote(), alive)
        if result.error:
            raise result.error
        return result

    def _wait(self, answer: Any, alive: Heartbeat) -> Any:
        while not ray.wait([answer], timeout=POLL_S)[0]:
            if self._abandon.is_set():
                raise TrainingAbandoned
            alive.check()
        return ray.get(answer)


class SentAlong:
    """The training function as an argument, where Ray Train puts it into the object store.

    A driver that uses the store while its raylet is dead is ended by Ray at once, without a message.
    """

    def __init__(self, train_fn: Callable[[], Any]) -> None:
        self._train_fn = train_fn

    def get(self) -> Callable[[], Any]:
        """The function."""
        return self._train_fn


class Heartbeat:
    """Kills an actor that answers nothing for ``silent_s``: its process is frozen, or hangs."""

    def __init__(self, actor: Any, silent_s: float) -> None:
        self._actor, self._silent_s = actor, silent_s
        self._asked, self._answer = time.monotonic(), actor.__ray_ready__.remote()

    def check(self) -> None:
        """Call it often; it does not wait."""
        now = time.monotonic()
        if ray.wait([self._answer], timeout=0)[0]:
            if now - self._asked > HEARTBEAT_S:
                self._asked, self._answer = now, self._actor.__ray_ready__.remote()
        elif now - self._asked > self._silent_s:
            self._asked = now  # if that does not end it, once more after the same time
            ray.kill(self._actor)


class RetryPolicy(DefaultFailurePolicy):
    """Starts workers again as Ray Train does, unless ``can_retry`` says that the error would come again."""

    def __init__(self, failure_config: FailureConfig, can_retry: Callable[[BaseException], bool]) -> None:
        super().__init__(failure_config)
        self._can_retry = can_retry

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """See ``FailurePolicy``."""
        if isinstance(training_failed_error, WorkerGroupError) and not self._can_retry(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class LocalScalingPolicy(FixedScalingPolicy):
    """Reserves nothing with Ray's autoscaling coordinator, which would have to be started first."""

    def _send_resource_request(self) -> None:
        pass

    _maybe_send_resource_request = _cancel_resource_request = _send_resource_request


class CustomElasticScalingPolicy(ElasticScalingPolicy):
    """An elastic policy that asks ``allowed`` how many workers may run.

    Args:
        scaling_config: of the training.
        allowed: gets the reserved resources by node id, the workers that run now, and Ray's count of the
            workers that fit on given resources.
    """

    def __init__(
        self, scaling_config: ScalingConfig, allowed: Callable[[Mapping[str, Any], int, CountWorkers], int]
    ) -> None:
        super().__init__(scaling_config)
        self._allowed = allowed
        self._running = 0

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Ray Train's decision, with the number of running workers known to ``allowed``."""
        self._running = worker_group_state.num_workers
        try:
            return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        finally:
            self._running = 0

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        return self._allowed(reserved_resources, self._running, super()._count_possible_workers)
