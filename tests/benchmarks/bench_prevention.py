"""Does prevention help? An aggressive learning rate on real images: with no cure, with each alone, with all,
and with the guard.

    python tests/benchmarks/bench_prevention.py [--seeds 5] [--steps 200] [--lr 0.4] [--only CURE ...]

Every run is the code that trains jobs, in this process, without Ray. The network is a plain one, with neither
normalization nor residual branches, on Fashion-MNIST (or on digits, where that is not there). Where the guard
is not the cure it only watches (``mode: shadow``), so that anomalies are counted alike. A run has diverged
when its weights are no longer finite, or it is no better than a guess: test loss of ln 10 or more.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import progress, show
from torch import nn

from guard import FaultInjector, GradientGuard, GuardHalt, GuardMetrics
from jobs.data.cursor import DataCursor
from jobs.init import build_initialized
from jobs.spec.job_spec import JobSpec
from jobs.training.dropout import set_randomness
from jobs.training.optim import build_optimizer, build_schedule
from jobs.training.regularize import Regularizer
from jobs.training.stepper import Stepper
from jobs.workloads.vision import VisionWorkload

CPU = torch.device("cpu")
MAX_NORM = 1.0
CLIP: dict[str, Any] = {"clip": True}
INIT: dict[str, Any] = {"model": {"init": "lsuv"}}
WEIGHTS: dict[str, Any] = {"regularize": {"l1": 1e-4, "l2": 5e-3}}
AUGMENT: dict[str, Any] = {"data": {"augment": "standard"}}
GUARD: dict[str, Any] = {"guard": {"mode": "exact"}}
GUARD_THAT_CLIPS: dict[str, Any] = {"guard": {"mode": "exact", "clip": {"max_norm": MAX_NORM}}}
ALL = {**CLIP, **INIT, **WEIGHTS, **AUGMENT}
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "clip to 1.0": CLIP,
    "init lsuv": INIT,
    "L1 and L2": WEIGHTS,
    "augmentation": AUGMENT,
    "all four": ALL,
    "guard": GUARD,
    "guard, all four": {**INIT, **WEIGHTS, **AUGMENT, **GUARD_THAT_CLIPS},
}


class Plain(VisionWorkload):
    """The images of the built-in workload and a network that does not stabilize itself."""

    def build_model(self) -> nn.Module:
        """Three convolutions and two linear layers."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._spec.seed)
            layers: list[nn.Module] = []
            channels = self.train_batch(np.arange(1), 0, CPU)[0].shape[1]
            for width in (16, 32, 64):
                layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
                channels = width
            head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
            return nn.Sequential(*layers, *head)


class Clipping(Regularizer):
    """Clips the global norm too, as a bare loop does: before the optimizer's step, whatever happens."""

    def noise_(self, step: int, loss_scale: float) -> None:
        """After the last backward."""
        super().noise_(step, loss_scale)
        nn.utils.clip_grad_norm_(self._all, MAX_NORM)


@dataclass(slots=True)
class Outcome:
    """The outcome of the five runs of one variant."""

    diverged: int = 0
    halted: int = 0
    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    anomalies: int = 0
    skips: int = 0
    rollbacks: int = 0


def spec_of(variant: dict[str, Any], seed: int, arguments: argparse.Namespace) -> JobSpec:
    sections = {name: value for name, value in variant.items() if name != "clip"}
    given: dict[str, Any] = {
        "seed": seed,
        "optimizer": {"name": "sgd", "lr": arguments.lr, "momentum": 0.9, "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        "train": {"max_steps": arguments.steps},
        **sections,
        "data": {"batch_size": 64, "test_limit": 2000, **sections.get("data", {})},
        "guard": {
            "mode": "shadow",
            "snapshot": {"every_steps": 10},
            "budget": {"rollbacks": 20},
            **sections.get("guard", {}),
        },
    }
    return JobSpec.from_dict(given)


def run(spec: JobSpec, *, clip: bool, outcome: Outcome) -> None:
    """Trains once and adds the outcome."""
    workload = Plain(spec)
    model = build_initialized(spec, workload)
    set_randomness(model, spec.regularize)
    optimizer = build_optimizer(spec.optimizer, model.parameters())
    schedule = build_schedule(spec.schedule, optimizer, spec.total_steps(workload.n_train))
    cursor = DataCursor(workload.n_train, spec.data.batch_size, spec.seed)
    metrics = GuardMetrics()
    guard = GradientGuard(model, optimizer, spec.guard, scheduler=schedule, data=cursor, metrics=metrics)
    kind = Clipping if clip else Regularizer
    regularizer = kind(spec.regularize, model, total_steps=spec.train.max_steps or 0, seed=spec.seed)
    faults = FaultInjector((), model=model, optimizer=optimizer)
    stepper = Stepper(workload, model, optimizer, guard, regularizer, faults, CPU)
    try:
        while guard.steps < (spec.train.max_steps or 0):
            batch = cursor.next_batch()
            stepper.step(batch.ids, batch.epoch)
    except GuardHalt:
        outcome.halted += 1
    judge(workload, model, metrics, outcome)


def judge(workload: Plain, model: nn.Module, metrics: GuardMetrics, outcome: Outcome) -> None:
    measured = workload.metrics(workload.evaluate(model, 0, 1, CPU))
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    diverged = not finite or not measured["test_loss"] < math.log(10)
    outcome.diverged += diverged
    outcome.accuracy.append(measured["test_accuracy"])
    outcome.loss.append(measured["test_loss"])
    totals = metrics.snapshot()["totals"]
    outcome.anomalies += sum(sum(verdicts.values()) for verdicts in totals["anomalies"].values())
    outcome.skips += totals["steps"]["skipped"]
    outcome.rollbacks += sum(totals["rollbacks"].values())


def row(name: str, outcome: Outcome, seeds: int) -> dict[str, Any]:
    finite = [loss for loss in outcome.loss if math.isfinite(loss)]
    return {
        "cure": name,
        "diverged": f"{outcome.diverged} of {seeds}",
        "halted": outcome.halted,
        "accuracy, worst": min(outcome.accuracy),
        "accuracy, median": statistics.median(outcome.accuracy),
        "test loss, median": statistics.median(finite) if len(finite) == seeds else "not finite",
        "anomalies": outcome.anomalies,
        "skips": outcome.skips,
        "rollbacks": outcome.rollbacks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.4)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="CURE")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        progress(name)
        variant, outcome = VARIANTS[name], Outcome()
        for seed in range(arguments.seeds):
            clip = bool(variant.get("clip"))
            run(spec_of(variant, seed, arguments), clip=clip, outcome=outcome)
        rows.append(row(name, outcome, arguments.seeds))
    title = f"prevention: SGD with momentum at lr {arguments.lr:g}, {arguments.steps} steps"
    show(title, rows, arguments.json, seeds=range(arguments.seeds))


if __name__ == "__main__":
    main()
