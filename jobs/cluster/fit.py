"""Ray Train, run in a thread so that the main thread can show progress and handle Ctrl-C."""

from __future__ import annotations

import faulthandler
import itertools
import logging
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from ray.train.torch import TorchConfig, get_device

from jobs.cluster.failures import (
    CONTROLLER_DEATHS,
    WorkerFailed,
    by_rank,
    can_retry,
    crash_file,
    explain,
    log_crashes,
    log_failure,
)
from jobs.data.errors import DataError
from jobs.errors import JobError
from jobs.failures import explain_error
from jobs.placement.hardware_faults import PREEMPTED, display_names
from jobs.placement.plan import plan, worker_resources
from jobs.placement.scaling_policy import scaling_policy
from jobs.ray_internals.core import remove_placement_groups
from jobs.ray_internals.train import GROUP_START_S, InterruptibleTrainer, TrainingAbandoned
from jobs.run_dir.paths import RunDir
from jobs.run_dir.result import MOVING
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.training.watchdog import Watchdog, run_watched

logger = logging.getLogger(__name__)

CONTROLLER_FAILURES = 5
ABANDON_S = 5.0
REFUSED = "refused"


class FitThread(threading.Thread):
    """Trains the job on the connected cluster; ``outcome`` is how it ended.

    Ray Train restarts workers that died, but not its controller: that is done here.
    """

    def __init__(self, spec: JobSpec, hub: Any, *, use_gpu: bool, embedded: bool, scratch: Path) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._spec, self._hub, self._scratch = spec, hub, scratch
        self._use_gpu, self._embedded = use_gpu, embedded
        self.messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Errors to show to the user."""
        self._abandon, self._ended = threading.Event(), threading.Event()
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

        Not `join`: before Python 3.13 a Ctrl-C in it makes a running thread look as if it had ended.
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
            except TrainingAbandoned:
                self._error = None
                return
            except CONTROLLER_DEATHS as error:
                deaths += 1
                self._error = error
                log_failure(log, error)
                remove_placement_groups(ray.get_runtime_context().get_job_id())
                next_one = deaths <= self._spec.scale.max_failures
                self.messages.put(f"{explain(error).line}{': starting another one' if next_one else ''}")
            except Exception as error:  # noqa: BLE001 - becomes the job's result
                self._error = error
                if not isinstance(error, WorkerGroupError):  # those were logged when they happened
                    log_failure(log, error)
                return

    def _move(self, nodes: list[str], why: str) -> bool:
        """Avoids some nodes from now on; False where this process runs on one of them, which is preempted."""
        if why == PREEMPTED and ray.get_runtime_context().get_node_id() in nodes:
            return False
        self._avoid.update(nodes)
        self.messages.put(f"{display_names(nodes)} {why}: training continues without it")
        return True

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the training; at the end of the block it is abandoned if it has not ended."""
        self.start()
        try:
            yield
        finally:
            self._abandon.set()
            if self.wait(ABANDON_S):
                self.join()

    def outcome(self) -> dict[str, Any] | None:
        """The result of rank 0, or the failure in one line; None if the training was abandoned."""
        if self._result is not None:
            return self._result
        if self._error is None:
            return None
        failure = explain(self._error, self._scratch)
        if not (failure.retry or RunDir(self._spec.job_dir).has_rows()):  # the input is wrong from the start
            line = re.sub(r"^ranks? [\d, ]+: ", "", failure.line)
            return {"status": REFUSED, "job": self._spec.name, "error": line}
        return {"status": "failed", "job": self._spec.name, "error": failure.line, "cause": failure.cause}

    def _trainer(self) -> InterruptibleTrainer:
        spec, use_gpu = self._spec, self._use_gpu
        placement = plan(spec.scale, ray.nodes(), self._avoid, use_gpu=use_gpu)
        if placement is None:  # a node that the job would move to has gone since
            names = display_names(sorted(self._avoid))
            self.messages.put(f"no other node has room now: {names} may be used again")
            self._avoid.clear()
            placement = plan(spec.scale, [], (), use_gpu=use_gpu)
        assert placement is not None
        scaling = ScalingConfig(
            num_workers=placement.workers,
            use_gpu=use_gpu,
            resources_per_worker=worker_resources(spec.scale, use_gpu=use_gpu),
            label_selector=placement.label_selector,
            elastic_resize_monitor_interval_s=spec.scale.resize_every_s,
        )
        return InterruptibleTrainer(
            train_worker,
            abandon=self._abandon,
            scaling_policy=scaling_policy(scaling, placement.avoid, embedded=self._embedded),
            can_retry=can_retry,
            silent_s=GROUP_START_S + spec.scale.timeout_s + spec.scale.stall_timeout_s,
            train_loop_config={
                "spec": spec.model_dump(mode="json"),
                "hub": self._hub,
                "scratch": str(self._scratch),
            },
            torch_config=TorchConfig(
                backend=backend(spec, use_gpu=use_gpu), timeout_s=max(1, round(spec.scale.timeout_s))
            ),
            scaling_config=scaling,
            run_config=RunConfig(
                name=f"{spec.name}-{next(self._groups)}",
                storage_path=str(self._scratch),
                failure_config=FailureConfig(
                    max_failures=spec.scale.max_failures, controller_failure_limit=CONTROLLER_FAILURES
                ),
                callbacks=[FailureReporter(spec, self._hub, self._scratch)],
            ),
        )


def backend(spec: JobSpec, *, use_gpu: bool) -> str:
    """What runs the collectives; weights that are kept in main memory need both."""
    if not use_gpu:
        return "gloo"
    return "cpu:gloo,cuda:nccl" if spec.parallel.cpu_offload else "nccl"


class FailureReporter(UserCallback):
    """Runs in Ray Train's controller: reports which worker failed and why, before it is restarted."""

    def __init__(self, spec: JobSpec, hub: Any, scratch: Path) -> None:
        self._job, self._log, self._hub = spec.name, RunDir(spec.job_dir).log, hub
        self._scratch = scratch

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raises nothing: an exception here would end the training."""
        try:
            log_failure(self._log, worker_exceptions)
            log_crashes(self._log, self._scratch, worker_exceptions)
            self._hub.emit_event.remote(self._job, "error", by_rank(worker_exceptions, self._scratch))
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("cannot report a failure: %s", error)


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every worker. Errors in the user's input are returned, not retried."""
    spec = JobSpec.from_dict(config["spec"])
    watchdog = Watchdog(spec.scale.stall_timeout_s)
    rank = ray.train.get_context().get_world_rank()
    try:
        with _crashes_to(crash_file(Path(config["scratch"]), rank)):
            return run_watched(lambda: _train_here(spec, config["hub"], watchdog), watchdog)
    except (JobError, SpecError, DataError) as error:
        return {"status": REFUSED, "job": spec.name, "error": str(error)}
    except Exception as error:  # noqa: BLE001 - raised again, explained
        log_failure(RunDir(spec.job_dir).log, {rank: error})  # the traceback does not leave this process
        raise WorkerFailed(explain_error(error)) from None


@contextmanager
def _crashes_to(path: Path) -> Iterator[None]:
    """In this block a crash of the process, such as a segmentation fault, writes its stack to a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        logger.warning("cannot write %s: %s", path, error.strerror)
        yield
        return
    with file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()


def _train_here(spec: JobSpec, hub: Any, watchdog: Watchdog) -> dict[str, Any]:
    """Runs in a new thread, for which the GPU of this worker must be set again."""
    import torch

    from jobs.training.loop import train

    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return train(spec, hub, watchdog)
