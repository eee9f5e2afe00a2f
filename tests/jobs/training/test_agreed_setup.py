"""What one rank alone knows or meets never leaves the others waiting in a collective."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from guard import RankLost
from guard.act import rng
from jobs.data.errors import DataError
from jobs.errors import JobError
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec
from jobs.training.data_agreement import identity, load_agreed
from jobs.training.determinism import settle_ddp_buckets
from jobs.training.evaluate import evaluate
from jobs.training.preflight import FILE, before_first_step
from jobs.training.run import World
from jobs.training.watchdog import Watchdog
from jobs.workloads import WorkloadError
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


class Constant:
    """One number a sample; a model of one layer, and a head that the loss does not use."""

    n_train = 16

    def __init__(self, keys: tuple[str, ...] = ("n",)) -> None:
        self._keys = keys

    def train_batch(self, ids: Any, epoch: int, device: torch.device) -> torch.Tensor:
        return torch.ones(len(ids), 2)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device
    ) -> dict[str, float]:
        return dict.fromkeys(self._keys, 1.0)


class Heads(nn.Module):
    """A head is unused."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


class Events(list[str]):
    """Stands where a run's events go."""

    def event(self, level: str, text: str) -> None:
        self.append(f"{level}: {text}")


def preflight_where(needed: list[bool], rank: int, folder: Path) -> list[str]:
    spec = JobSpec.from_dict({"preflight": "strict", "data": {"batch_size": 4}, "scale": {"workers": 2}})
    events = Events()
    run_dir = RunDir(folder)
    try:
        before_first_step(spec, Constant(), nn.Linear(2, 1), run_dir, events, needed=needed[rank])
    except JobError as error:
        return [f"refused: {error}"]
    return events


def only_rank_0_knows_of_rows(rank: int, world_size: int, folder: Path) -> list[str]:
    return preflight_where([False, True], rank, folder)


def a_strict_preflight(rank: int, world_size: int, folder: Path) -> list[str]:
    return preflight_where([True, False], rank, folder)


def test_rows_that_only_rank_0_sees_decide_for_all_ranks(tmp_path: Path) -> None:
    assert on_ranks(2, only_rank_0_knows_of_rows, tmp_path) == [[], []]
    assert not (tmp_path / FILE).exists()


def test_a_preflight_moves_no_random_number_generator(tmp_path: Path) -> None:
    """A job that starts again after its first rows runs none, and must draw the same numbers."""

    class Drawing(Constant):
        def train_batch(self, ids: Any, epoch: int, device: torch.device) -> torch.Tensor:
            scale = random.random() + np.random.rand()
            return super().train_batch(ids, epoch, device) * scale + torch.rand(())

    spec, model, before = JobSpec.from_dict({"data": {"batch_size": 4}}), nn.Linear(2, 1), rng.capture()
    before_first_step(spec, Drawing(), model, RunDir(tmp_path), Events())  # type: ignore[arg-type]
    assert (tmp_path / FILE).exists()
    assert rng.equal(rng.capture(), before)


def test_the_verdict_of_rank_0_refuses_on_all_ranks(tmp_path: Path) -> None:
    first, second = on_ranks(2, a_strict_preflight, tmp_path)
    assert "every sample is constant" in first[0]
    assert second[0].startswith("refused: ")


def other_keys(rank: int, world_size: int, folder: Path) -> str:
    workload = Constant(("n",) if rank == 0 else ("n", "correct"))
    return evaluated(workload, rank, world_size)


def other_order(rank: int, world_size: int, folder: Path) -> str:
    return evaluated(Constant(("a", "b") if rank == 0 else ("b", "a")), rank, world_size)


def evaluated(workload: Any, rank: int, world_size: int, *, divided: bool = False) -> str:
    run: Any = SimpleNamespace(
        world=World(rank, world_size, CPU, ["a", "b"], ["node a", "node b"]),
        data=SimpleNamespace(workload=workload),
        model=SimpleNamespace(evaluated=nn.Linear(2, 1), divided=divided),
        stop=SimpleNamespace(requested=lambda: False),
        watchdog=Watchdog(60),
    )
    try:
        return str(evaluate(run))
    except WorkloadError as error:
        return str(error)


def test_an_evaluation_with_other_keys_on_a_rank_ends_on_all_ranks(tmp_path: Path) -> None:
    said = on_ranks(2, other_keys, tmp_path)
    assert said[0] == said[1]
    assert "the same keys on every rank: rank 0 has n, rank 1 has n, correct" in said[0]


def test_keys_in_another_order_are_the_same_keys(tmp_path: Path) -> None:
    assert on_ranks(2, other_order, tmp_path) == ["{'a': 2.0, 'b': 2.0}"] * 2


