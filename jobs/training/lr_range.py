"""The learning-rate range test of a job: with as many samples and steps as the time allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer

from guard.preflight import LrRange, learning_rate_range
from jobs.errors import JobError
from jobs.training.optim import build_optimizer, tables_of
from jobs.workloads.load import make_cursor
from jobs.workloads.losses import loss_of

if TYPE_CHECKING:
    from jobs.spec.job_spec import JobSpec
    from jobs.workloads.base import Workload

LIMIT_S = 300.0
"""How long the test may take, roughly."""
_STEPS, _FEWEST_STEPS = 40, 12
_PROBE_SAMPLES, _PROBE_STEPS = 2, 2


@dataclass(frozen=True, slots=True)
class RangePlan:
    """The size of the test: ``samples`` a step, out of the job's ``batch_size``; ``seconds`` in total."""

    steps: int
    samples: int
    batch_size: int
    seconds: float

    def line(self) -> str:
        """What is about to happen, and how long it takes."""
        part = "" if self.samples == self.batch_size else f" of the {self.batch_size} in a batch"
        took = f"about {_duration(self.seconds)}"
        return f"learning rate: {self.steps} steps with {self.samples} samples{part}, {took}"


def plan_range(probe_s: float, *, samples: int, batch_size: int, limit_s: float = LIMIT_S) -> RangePlan:
    """As many samples as the time allows, and where even two are too slow, fewer steps.

    Args:
        probe_s: seconds that a step with two samples takes.
        samples: the most that fit into memory.
        batch_size: of the job.
        limit_s: seconds available.

    Raises:
        JobError: a dozen steps with two samples would take longer.
    """
    each = probe_s / _PROBE_SAMPLES
    affordable = int(limit_s / (_STEPS * each)) if each else samples
    chosen = min(samples, max(_PROBE_SAMPLES, affordable))
    step_s = max(each * chosen, 1e-9)
    steps = min(_STEPS, int(limit_s / step_s))
    if steps < _FEWEST_STEPS:
        raise JobError(
            f"the learning-rate range test would take {_duration(_STEPS * step_s)} here, where a step with "
            f"{chosen} samples takes {_duration(step_s)}: run it where the job will run, on a smaller model "
            "(--set model.name=...), or omit --lr-range"
        )
    return RangePlan(steps, chosen, batch_size, steps * step_s)


def find_learning_rates(
    spec: JobSpec,
    workload: Workload,
    model: nn.Module,
    *,
    limit_s: float = LIMIT_S,
    report: Callable[[str], None] = lambda _: None,
) -> LrRange:
    """The range test with the job's optimizer, on its first batches; the model is unchanged.

    Args:
        limit_s: seconds that it may take, by the time of its first steps.
        report: called with what is about to happen, and how long it takes.

    Raises:
        JobError: it would take longer even with the fewest samples and steps.
    """
    cursor = make_cursor(workload, spec)
    device = next(model.parameters()).device

    def optimizer(twin: nn.Module) -> Optimizer:
        return build_optimizer(spec.optimizer, twin.parameters(), tables=tables_of(twin))

    def loss(samples: int, twin: nn.Module, _: int) -> Tensor:
        batch = cursor.next_batch()
        return loss_of(workload, twin, workload.train_batch(batch.ids[:samples], batch.epoch, device))

    probe_s = math.inf
    for _ in range(2):  # the first steps of a process import and allocate
        started = time.perf_counter()
        probe = partial(loss, _PROBE_SAMPLES)
        learning_rate_range(model, probe, optimizer, steps=_PROBE_STEPS, highest=1e-5)
        probe_s = min(probe_s, (time.perf_counter() - started) / _PROBE_STEPS)
    size = spec.data.batch_size
    fitting = max(_PROBE_SAMPLES, size // (spec.scale.workers * spec.train.micro_batches))
    plan = plan_range(probe_s, samples=min(size, fitting), batch_size=size, limit_s=limit_s)
    report(plan.line())
    cursor = make_cursor(workload, spec)
    return learning_rate_range(model, partial(loss, plan.samples), optimizer, steps=plan.steps)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
