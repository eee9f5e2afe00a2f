"""FSDP2 on two ranks: sharded parameters are measured, clipped, skipped and rolled back as whole ones are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from guard import FaultConfig, FaultInjector, GradientGuard, GuardConfig, UnsupportedGradient
from guard.observe.shards import local
from tests.guard.loops import Cursor, MakeOptimizer, Run, adamw, differences, sgd
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow

CLIPS: dict[str, dict[str, Any]] = {
    "auto": {"kind": "auto", "factor": 1.01},
    "norm": {"max_norm": 0.2},
    "norm inf": {"max_norm": 0.05, "norm_type": math.inf},
    "norm 1": {"max_norm": 1.0, "norm_type": 1.0},
    "value": {"max_value": 0.02},
    "group": {"kind": "group", "max_norm": 0.1},
    "group inf": {"kind": "group", "max_norm": 0.05, "norm_type": math.inf},
    "autoclip": {"kind": "autoclip"},
    "zclip": {"kind": "zclip", "warmup_steps": 3, "z_thresh": 0.1},
    "adagc": {"kind": "adagc", "warmup_steps": 3, "lambda_abs": 0.2},
}
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": sgd,
    "adamw": adamw,
    "fused": lambda p: torch.optim.AdamW(p, lr=3e-3, fused=True),
}
MESHES = {"sharded": (2,), "replicated": (2, 1), "hybrid": (1, 2)}
STEPS = 24
RECOVERY = {"anchor_l2": 5.0, "l1": 1e-3, "cooldown_steps": 8}


class Uneven(nn.Module):
    """``scale`` has one row: of two ranks, one holds none of it. ``plain`` is never sharded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 17, bias=False)  # before the norm, a bias's gradient is rounding alone
        self.norm = nn.BatchNorm1d(17)
        self.second = nn.Linear(17, 4)
        self.scale = nn.Linear(4, 1, bias=False)
        self.plain = nn.Parameter(torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.first(inputs)))
        outputs: Tensor = self.second(features) * self.plain
        return outputs * (1 + 0.1 * torch.tanh(self.scale(outputs)))


def build(config: dict[str, Any], mesh: tuple[int, ...] | None, make_optimizer: MakeOptimizer = adamw) -> Run:
    """Each rank sees the whole batch: so one process alone is the reference, BatchNorm included."""
    model = Uneven()
    if mesh is not None:
        where = init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard")[-len(mesh) :])
        for part in (model.first, model.second, model.scale):
            fully_shard(part, mesh=where)
        fully_shard(model, mesh=where, ignored_params={model.plain})
    parameters = list(model.parameters())
    # torch's fused kernels take no mixture of sharded and plain parameters in one group.
    groups = [{"params": parameters[:1]}, {"params": parameters[1:4]}, {"params": parameters[4:]}]
    optimizer = make_optimizer(groups)  # type: ignore[arg-type]
    run = Run(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 50), Cursor())
    settings = GuardConfig.model_validate({"snapshot": {"every_steps": 4}, "recovery": RECOVERY, **config})
    run.guard = GradientGuard(model, optimizer, settings, scheduler=run.scheduler, data=run.cursor)
    return run


def whole(run: Run) -> dict[str, Tensor]:
    """The full weights and buffers, which all ranks gather together."""
    state = run.model.state_dict()
    return {k: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for k, v in state.items()}


def held(run: Run) -> dict[str, Any]:
    """What this rank holds of weights, buffers and moments, and as what kind of tensor."""
    states = [run.optimizer.state[p] for group in run.optimizer.param_groups for p in group["params"]]
    return {
        "model": {k: local(v).clone() for k, v in run.model.state_dict().items()},
        "optimizer": [{k: local(v).clone() for k, v in state.items()} for state in states],
        "kinds": [{k: type(v).__name__ for k, v in state.items()} for state in states],
    }


def clipped(kind: str, mesh: tuple[int, ...] | None) -> dict[str, Any]:
    run = build({"clip": CLIPS[kind]}, mesh)
    assert run.guard is not None
    for i in range(STEPS):
        run.optimizer.zero_grad()
        run.guard.backward(run.loss() * (1.5 if i % 3 == 2 else 1.0))
        run.reports.append(run.guard.step())
    return {
        "norms": [report.grad_norm for report in run.reports],
        "coefficients": [report.clip_coef for report in run.reports],
        "layers": run.guard.layer_norms,
        "weights": whole(run),
    }


def skipped(rank: int, mesh: tuple[int, ...], optimizer: str, after: int, bad: float) -> dict[str, Any]:
    """One element of rank 1's shard is bad after backward: rank 0, whose shard is good, must not step."""
    run = build({}, mesh, OPTIMIZERS[optimizer]).train(after)
    assert run.guard is not None
    before = held(run)
    run.optimizer.zero_grad()
    run.guard.backward(run.loss())
    gradient = run.model.first.weight.grad
    assert isinstance(gradient, Tensor)
    if rank == 1:
        local(gradient)[0, 0] = bad
    report = run.guard.step()
    changed = differences(before, held(run))
    return {"action": report.action, "changed": changed, "after": run.attempt().action}


