"""Ray Train, run in a thread so that the main thread can show progress and handle Ctrl-C."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from ray.train.torch import TorchConfig
from ray.util.placement_group import PlacementGroup, remove_placement_group

from jobs.data.errors import DataError
from jobs.errors import JobError
from jobs.failures import by_rank, log_failure, one_line
from jobs.folder import JobFolder
from jobs.spec import JobSpec
from jobs.spec_errors import SpecError
from jobs.trainer import GivenUp, Trainer
from jobs.workloads.errors import WorkloadError

logger = logging.getLogger(__name__)

CONTROLLER_FAILURES = 5
GIVE_UP_S = 5.0
REJECTED = "rejected"


class FitThread(threading.Thread):
    """Trains the job on the connected cluster; ``outcome`` says how it ended.

    Ray Train starts workers again that died, but nobody starts its controller again: that is done here.
    """

    def __init__(self, spec: JobSpec, hub: Any, *, use_gpu: bool, scratch: Path) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._spec, self._hub, self._use_gpu, self._scratch = spec, hub, use_gpu, scratch
        self.notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What the user is to be told."""
        self._give_up, self._ended = threading.Event(), threading.Event()
        self._result: dict[str, Any] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Trains until the end or an error."""
        try:
            self._train()
        finally:
            self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Whether the training has ended, now or within the time.

        Not `join`: before Python 3.13 a Ctrl-C in it makes a thread that runs pass for one that has ended.
        """
        return self._ended.wait(seconds)

    def _train(self) -> None:
        log = JobFolder(self._spec.job_dir).log
        for attempt in range(self._spec.scale.max_failures + 1):
            try:
                self._result = self._trainer(attempt).fit().return_value
                return
            except GivenUp:
                self._error = None
                return
            except ray.exceptions.ActorDiedError as error:
                self._error = error
                log_failure(log, error)
                free_reserved()
                self.notes.put("the training controller died: starting another one")
            except Exception as error:  # noqa: BLE001 - becomes the job's result
                self._error = error
                if not isinstance(error, WorkerGroupError):  # those were logged when they happened
                    log_failure(log, error)
                return

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the training; at the end of the block one that has not ended is given up on."""
        self.start()
        try:
            yield
        finally:
            self._give_up.set()
            if self.wait(GIVE_UP_S):
                self.join()

    def outcome(self) -> dict[str, Any] | None:
        """The result of rank 0, or that the job failed and why, in one line; none if it was given up on."""
        if self._result is not None:
            return self._result
        if self._error is None:
            return None
        return {"status": "failed", "job": self._spec.name, "error": one_line(self._error)}

    def _trainer(self, attempt: int) -> Trainer:
        spec, use_gpu = self._spec, self._use_gpu
        return Trainer(
            train_worker,
            give_up=self._give_up,
            train_loop_config={"spec": spec.model_dump(mode="json"), "hub": self._hub},
            torch_config=TorchConfig(
                backend="nccl" if use_gpu else "gloo", timeout_s=max(1, round(spec.scale.timeout_s))
            ),
            scaling_config=ScalingConfig(
                num_workers=spec.scale.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": spec.scale.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=RunConfig(
                name=f"{spec.name}-{attempt}",
                storage_path=str(self._scratch),
                failure_config=FailureConfig(
                    max_failures=spec.scale.max_failures, controller_failure_limit=CONTROLLER_FAILURES
                ),
                callbacks=[TellFailures(spec, self._hub)],
            ),
        )


def free_reserved() -> None:
    """A dead controller's workers are gone at once, but not the room that it had reserved for them."""
    job_id = ray.get_runtime_context().get_job_id()
    for group_id, group in ray.util.placement_group_table().items():
        if group_id.endswith(job_id) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


class TellFailures(UserCallback):
    """Runs in Ray Train's controller: says which worker failed and why, before it is started again."""

    def __init__(self, spec: JobSpec, hub: Any) -> None:
        self._job, self._log, self._hub = spec.name, JobFolder(spec.job_dir).log, hub

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """An exception in here would end the training, so there is none."""
        try:
            log_failure(self._log, worker_exceptions)
            self._hub.note.remote(self._job, "error", by_rank(worker_exceptions))
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("cannot tell of a failure: %s", error)


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every worker. What is wrong with the spec is no reason to try again."""
    from jobs.train import train

    spec = JobSpec.from_dict(config["spec"])
    try:
        return train(spec, config["hub"])
    except (JobError, SpecError, DataError, WorkloadError) as error:
        return {"status": REJECTED, "job": spec.name, "error": str(error)}
    except Exception as error:
        rank = ray.train.get_context().get_world_rank()
        log_failure(JobFolder(spec.job_dir).log, {rank: error})  # the traceback does not leave this process
        raise
