"""What the guard costs of a whole bfloat16 training step on a GPU, in each mode.

    python tests/benchmarks/bench_gpu.py [--rounds N] [--device cuda|cpu] [--json FILE]

ResNet-50 and a GPT of 124 M parameters, forward and backward included, fused AdamW: no guard at all,
``clip_grad_norm_``, and the guard in all modes, in turns; how often a step makes the host wait is counted.
Without a GPU nothing is measured, and the table says so. ``--device cpu`` runs small models on the CPU: it
shows that the script works, not what a GPU does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu.cuda_counts import launches, waits
from measure import interleaved, median_ms, publish, timed
from torch import Tensor, nn
from torch.nn import functional

from guard import GradientGuard, GuardConfig
from jobs.models.gpt import GPT
from jobs.spec.language import GptShape
from jobs.torchvision_compat import import_torchvision

METHODS = ("no guard", "clip_grad_norm_", "deferred", "exact", "shadow", "off")
"""The last four are modes of the guard."""
SEED = 0
TITLE = "a bfloat16 training step on a GPU"


@dataclass(frozen=True, slots=True)
class Work:
    """A model and a batch for it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    classes: int


def works(device: str) -> dict[str, Work]:
    """The models: real sizes on a GPU, small ones on a CPU."""
    models = import_torchvision().models
    if device == "cpu":
        shape = GptShape(layers=2, heads=2, width=64, context=64, vocabulary=128)
        return {
            "resnet18": Work(lambda: models.resnet18(), lambda: torch.randn(2, 3, 64, 64), 1000),
            "gpt": Work(lambda: GPT(shape, 0), lambda: torch.randint(128, (2, 64)), 128),
        }
    shape = GptShape(layers=12, heads=12, width=768, context=1024, vocabulary=50304)
    return {
        "resnet50": Work(lambda: models.resnet50(), lambda: torch.randn(128, 3, 224, 224), 1000),
        "gpt 124M": Work(lambda: GPT(shape, 0), lambda: torch.randint(50304, (8, 1024)), 50304),
    }


class Training:
    """One model under one method; ``step`` times a step."""

    def __init__(self, work: Work, method: str, device: str) -> None:
        torch.manual_seed(SEED)
        self.device, self.method = device, method
        self.model = work.build().to(device)
        self.inputs = work.inputs().to(device)
        self.classes = work.classes
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.guard: GradientGuard | None = None
        if method in METHODS[2:]:
            config = GuardConfig.model_validate({"mode": method, "snapshot": {"every_steps": 10**9}})
            self.guard = GradientGuard(self.model, self.optimizer, config)

    def step(self) -> float:
        return timed(self.work)

    def work(self) -> None:
        """One step, without waiting for its end."""
        self.optimizer.zero_grad()
        loss = self._loss()
        if self.guard is not None:
            self.guard.backward(loss)
            self.guard.step()
            return
        loss.backward()
        if self.method == "clip_grad_norm_":
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def _loss(self) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            logits = self.model(self.inputs).view(-1, self.classes)
        labels = torch.zeros(len(logits), dtype=torch.long, device=self.device)
        return functional.cross_entropy(logits.float(), labels)


def measured(name: str, work: Work, rounds: int, device: str) -> list[dict[str, Any]]:
    """One row for each method."""
    trainings = {method: Training(work, method, device) for method in METHODS}
    seconds = interleaved({method: training.step for method, training in trainings.items()}, rounds)
    bare = median_ms(seconds["no guard"])
    rows = []
    for method, training in trainings.items():
        row: dict[str, Any] = {"model": name, "method": method, "step ms": median_ms(seconds[method])}
        row["to no guard"] = row["step ms"] / bare
        on_gpu = device == "cuda"
        row["host waits a step"] = waits(training.work) if on_gpu else "not measured"
        row["launches a step"] = launches(training.work) if on_gpu else "not measured"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        rows = [{"model": "ResNet-50, GPT 124M", "step ms": "not measured: there is no GPU here"}]
    else:
        found = works(options.device).items()
        rows = [row for name, work in found for row in measured(name, work, options.rounds, options.device)]
    publish("gpu", {TITLE: rows}, options.json, seeds=[SEED])


if __name__ == "__main__":
    main()