class Fails(Constant):
    """On rank 1, where its code does it."""

    def __init__(self, where: str, rank: int) -> None:
        super().__init__()
        self._where = where if rank == 1 else ""

    def train_batch(self, ids: Any, epoch: int, device: torch.device) -> torch.Tensor:
        if self._where == "train_batch":
            raise OSError("a broken disk")
        return super().train_batch(ids, epoch, device)

    def evaluate(self, model: nn.Module, rank: int, world_size: int, device: torch.device) -> Any:
        if self._where == "between":
            raise ValueError("no such label")
        with torch.no_grad():
            model(torch.ones(1, 2))
        return {"n": "many" if self._where == "sum" else torch.ones(())}


def failing(rank: int, world_size: int, folder: Path) -> dict[str, str]:
    said = {}
    for where in ("between", "sum"):
        for divided in (False, True):
            try:
                said[f"{where}, {divided}"] = evaluated(Fails(where, rank), rank, world_size, divided=divided)
            except (ValueError, WorkloadError, RankLost) as error:
                said[f"{where}, {divided}"] = f"{type(error).__name__}: {error}"
    spec = JobSpec.from_dict({"data": {"batch_size": 4}, "scale": {"workers": 2}})
    try:
        failing_workload = Fails("train_batch", 1 - rank)  # that of rank 0
        run_dir, model = RunDir(folder / str(rank)), nn.Linear(2, 1)
        before_first_step(spec, failing_workload, model, run_dir, Events())  # type: ignore[arg-type]
    except (OSError, RankLost) as error:
        said["pre-flight"] = f"{type(error).__name__}: {error}"
    return said


def test_an_error_of_one_rank_alone_ends_all_of_them_with_its_cause(tmp_path: Path) -> None:
    healthy, failed = on_ranks(2, failing, tmp_path)
    number = "evaluate() must return numbers, but n is a str: return its sum"
    for divided in (False, True):
        assert failed[f"between, {divided}"] == "ValueError: no such label"
        assert healthy[f"between, {divided}"] == "RankLost: rank 1 failed: ValueError: no such label"
        assert failed[f"sum, {divided}"] == number
        assert healthy[f"sum, {divided}"].endswith(f"rank 1 failed: WorkloadError: {number}")
    assert healthy["pre-flight"] == "OSError: a broken disk"
    assert failed["pre-flight"] == "RankLost: rank 0 failed: OSError: a broken disk"


def one_without_data(rank: int, world_size: int, folder: Path) -> str:
    root = folder / f"node-{rank}"
    if rank == 0:
        root.mkdir()
        (root / "text.txt").write_text("all work and no play\n" * 200)
    model = {"name": "gpt", "layers": 1, "heads": 1, "width": 8, "context": 8}
    data = {"path": str(root), "batch_size": 4}
    spec = JobSpec.from_dict({"workload": "language", "model": model, "data": data})
    try:
        load_agreed(spec, World(rank, world_size, CPU, ["a", "b"], ["node a", "node b"]))
    except DataError as error:
        return str(error)
    return "loaded"


def test_data_that_one_worker_cannot_read_end_all_of_them(tmp_path: Path) -> None:
    said = on_ranks(2, one_without_data, tmp_path)
    assert said[0] == said[1]
    assert said[0].startswith("node b: data.path: there is no file or folder")


def with_an_unused_head(rank: int, world_size: int, folder: Path) -> list[str]:
    torch.manual_seed(0)
    bare = Heads()
    wrapped = nn.parallel.DistributedDataParallel(bare, gradient_as_bucket_view=True)
    unused = settle_ddp_buckets(wrapped, Constant(), CPU)
    del wrapped
    again = nn.parallel.DistributedDataParallel(
        bare, gradient_as_bucket_view=True, find_unused_parameters=True
    )
    assert settle_ddp_buckets(again, Constant(), CPU) == unused
    for _ in range(3):
        again(torch.ones(2, 2) * (rank + 1)).square().mean().backward()
    return unused


def test_parameters_that_the_loss_does_not_use_are_found_before_the_first_step(tmp_path: Path) -> None:
    assert on_ranks(2, with_an_unused_head, tmp_path) == [["spare.weight", "spare.bias"]] * 2


def test_the_data_of_a_workload_are_identified_by_what_it_knows() -> None:
    workload = Constant()
    assert identity(workload) == {"samples": 16}
    workload.classes, workload.fingerprint = ("cat", 7), 12
    assert identity(workload) == {"samples": 16, "classes": ["cat", "7"], "fingerprint": "12"}
