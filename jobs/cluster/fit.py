"""Ray Train, run in a thread so that the main thread can show progress and handle Ctrl-C."""

from __future__ import annotations

import itertools
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
from ray.train.torch import TorchConfig, get_device
from ray.util.placement_group import PlacementGroup, remove_placement_group

from jobs.cluster.failures import CONTROLLER_DEATHS, by_rank, explain, log_failure
from jobs.cluster.trainer import GivenUp, Trainer
from jobs.data.errors import DataError
from jobs.errors import JobError
from jobs.placement.hardware_faults import TAKEN_AWAY, named
from jobs.placement.plan import plan, worker_resources
from jobs.run_dir.paths import RunDir
from jobs.run_dir.result import MOVING
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.training.watchdog import Watchdog, watched
from jobs.workloads.errors import WorkloadError

logger = logging.getLogger(__name__)

CONTROLLER_FAILURES = 5
GIVE_UP_S = 5.0
REJECTED = "rejected"


class FitThread(threading.Thread):
    """Trains the job on the connected cluster; ``outcome`` says how it ended.

    Ray Train starts workers again that died, but nobody starts its controller again: that is done here.
    """

    def __init__(self, spec: JobSpec, hub: Any, *, use_gpu: bool, embedded: bool, scratch: Path) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._spec, self._hub, self._scratch = spec, hub, scratch
        self._use_gpu, self._embedded = use_gpu, embedded
        self.notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What the user is to be told."""
        self._give_up, self._ended = threading.Event(), threading.Event()
        self._result: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._avoid: set[str] = set()
        self._groups = itertools.count()

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
        log = RunDir(self._spec.job_dir).log
        deaths = 0
        while deaths <= self._spec.scale.max_failures:
            try:
                result = self._trainer().fit().return_value
                if result["status"] == MOVING and self._move(result["avoid"], result["why"]):
                    continue
                self._result = {**result, "status": "stopped"} if result["status"] == MOVING else result
                return
            except GivenUp:
                self._error = None
                return
            except CONTROLLER_DEATHS as error:
                deaths += 1
                self._error = error
                log_failure(log, error)
                free_reserved()
                next_one = deaths <= self._spec.scale.max_failures
                self.notes.put(f"{explain(error).line}{': starting another one' if next_one else ''}")
            except Exception as error:  # noqa: BLE001 - becomes the job's result
                self._error = error
                if not isinstance(error, WorkerGroupError):  # those were logged when they happened
                    log_failure(log, error)
                return

    def _move(self, nodes: list[str], why: str) -> bool:
        """Leaves some nodes out from now on; false where one of them takes this process away, too."""
        if why == TAKEN_AWAY and ray.get_runtime_context().get_node_id() in nodes:
            return False
        self._avoid.update(nodes)
        self.notes.put(f"{named(nodes)} {why}: training goes on without it")
        return True

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
        failure = explain(self._error)
        return {
            "status": "failed",
            "job": self._spec.name,
            "error": failure.line,
            "cause": failure.cause,
        }

    def _trainer(self) -> Trainer:
        spec, use_gpu = self._spec, self._use_gpu
        placement = plan(spec.scale, ray.nodes(), self._avoid, use_gpu=use_gpu)
        if placement is None:  # a node that was to take over has gone since
            self.notes.put(f"no other node has room any more: {named(sorted(self._avoid))} may be used again")
            self._avoid.clear()
            placement = plan(spec.scale, [], (), use_gpu=use_gpu)
        assert placement is not None
        return Trainer(
            train_worker,
            give_up=self._give_up,
            avoid=placement.avoid,
            embedded=self._embedded,
            train_loop_config={"spec": spec.model_dump(mode="json"), "hub": self._hub},
            torch_config=TorchConfig(
                backend="nccl" if use_gpu else "gloo", timeout_s=max(1, round(spec.scale.timeout_s))
            ),
            scaling_config=ScalingConfig(
                num_workers=placement.workers,
                use_gpu=use_gpu,
                resources_per_worker=worker_resources(spec.scale, use_gpu=use_gpu),
                label_selector=placement.label_selector,
                elastic_resize_monitor_interval_s=spec.scale.resize_every_s,
            ),
            run_config=RunConfig(
                name=f"{spec.name}-{next(self._groups)}",
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
        self._job, self._log, self._hub = spec.name, RunDir(spec.job_dir).log, hub

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """An exception in here would end the training, so there is none."""
        try:
            log_failure(self._log, worker_exceptions)
            self._hub.note.remote(self._job, "error", by_rank(worker_exceptions))
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("cannot tell of a failure: %s", error)


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every worker. What is wrong with the spec is no reason to try again."""
    spec = JobSpec.from_dict(config["spec"])
    pulse = Watchdog(spec.scale.stall_timeout_s)
    try:
        return watched(lambda: _train_here(spec, config["hub"], pulse), pulse)
    except (JobError, SpecError, DataError, WorkloadError) as error:
        return {"status": REJECTED, "job": spec.name, "error": str(error)}
    except Exception as error:
        rank = ray.train.get_context().get_world_rank()
        log_failure(RunDir(spec.job_dir).log, {rank: error})  # the traceback does not leave this process
        raise


def _train_here(spec: JobSpec, hub: Any, pulse: Watchdog) -> dict[str, Any]:
    """In a thread of its own, which does not know yet which GPU Ray has given to this worker."""
    import torch

    from jobs.training.loop import train

    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return train(spec, hub, pulse)
