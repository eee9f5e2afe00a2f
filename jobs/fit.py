"""Ray Train, run in a thread so that the main thread can show progress and handle Ctrl-C."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.data.errors import DataError
from jobs.errors import JobError
from jobs.spec import JobSpec
from jobs.spec_errors import SpecError
from jobs.workloads.errors import WorkloadError

CONTROLLER_FAILURES = 5
REJECTED = "rejected"


class FitThread(threading.Thread):
    """Trains the job on the connected cluster; ``outcome`` says how it ended."""

    def __init__(self, spec: JobSpec, hub: Any, *, use_gpu: bool, scratch: Path) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._job = spec.name
        self._trainer = TorchTrainer(
            train_worker,
            train_loop_config={"spec": spec.model_dump(mode="json"), "hub": hub},
            torch_config=TorchConfig(
                backend="nccl" if use_gpu else "gloo", timeout_s=int(spec.scale.timeout_s)
            ),
            scaling_config=ScalingConfig(
                num_workers=spec.scale.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": spec.scale.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=RunConfig(
                name=spec.name,
                storage_path=str(scratch),
                failure_config=FailureConfig(
                    max_failures=spec.scale.max_failures, controller_failure_limit=CONTROLLER_FAILURES
                ),
            ),
        )
        self._result: dict[str, Any] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Trains until the end or an error."""
        try:
            self._result = self._trainer.fit().return_value
        except Exception as error:  # noqa: BLE001 - becomes the job's result
            self._error = error

    def outcome(self) -> dict[str, Any]:
        """The result of rank 0, or that the job failed and why, in one line."""
        if self._result is not None:
            return self._result
        return {"status": "failed", "job": self._job, "error": one_line(self._error)}


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every worker. What is wrong with the spec is no reason to try again."""
    from jobs.train import train

    spec = JobSpec.from_dict(config["spec"])
    try:
        return train(spec, config["hub"])
    except (JobError, SpecError, DataError, WorkloadError) as error:
        return {"status": REJECTED, "job": spec.name, "error": str(error)}


def one_line(error: BaseException | None) -> str:
    """What went wrong, and on which rank, in one line."""
    if isinstance(error, WorkerGroupError):
        return "; ".join(
            f"rank {rank}: {_first_cause(e)}" for rank, e in sorted(error.worker_failures.items())
        )
    if isinstance(error, ray.exceptions.ActorDiedError):
        return "the training controller died; continue with --resume"
    return _first_cause(error)


def _first_cause(error: BaseException | None) -> str:
    while isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        error = error.cause
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[-1] if text else 'no message'}"
