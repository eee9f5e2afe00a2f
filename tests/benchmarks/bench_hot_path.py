"""What the guard costs in a step, as a ratio to ``clip_grad_norm_``.

    python tests/benchmarks/bench_hot_path.py [--rounds N] [--device cpu|cuda] [--json FILE]

For a ResNet-50 and a transformer of 10 M parameters with fused AdamW. The guard's cost is guard.backward
and guard.step less the bare backward and optimizer.step, with per-layer norms, detector and metrics; it is
deferred on a GPU. "norms alone" is the least that any guard costs: one pass over the gradients. Snapshots
and the measurement of the update norm, which come once in many steps, are timed apart. On a GPU the waits
and kernel launches of one bfloat16 ResNet-50 step are counted too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu.cuda_counts import launches, waits
from measure import interleaved, median_ms, show, timed
from torch import nn

from guard import ClipConfig, GradientGuard, GuardConfig, GuardMetrics
from guard.observe.norms import square_norms
from jobs.torchvision_compat import import_torchvision

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: import_torchvision().models.resnet50(),
    "gpt 10M": lambda: nn.Sequential(
        nn.Embedding(12_000, 320),
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(320, 5, 1280, batch_first=True), 5, enable_nested_tensor=False
        ),
    ),
}
SEED = 0
NEVER = 1e9
ALWAYS = 1e-3
SNAPSHOT_EVERY = 50


class Subject:
    """One model with gradients, an optimizer and perhaps a guard; ``step`` times one step on them."""

    def __init__(
        self, make: Callable[[], nn.Module], clip: ClipConfig | None, device: str, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(SEED)
        self.model = make().to(device, dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)
        self.source = torch.ones((), requires_grad=True, device=device)
        self.gradients = [torch.randn_like(p) * 1e-3 for p in self.model.parameters()]
        self.guard = None
        if clip is not None:
            mode = "deferred" if device == "cuda" else "exact"
            config = GuardConfig(mode=mode, clip=clip, snapshot={"every_steps": 10**9})
            self.guard = GradientGuard(self.model, self.optimizer, config, metrics=GuardMetrics(job="bench"))

    def step(self) -> float:
        self._renew_gradients()
        return timed(self._guarded if self.guard else self._bare)

    def _bare(self) -> None:
        (self.source * 1.0).backward()
        self.optimizer.step()

    def _guarded(self) -> None:
        assert self.guard is not None
        self.guard.backward(self.source * 1.0)
        report = self.guard.step()
        assert report.applied or report.pending, report.verdict

    def clip(self) -> float:
        self._renew_gradients()
        return timed(lambda: torch.nn.utils.clip_grad_norm_(self.model.parameters(), NEVER))

    def norms(self) -> float:
        self._renew_gradients()
        return timed(lambda: square_norms([p.grad for p in self.model.parameters() if p.grad is not None]))

    def _renew_gradients(self) -> None:
        for parameter, gradient in zip(self.model.parameters(), self.gradients, strict=True):
            parameter.grad = gradient.clone()


def hot_path(
    name: str, make: Callable[[], nn.Module], rounds: int, device: str, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The guard's share of a step against clip_grad_norm_ alone, medians of paired differences."""
    bare = Subject(make, None, device, dtype)
    idle = Subject(make, ClipConfig(max_norm=NEVER), device, dtype)
    clipping = Subject(make, ClipConfig(max_norm=ALWAYS), device, dtype)
    variants = {"clip": bare.clip, "norms": bare.norms, "bare": bare.step}
    variants |= {"idle": idle.step, "clipping": clipping.step}
    seconds = interleaved(variants, rounds)
    clip = statistics.median(seconds["clip"])

    def ratio(variant: str) -> float:
        pairs = zip(seconds[variant], seconds["bare"], strict=True)
        return statistics.median(guarded - bare for guarded, bare in pairs) / clip

    row = {
        "model": name,
        "clip_grad_norm_ ms": 1e3 * clip,
        "optimizer.step ms": median_ms(seconds["bare"]),
        "norms alone / clip": statistics.median(seconds["norms"]) / clip,
        "guard / clip, nothing clipped": ratio("idle"),
        "guard / clip, every step clipped": ratio("clipping"),
        **snapshots(idle, rounds),
        **update_norm(idle, rounds),
    }
    return row if device == "cpu" else {**row, **counts({"clip": bare.clip, "guard": idle.step})}


def counts(steps: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Host waits and kernel launches of each, with those of making the gradients."""
    waited = {f"waits, {name}": waits(step) for name, step in steps.items()}
    return {**waited, **{f"launches, {name}": launches(step) for name, step in steps.items()}}


def update_norm(subject: Subject, rounds: int) -> dict[str, float]:
    """One measurement of the distance that the weights moved, spread over the steps between two."""
    from guard.observe.displacement import Displacement

    every = GuardConfig().update_norm
    assert isinstance(every, int)
    moved = Displacement(list(subject.model.parameters()), subject.optimizer, every)
    moved.start(0)
    seconds = interleaved({"measure": lambda: timed(lambda: moved.measure(1))}, max(5, rounds // 4))
    return {f"update norm ms a step, every {every}": median_ms(seconds["measure"]) / every}


def snapshots(subject: Subject, rounds: int) -> dict[str, float]:
    """Saving and restoring a snapshot against a plain copy of the same tensors."""
    from guard.act.snapshot import Snapshot
    from guard.act.snapshot import Subject as Saved

    saved, snapshot = Saved(subject.model, subject.optimizer, {}), Snapshot()
    state = [v for s in subject.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    tensors = [*subject.model.parameters(), *subject.model.buffers(), *state]
    copies = [tensor.detach().clone() for tensor in tensors]
    saved.save_to(snapshot)

    @torch.no_grad()
    def plain_copy() -> None:
        torch._foreach_copy_(copies, tensors)

    seconds = interleaved(
        {
            "copy": lambda: timed(plain_copy),
            "save": lambda: timed(lambda: saved.save_to(snapshot)),
            "restore": lambda: timed(lambda: saved.restore_from(snapshot)),
        },
        max(5, rounds // 4),
    )
    copy = median_ms(seconds["copy"])
    return {
        "copy ms": copy,
        "snapshot / copy": median_ms(seconds["save"]) / copy,
        "rollback / copy": median_ms(seconds["restore"]) / copy,
        f"snapshot ms a step, every {SNAPSHOT_EVERY}": median_ms(seconds["save"]) / SNAPSHOT_EVERY,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: leave --device out")
    rows = [hot_path(name, make, options.rounds, options.device) for name, make in MODELS.items()]
    if options.device == "cuda":
        make = MODELS["resnet50"]
        rows.append(hot_path("resnet50 bf16", make, options.rounds, options.device, torch.bfloat16))
    show("hot path", rows, options.json, seeds=[SEED])


if __name__ == "__main__":
    main()
