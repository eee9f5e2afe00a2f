"""A step is the same step however it is cut: over ranks, over micro-batches, in mixed precision."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from prometheus_client import CollectorRegistry
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guard import FaultConfig, FaultInjector, GradientGuard, GuardConfig
from jobs.data.cursor import shard
from jobs.spec.job_spec import JobSpec
from jobs.spec.optim import OptimizerSpec
from jobs.spec.regularize import RegularizeSpec
from jobs.training.optim import build_optimizer
from jobs.training.regularize import Regularizer
from jobs.training.setup import guard_config
from jobs.training.stepper import Stepper, make_average, make_scaler
from jobs.workloads.errors import WorkloadError
from jobs.workloads.losses import cross_entropy

BATCH, CLASSES, STEPS = 24, 5, 12
CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(BATCH * STEPS, 6, generator=GENERATOR)
LABELS = torch.randint(0, CLASSES, (BATCH * STEPS,), generator=GENERATOR)
ALL = RegularizeSpec(
    l1=0.02, l2=0.1, orthogonal=0.01, gradient_noise=1e-3, label_smoothing=0.1, z_loss=0.01, fade="linear"
)


class Blobs:
    """A tiny workload; the same samples always give the same batch."""

    n_train = len(INPUTS)

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, CLASSES))

    def train_batch(self, ids: np.ndarray, epoch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(ids % len(INPUTS))
        return INPUTS[rows], LABELS[rows]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(
            model(batch[0]), batch[1], label_smoothing=ALL.label_smoothing, z_loss=ALL.z_loss
        )

    def evaluate(self, *_: Any) -> dict[str, float]:
        return {}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {}


def trained(
    world_size: int = 1,
    rank: int = 0,
    *,
    micro_batches: int = 1,
    precision: Any = "fp32",
    spec: RegularizeSpec = ALL,
    faults: tuple[FaultConfig, ...] = (),
    optimizer: str = "adamw",
    ema: float | None = None,
    attempts: int = STEPS,
    metrics: CollectorRegistry | None = None,
    config: GuardConfig | None = None,
    beat: Callable[[], None] | None = None,
) -> tuple[dict[str, Tensor], Stepper]:
    workload = Blobs()
    bare = workload.build_model()
    model = DistributedDataParallel(bare) if world_size > 1 else bare
    stepped = build_optimizer(OptimizerSpec(name=optimizer, lr=0.01), model.parameters(), decay_on="auto")
    scaler, average = make_scaler(CPU, precision), make_average(bare, ema)
    stepper = Stepper(
        workload=workload,
        model=model,
        optimizer=stepped,
        guard=GradientGuard(model, stepped, config or GuardConfig(), scaler=scaler, metrics=metrics),
        regularizer=Regularizer(spec, bare, total_steps=STEPS, seed=1),
        faults=FaultInjector(faults, model=model, optimizer=stepped),
        device=CPU,
        precision=precision,
        micro_batches=micro_batches,
        scaler=scaler,
        average=average,
        beat=beat,
    )
    for attempt in range(attempts):
        stepper.faults.begin(stepper.guard.steps)
        ids = np.arange(BATCH) + BATCH * attempt
        stepper.step(shard(ids, rank, world_size), 0)
    return {name: tensor.clone() for name, tensor in bare.state_dict().items()}, stepper


@pytest.mark.parametrize(
    ("micro_batches", "faults"), [(3, ()), (1, (FaultConfig(kind="nan_loss", step=30),))]
)
def test_a_step_that_the_device_decides_is_the_same_step(
    micro_batches: int, faults: tuple[FaultConfig, ...]
) -> None:
    ends = []
    for mode in ("exact", "deferred"):
        given: Any = {"micro_batches": micro_batches, "faults": faults, "spec": RegularizeSpec()}
        weights, stepper = trained(attempts=40, config=GuardConfig.model_validate({"mode": mode}), **given)
        in_flight = stepper.guard.state_dict()["late"] is not None
        assert in_flight is (mode == "deferred" and not faults)  # after a bad batch the host decides
        stepper.guard.flush()
        ends.append((stepper.guard.totals.steps, {n: w.tolist() for n, w in weights.items()}))
    assert ends[0] == ends[1]


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=0)


def test_a_rate_that_is_judged_on_the_batch_itself_changes_no_bit() -> None:
    parts: dict[str, Any] = {"micro_batches": 2, "precision": "fp16", "ema": 0.9}
    expected, _ = trained(**parts)
    weights, stepper = trained(**parts, config=GuardConfig(rate="act"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert stepper.guard.state_dict()["judge"]["start_rate"]["overshoot"]["changes"]


def test_each_batch_that_is_computed_again_is_progress_and_no_stall() -> None:
    beats: list[None] = []
    trained(beat=lambda: beats.append(None))
    assert not beats
    trained(faults=(FaultConfig(kind="nan_loss", step=7),), beat=lambda: beats.append(None))
    assert len(beats) > 1, "its bad samples were searched"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_micro_batches_change_nothing(optimizer: str):
    whole, _ = trained(optimizer=optimizer)
    cut, stepper = trained(optimizer=optimizer, micro_batches=4)
    assert_close(whole, cut, 2e-5)
    assert stepper.optimizer.param_groups[0]["fused"]


def rank_main(rank: int, world_size: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    weights, _ = trained(world_size, rank, micro_batches=2)
    dist.destroy_process_group()
    torch.save(weights, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_ranks_with_micro_batches_are_one_rank_with_the_whole_batch(tmp_path: Path):
    mp.start_processes(rank_main, (2, str(tmp_path)), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first), "the ranks' weights stay equal"
    assert_close(first, trained()[0], 2e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.05)])
def test_mixed_precision_follows_full_precision(precision: str, tolerance: float):
    mixed, stepper = trained(precision=precision, spec=ALL.model_copy(update={"gradient_noise": 0.0}))
    assert_close(mixed, trained(spec=ALL.model_copy(update={"gradient_noise": 0.0}))[0], tolerance)
    assert stepper.guard.steps == STEPS


def test_the_noise_is_of_the_gradient_whatever_the_loss_scale():
    strong = RegularizeSpec(gradient_noise=4.0)
    mixed, stepper = trained(precision="fp16", spec=strong, optimizer="sgd")
    assert stepper.scaler is not None
    assert stepper.scaler.get_scale() > 1
    assert_close(mixed, trained(spec=strong, optimizer="sgd")[0], 0.05)


def test_a_skipped_step_moves_no_weight_and_no_average():
    fault = FaultConfig(kind="nan_loss", step=5, times=1)
    before, _ = trained(attempts=5, ema=0.5)
    after, stepper = trained(attempts=6, faults=(fault,), ema=0.5)
    assert stepper.guard.steps == 5
    assert all(torch.equal(before[name], after[name]) for name in before)
    clean = trained(attempts=5, ema=0.5)[1].average
    assert clean is not None
    assert stepper.average is not None
    assert all(map(torch.equal, clean.state_dict().values(), stepper.average.state_dict().values()))


def test_l1_gives_zeros_where_it_acts_and_only_there():
    sparse, _ = trained(spec=RegularizeSpec(l1=20.0, parameters=("0.weight",)))
    assert (sparse["0.weight"] == 0).float().mean() > 0.5
    assert (sparse["3.weight"] != 0).all()
    with pytest.raises(WorkloadError, match="matches no parameter"):
        trained(spec=RegularizeSpec(l1=1.0, parameters=("layer9.*",)))


def test_the_strength_rises_and_fades_by_its_schedule():
    model = Blobs().build_model()
    spec = RegularizeSpec(l1=1.0, warmup_steps=4, fade="cosine")
    strength = Regularizer(spec, model, total_steps=100, seed=0).strength
    assert [strength(step) for step in (0, 1)] == pytest.approx([0.25, 0.5], rel=1e-3)
    assert strength(50) == pytest.approx(0.5)
    assert strength(100) == pytest.approx(0.0)


def test_the_average_is_the_formula_over_the_applied_steps():
    _, stepper = trained(ema=0.5, attempts=1)
    first = {name: p.clone() for name, p in stepper.model.named_parameters()}
    stepper.step(np.arange(BATCH), 0)
    assert stepper.average is not None
    for name, parameter in stepper.model.named_parameters():
        averaged = stepper.average.module.get_parameter(name)
        torch.testing.assert_close(averaged, 0.5 * first[name] + 0.5 * parameter)


def test_weight_decay_leaves_norms_and_biases_out():
    model = Blobs().build_model()
    for name, on, expected in (
        ("adamw", "auto", 2),
        ("sgd", "auto", 1),
        ("sgd", "weights", 2),
        ("adamw", "all", 1),
    ):
        groups = build_optimizer(OptimizerSpec(name=name), model.parameters(), decay_on=on).param_groups  # type: ignore[arg-type]
        assert len(groups) == expected
        if expected == 2:
            assert [p.ndim for p in groups[1]["params"]] == [1, 1, 1, 1]
            assert groups[1]["weight_decay"] == 0.0 < groups[0]["weight_decay"]


def test_the_z_loss_has_the_gradient_of_its_formula():
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    (cross_entropy(logits, labels, z_loss=0.3) - cross_entropy(logits, labels)).backward()
    shares = logits.detach().softmax(-1)
    expected = 2 * 0.3 * logits.detach().logsumexp(-1, keepdim=True) * shares / 7
    torch.testing.assert_close(logits.grad, expected)


class Jittery(Blobs):
    """Draws from Python's, NumPy's and torch's generators before its forward pass."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        scale = 1 + random.random() + np.random.rand()
        return super().loss(model, (batch[0] * scale + torch.randn_like(batch[0]), batch[1]))