def rolled_back(
    mesh: tuple[int, ...] | None, step: int, healthy: int, *, forget: bool = False
) -> dict[str, Any]:
    """Three bad batches in a row: the state returns to that of step ``healthy``, then is pulled to it.

    With ``forget`` the optimizer has lost its state by then, so that it must be laid out again.
    """
    run = build({"clip": {"max_norm": 1e6}}, mesh).train(healthy)
    assert run.guard is not None
    saved = held(run)
    fault = FaultConfig(kind="nan_loss", step=step, times=3)
    run.faults = FaultInjector([fault], model=run.model, optimizer=run.optimizer)
    run.train(step)
    if forget:
        run.optimizer.state.clear()
    while not run.reports or run.reports[-1].action != "rolled_back":
        run.attempt()
    changed = differences(saved, held(run))
    run.train(healthy + 5)
    resumed = build({}, mesh)
    assert resumed.guard is not None
    resumed.guard.load_state_dict(run.guard.state_dict())
    anchors = [whole_of(anchor) for anchor in resumed.guard.state_dict()["actor"]["recovery"]["anchors"]]
    return {
        "to": run.reports[-6].rolled_back_to,
        "changed": changed,
        "anchors": anchors,
        "weights": whole(run),
        "after": [report.action for report in run.reports[-5:]],
    }


def whole_of(tensor: Any) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.clone()


def refused(mesh: tuple[int, ...]) -> str:
    with pytest.raises(UnsupportedGradient) as raised:
        build({"clip": {"kind": "agc"}}, mesh)
    return str(raised.value)


def scenarios(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    sharded = MESHES["sharded"]
    return {
        "clipped": {
            **{(kind, "sharded"): clipped(kind, sharded) for kind in CLIPS},
            **{("norm", name): clipped("norm", MESHES[name]) for name in ("replicated", "hybrid")},
        },
        "skipped": {
            (name, optimizer, after, bad): skipped(rank, MESHES[name], optimizer, after, bad)
            for name, optimizer, after, bad in [
                ("sharded", "sgd", 0, math.nan),
                ("sharded", "sgd", 3, math.inf),
                ("sharded", "adamw", 3, math.nan),
                ("sharded", "fused", 0, math.nan),
                ("sharded", "fused", 3, math.inf),
                ("hybrid", "adamw", 3, math.nan),
            ]
        },
        "early": rolled_back(sharded, step=1, healthy=0),
        "late": rolled_back(sharded, step=7, healthy=4),
        "forgotten": rolled_back(sharded, step=7, healthy=4, forget=True),
        "refused": refused(sharded),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, scenarios, tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize(
    ("kind", "mesh"), [*((kind, "sharded") for kind in CLIPS), ("norm", "replicated"), ("norm", "hybrid")]
)
def test_norms_and_clipping_equal_those_of_one_process(
    ranks: list[dict[str, Any]], kind: str, mesh: str
) -> None:
    expected = clipped(kind, None)
    assert min(expected["coefficients"]) < 1.0, "nothing was clipped: the case proves nothing"
    for seen in ranks:
        case = seen["clipped"][kind, mesh]
        for name in ("norms", "coefficients", "layers"):
            assert case[name] == pytest.approx(expected[name], rel=1e-4), name
        for name, weights in expected["weights"].items():
            torch.testing.assert_close(case["weights"][name], weights, rtol=1e-3, atol=1e-5, msg=name)
    assert ranks[0]["clipped"][kind, mesh]["norms"] == ranks[1]["clipped"][kind, mesh]["norms"]


def test_a_bad_element_in_one_shard_skips_both_ranks_exactly(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        for case, skip in seen["skipped"].items():
            assert skip == {"action": "skipped", "changed": [], "after": "applied"}, case


def test_a_rollback_restores_every_shard_to_the_bit(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        assert [seen[name]["to"] for name in ("early", "late", "forgotten")] == [0, 4, 4]
        assert [seen[name]["changed"] for name in ("early", "late", "forgotten")] == [[], [], []]


def test_recovery_pulls_shards_as_it_pulls_whole_weights(ranks: list[dict[str, Any]]) -> None:
    for name, where in (("early", (1, 0)), ("late", (7, 4))):
        expected = rolled_back(None, *where)
        for seen in ranks:
            assert seen[name]["after"] == expected["after"] == ["applied"] * 5
            torch.testing.assert_close(seen[name]["anchors"], expected["anchors"], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(seen[name]["weights"], expected["weights"], rtol=1e-3, atol=1e-5)


def test_unit_wise_clipping_of_shards_is_refused_with_what_to_use(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        assert "agc" in seen["refused"]
        assert "set clip kind to adagc" in seen["refused"]
