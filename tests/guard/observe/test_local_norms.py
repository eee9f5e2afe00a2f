"""Local norms by hooks and by DDP's communication hook are those of each rank's own gradient."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from guard import GradientGuard, GuardConfig, GuardError
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow

STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bucket view": {"gradient_as_bucket_view": True},
    "many buckets": {"bucket_cap_mb": 0.0001},
    "unused": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "users hook": {"hook": fp16_compress_hook},
    "users hook, bucket view": {"hook": fp16_compress_hook, "gradient_as_bucket_view": True},
    "accumulated": {"micro_batches": 3},
    "accumulated, bucket view, users hook": {
        "micro_batches": 3, "gradient_as_bucket_view": True, "hook": fp16_compress_hook
    },
    "scaled": {"scale": 256.0},
    "half precision": {"dtype": torch.bfloat16},
    "sparse": {"sparse": True},
}  # fmt: skip


def network(case: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    embedding = nn.Embedding(9, 6, sparse=case.get("sparse", False))
    return nn.Sequential(embedding, nn.Flatten(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 2)).to(
        case.get("dtype", torch.float32)
    )


def batch(rank: int, step: int, micro: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * rank + 10 * step + micro)
    return torch.randint(0, 9, (5, 4), generator=generator)


def loss_of(model: nn.Module, rank: int, step: int, micro: int, case: dict[str, Any]) -> Tensor:
    output = model(batch(rank, step, micro)).float()
    return (output - rank).square().mean() * (rank + 1) / case.get("micro_batches", 1)


def reference(rank: int, case: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Local and global norms of each step, from a model in no wrapper; its weights never change."""
    local, whole = [], []
    model = network({**case, "sparse": False})
    for step in range(STEPS):
        model.zero_grad()
        for micro in range(case.get("micro_batches", 1)):
            loss_of(model, rank, step, micro, case).backward()
        flat = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
        local.append(float(flat.norm()))
        dist.all_reduce(flat)
        whole.append(float(flat.norm()) / dist.get_world_size())
    return local, whole


def measured(rank: int, by: str, case: dict[str, Any]) -> dict[str, Any]:
    ours = ("hook", "micro_batches", "scale", "dtype", "sparse")
    options = {name: value for name, value in case.items() if name not in ours}
    model = DistributedDataParallel(network(case), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=case["scale"]) if "scale" in case else None
    config = GuardConfig.model_validate({"local_norm_by": by, "clip": {"max_norm": 1e6}})
    guard = GradientGuard(model, optimizer, config, scaler=scaler)
    calls = []
    if "hook" in case:

        def counted(state: Any, bucket):  # type: ignore[no-untyped-def]
            calls.append(state)
            return case["hook"](state, bucket)

        guard.register_comm_hook(dist.group.WORLD, counted)
    reports = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(case.get("micro_batches", 1)):
            last = micro == case.get("micro_batches", 1) - 1
            with nullcontext() if last else model.no_sync():
                guard.backward(loss_of(model, rank, step, micro, case))
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # losses divided by hand
            reports.append(guard.step())
    return {
        "local": [report.local_norms for report in reports[1:]],
        "norm": [report.grad_norm for report in reports],
        "calls": len(calls),
    }


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def refused() -> list[str]:
    """How one hook too many, a model without DDP and a hook that DDP would refuse are answered."""
    messages = []
    hooked = DistributedDataParallel(nn.Linear(2, 1))
    hooked.register_comm_hook(None, allreduce_hook)
    bare = nn.Linear(2, 1)
    for model in (hooked, bare):
        with pytest.raises(GuardError) as raised:
            GradientGuard(model, sgd(model), GuardConfig(local_norm_by="comm"))
        messages.append(str(raised.value))
    guard = GradientGuard(DistributedDataParallel(bare), sgd(bare), GuardConfig(local_norm_by="comm"))

    def misnamed(state: Any, gradients: Any) -> Any:
        raise NotImplementedError

    with pytest.raises(GuardError) as raised:
        guard.register_comm_hook(None, misnamed)
    return [*messages, str(raised.value)]


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    return {
        "reference": {name: reference(rank, case) for name, case in CASES.items()},
        "measured": {
            (name, by): measured(rank, by, case) for name, case in CASES.items() for by in ("hooks", "comm")
        },
        "refused": refused(),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, scenarios, tmp_path_factory.mktemp("local"))


@pytest.mark.parametrize("by", ["hooks", "comm"])
@pytest.mark.parametrize("name", CASES)
def test_local_and_global_norms_equal_the_reference(ranks: list[dict[str, Any]], name: str, by: str) -> None:
    case = CASES[name]
    half = "hook" in case or "dtype" in case
    locals_of_steps = zip(*(seen["reference"][name][0] for seen in ranks), strict=True)
    expected = [list(step) for step in locals_of_steps][: STEPS - 1]
    for seen in ranks:
        got = seen["measured"][name, by]
        for row, true in zip(got["local"], expected, strict=True):
            assert row == pytest.approx(true, rel=1e-2 if "dtype" in case else 1e-5)
        assert got["norm"] == pytest.approx(seen["reference"][name][1], rel=1e-2 if half else 1e-5)
        assert (got["calls"] > 0) == ("hook" in case)


def test_what_cannot_work_is_refused_with_what_to_do(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        taken, bare, misnamed = seen["refused"]
        assert "pass it to guard.register_comm_hook" in taken
        assert "not in DistributedDataParallel: wrap it" in bare
        assert "name its second argument bucket" in misnamed