def test_what_a_workload_draws_before_its_forward_pass_is_no_hardware_fault():
    _, stepper = trained()
    fault = FaultConfig(kind="scaled_gradient", step=STEPS + 30, factor=1e6)
    faults = FaultInjector((fault,), model=stepper.model, optimizer=stepper.optimizer)
    jittery = dataclasses.replace(stepper, workload=Jittery(), faults=faults)
    reports = []
    for attempt in range(32):
        jittery.faults.begin(jittery.guard.steps)
        reports.append(jittery.step(np.arange(BATCH) + BATCH * (attempt % STEPS), 0))
    (incident,) = [report.incident for report in reports if report.incident is not None]
    assert incident.faulty_ranks == []


def test_the_strengths_of_the_regularizers_are_among_the_metrics():
    spec = RegularizeSpec(l1=0.2, z_loss=1e-4, dropout=0.1, gradient_noise=2.0, fade="linear")
    bare = Blobs().build_model()
    regularizer = Regularizer(spec, bare, total_steps=10, seed=0)
    assert regularizer.strengths(0) == {"l1": 0.2, "z_loss": 1e-4, "dropout": 0.1, "gradient_noise": 2.0}
    assert regularizer.strengths(5)["l1"] == pytest.approx(0.1)
    assert regularizer.strengths(10)["l1"] == 0.0, "faded, and shown as such"
    assert Regularizer(RegularizeSpec(), bare, total_steps=10, seed=0).strengths(3) == {}
    registry = CollectorRegistry()
    trained(spec=spec.model_copy(update={"dropout": None}), attempts=3, metrics=registry)
    shown = {
        sample.labels["kind"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "gradguard_regularization_strength"
    }
    assert shown["l1"] == pytest.approx(0.2 * (1 - 3 / STEPS))
    assert (shown["z_loss"], shown["recovery_l1"]) == (1e-4, 0.0)


@pytest.mark.parametrize(
    ("other", "mode"),
    [
        ({}, "auto"),  # left to the guard, which knows the device
        ({"regularize": {"l1": 0.1}}, "exact"),
        ({"train": {"ema_decay": 0.99}}, "exact"),
        ({"guard": {"on_suspect": "clip"}}, "exact"),
    ],
)
def test_mode_auto_of_a_job_is_exact_where_something_follows_each_step_at_once(
    other: dict[str, Any], mode: str
) -> None:
    spec = JobSpec.from_dict({"name": "job", **other, "guard": {**other.get("guard", {}), "mode": "auto"}})
    assert guard_config(spec, 100).mode == mode


def test_a_job_says_how_long_it_is() -> None:
    """A short one does not pay for a duel of a rate that only seems too high."""
    assert guard_config(JobSpec.from_dict({"name": "job"}), 100).total_steps == 100
    named = JobSpec.from_dict({"name": "job", "guard": {"total_steps": 9000}})
    assert guard_config(named, 100).total_steps == 9000


class Poisoned(Blobs):
    """Sample 30 has a NaN."""

    def train_batch(self, ids: np.ndarray, epoch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        inputs, labels = super().train_batch(ids, epoch, device)
        inputs[torch.from_numpy(ids) == 30, 2] = float("nan")
        return inputs, labels


def test_a_job_names_the_bad_sample_and_can_train_without_it():
    for config in ({}, {"exclude_samples": True}):
        model = (workload := Poisoned()).build_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        guard = GradientGuard(model, optimizer, GuardConfig(**config))
        regularizer = Regularizer(RegularizeSpec(), model, total_steps=STEPS, seed=0)
        faults = FaultInjector([], model=model, optimizer=optimizer)
        stepper = Stepper(workload, model, optimizer, guard, regularizer, faults, CPU, micro_batches=2)
        reports = [stepper.step(np.arange(BATCH * n, BATCH * (n + 1)), 0) for n in range(2)]
        incident = reports[1].incident
        assert [sample.sample for sample in incident.bad_samples] == [30]
        assert incident.excluded_samples == ([30] if config else [])
        assert incident.dropped_micro_batches == (0 if config else 1)
        assert reports[1].applied
