"""DDP in all its settings, sparse gradients, torch.compile: an idle guard changes no bit, a busy one acts."""

from __future__ import annotations

import math
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard import FaultConfig, FaultInjector, GradientGuard, GuardConfig
from tests.guard.loops import NEVER, Cursor, Run, differences, network
from tests.guard.ranks import on_ranks

STEPS = 12
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "bucket view": {"gradient_as_bucket_view": True},
    "many buckets": {"bucket_cap_mb": 0.0001},
    "unused": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "static graph, bucket view": {"static_graph": True, "gradient_as_bucket_view": True},
    "accumulated": {"micro_batches": 3},
    "accumulated, bucket view": {"micro_batches": 3, "gradient_as_bucket_view": True},
    "accumulated, unused": {"micro_batches": 2, "find_unused_parameters": True},
    "compiled": {"compiled": True},
    "sparse": {"sparse": True},
}


class Branching(nn.Module):
    """One branch is taken in every other step, the last layer never."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.even = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        features: Tensor = self.body(inputs)
        return self.even(features) if self.calls % 2 else features


class Lookup(nn.Module):
    """Turns numbers into words, whose embedding has a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 4, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        embedded: Tensor = self.words(inputs.mul(5).long().clamp(-10, 9) + 10)
        return embedded.mean(dim=1)


def build(rank: int, world_size: int, setting: dict[str, Any]) -> Run:
    options = {k: v for k, v in setting.items() if k not in ("micro_batches", "compiled", "sparse")}
    torch.manual_seed(0)
    model = Branching() if "find_unused_parameters" in options else network()
    if setting.get("sparse"):
        model = Lookup()
    wrapped: Any = DistributedDataParallel(model, **options)
    if setting.get("compiled"):
        with warnings.catch_warnings(action="ignore"):
            wrapped = torch.compile(wrapped, backend="aot_eager")
    momentum = 0.0 if setting.get("sparse") else 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
    torch.manual_seed(100 + rank)
    return Run(wrapped, optimizer, None, Cursor(rank=rank, world_size=world_size))


def step(run: Run, micro_batches: int) -> None:
    run.optimizer.zero_grad()
    for i in range(micro_batches):
        last = i == micro_batches - 1
        with nullcontext() if last else run.model.no_sync(), warnings.catch_warnings(action="ignore"):  # type: ignore[operator]
            loss = run.loss() / micro_batches
            loss.backward() if run.guard is None else run.guard.backward(loss)
    if run.guard is not None:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # losses divided by hand
            run.reports.append(run.guard.step())
        return
    if not any(p.grad is not None and p.grad.is_sparse for p in run.model.parameters()):
        nn.utils.clip_grad_norm_(run.model.parameters(), NEVER)
    run.optimizer.step()


def guarded(run: Run, **config: Any) -> Run:
    settings = {"clip": {"max_norm": NEVER}, "snapshot": {"every_steps": 4}, **config}
    run.guard = GradientGuard(run.model, run.optimizer, GuardConfig.model_validate(settings), data=run.cursor)
    return run


def idle(rank: int, world_size: int, setting: dict[str, Any]) -> dict[str, Any]:
    micro_batches = setting.get("micro_batches", 1)
    plain = build(rank, world_size, setting)
    for _ in range(STEPS):
        step(plain, micro_batches)
    run = guarded(build(rank, world_size, setting))
    for _ in range(STEPS):
        step(run, micro_batches)
    states = plain.model.state_dict(), run.model.state_dict()
    return {
        "changed": differences(*states),
        "local": [r.local_norms for r in run.reports],
        "norms": [r.grad_norm for r in run.reports],
    }


def busy(rank: int, world_size: int, setting: dict[str, Any]) -> list[Any]:
    """A NaN on the last rank skips all, exactly; three in a row roll all back to step 4."""
    micro_batches = setting.get("micro_batches", 1)
    run = guarded(build(rank, world_size, setting))
    assert run.guard is not None
    while run.guard.steps < 4:
        step(run, micro_batches)
    healthy = {k: v.clone() for k, v in run.model.state_dict().items()}
    while run.guard.steps < 6:
        step(run, micro_batches)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    faults = [FaultConfig(kind="nan_loss", step=6, times=3, rank=world_size - 1)]
    run.faults = FaultInjector(faults, model=run.model, optimizer=run.optimizer, rank=rank)
    seen: list[Any] = []
    for i in range(4):
        run.faults.begin(run.guard.steps)
        step(run, micro_batches)
        seen.append(run.reports[-1].action)
        if i in (0, 2):
            seen.append(differences([before, healthy][i // 2], run.model.state_dict()))
    return seen


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    return {
        name: (idle(rank, world_size, setting), busy(rank, world_size, setting))
        for name, setting in SETTINGS.items()
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, scenarios, tmp_path_factory.mktemp("wrappers"))


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_idle_guard_changes_no_bit_and_measures_every_rank(
    ranks: list[dict[str, Any]], setting: str
) -> None:
    for seen in ranks:
        case, _ = seen[setting]
        assert case["changed"] == []
        assert all(norm > 0 for norms in case["local"][1:] for norm in norms)
        # The mean of two vectors is no longer than the longer one.
        for norms, norm in zip(case["local"][1:], case["norms"], strict=False):
            assert norm <= max(norms) * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_bad_batch_on_one_rank_is_skipped_and_three_are_rolled_back(
    ranks: list[dict[str, Any]], setting: str
) -> None:
    for seen in ranks:
        _, case = seen[setting]
        assert case == ["skipped", [], "skipped", "rolled_back", [], "applied"]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own imports
def test_a_model_compiled_to_machine_code_trains_as_without_a_guard() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    compiled: Any = torch.compile(model)
    begin = {name: weights.clone() for name, weights in model.state_dict().items()}
    plain = Run(compiled, torch.optim.AdamW(model.parameters(), lr=1e-2), None, Cursor())
    for _ in range(5):
        step(plain, 1)
    expected = plain.state()
    model.load_state_dict(begin)
    run = guarded(Run(compiled, torch.optim.AdamW(model.parameters(), lr=1e-2), None, Cursor()))
    for _ in range(5):
        step(run, 1)
    assert not differences(expected, run.state())
    assert run.guard is not None
    run.optimizer.zero_grad()
    run.guard.backward(run.loss() * math.nan)
    assert run.guard.step().action == "skipped"
    assert not differences(expected, run.state())
