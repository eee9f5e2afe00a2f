"""Prefetching in other processes: the same pixels as without, also when the cursor is rolled back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from jobs.data import DataCursor, SampleError
from jobs.data.cursor import shard
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload
from jobs.workloads.base import ReadsAhead
from jobs.workloads.vision import VisionWorkload
from tests.jobs.data.image_folder_fixture import break_image, write_images

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).resolve().parents[3]
MICRO_BATCHES = 2


def spec(root: Path, workers: int, **data: Any) -> JobSpec:
    section: dict[str, Any] = {"dataset": "imagefolder", "root": str(root), "image_size": 16, "batch_size": 8}
    section["augment"] = {"crop": "resized", "color": {}, "mixup": 0.2, "cutmix": 1.0}
    section |= {"workers": workers, **data}
    return JobSpec.from_dict({"data": section, "train": {"micro_batches": MICRO_BATCHES}})


class Training:
    """One rank of two that takes batches as the train loop does, with or without prefetching."""

    def __init__(self, root: Path, workers: int, **data: Any) -> None:
        job = load_workload(spec(root, workers, **data))
        assert isinstance(job, VisionWorkload)
        self.job = job
        self.cursor = DataCursor(job.n_train, 8, 0)
        job.read_ahead(self.cursor, rank=1, world_size=2, device=CPU)

    def step(self) -> tuple[torch.Tensor, ...]:
        batch = self.cursor.next_batch()
        return self.again(batch.ids, batch.epoch)

    def again(self, ids: np.ndarray, epoch: int) -> tuple[torch.Tensor, ...]:
        parts = np.split(shard(ids, 1, 2), MICRO_BATCHES)
        return tuple(tensor for part in parts for tensor in self.job.train_batch(part, epoch, CPU))

    def evaluated(self) -> dict[str, float]:
        return self.job.evaluate(self.job.build_model(), 1, 2, CPU)


def children() -> list[psutil.Process]:
    """Processes that prefetch: started by this one, to run Python."""
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def equal(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Training, Training]]:
    root = write_images(tmp_path_factory.mktemp("images"), 14)
    plain, prefetching = Training(root, workers=0), Training(root, workers=2)
    yield plain, prefetching
    prefetching.job.close()
    assert psutil.wait_procs(children(), timeout=20)[1] == []


def test_a_vision_job_prefetches(pair: tuple[Training, Training]):
    assert all(isinstance(training.job, ReadsAhead) for training in pair)


def test_the_pixels_are_those_of_a_run_without(pair: tuple[Training, Training]):
    plain, prefetching = pair
    for _ in range(2 * plain.cursor.batches_per_epoch + 1):
        assert equal(plain.step(), prefetching.step())
    assert len(children()) == 2


def test_after_the_cursor_was_set_back_they_are_still_the_same(pair: tuple[Training, Training]):
    plain, prefetching = pair
    place = plain.cursor.state_dict()
    first = [plain.step() for _ in range(3)]
    for steps_before in (3, 1):
        for _ in range(steps_before):
            prefetching.step()
        prefetching.cursor.load_state_dict(place)
        assert all(equal(prefetching.step(), expected) for expected in first)
        prefetching.cursor.load_state_dict(place)
    plain.cursor.load_state_dict(place)


def test_a_batch_that_is_recomputed_is_not_read_again(pair: tuple[Training, Training]):
    plain, prefetching = pair
    batch = prefetching.cursor.next_batch()
    first = prefetching.again(batch.ids, batch.epoch)
    assert equal(prefetching.again(batch.ids, batch.epoch), first)
    assert equal(plain.step(), first)
    assert equal(plain.step(), prefetching.step())


def test_other_samples_may_be_asked_for_in_between_and_the_test_set_too(pair: tuple[Training, Training]):
    plain, prefetching = pair
    assert equal(plain.step(), prefetching.step())
    ids = np.array([3, 1, 2])
    assert equal(plain.job.train_batch(ids, 9, CPU), prefetching.job.train_batch(ids, 9, CPU))
    assert plain.evaluated() == prefetching.evaluated()
    assert equal(plain.step(), prefetching.step())


def test_the_global_random_numbers_are_untouched(pair: tuple[Training, Training]):
    _, prefetching = pair
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    prefetching.evaluated()
    prefetching.step()
    assert torch.equal(torch.rand(3), expected)
    assert len(children()) == 2, "the same processes all the time"


def test_a_resumed_run_sees_the_same_pixels(pair: tuple[Training, Training]):
    plain, prefetching = pair
    plain.cursor.load_state_dict(prefetching.cursor.state_dict())
    resumed = Training(Path(prefetching.job._spec.data.root or ""), workers=0)
    resumed.cursor.load_state_dict(prefetching.cursor.state_dict())
    for _ in range(3):
        assert equal(resumed.step(), prefetching.step())


def test_a_broken_image_is_one_line_from_another_process_too(tmp_path: Path):
    root = write_images(tmp_path, 10)
    for path in (root / "green").iterdir():
        break_image(path)
    training = Training(root, workers=1)
    try:
        with pytest.raises(SampleError, match=r"^\S+green/\S+: is not a readable image[^\n]*$"):
            steps(training, 30)
    finally:
        training.job.close()


def steps(training: Training, count: int) -> None:
    for _ in range(count):
        training.step()


BEGIN = """
import os, signal, sys, psutil
from jobs.data import DataCursor
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload

if __name__ == "__main__":
    data = {"dataset": "imagefolder", "root": sys.argv[1], "image_size": 16, "batch_size": 4, "workers": 2}
    job = load_workload(JobSpec.from_dict({"data": data}))
    cursor = DataCursor(job.n_train, 4, 0)
    job.read_ahead(cursor, 0, 1, "cpu")

    def step():
        batch = cursor.next_batch()
        job.train_batch(batch.ids, batch.epoch, "cpu")

    step()
    children = psutil.Process().children()
"""
"""A trainer in a process of its own: torch reports a dead reader between any two statements."""

READER_DIES = """
    reader = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
    reader.send_signal(signal.SIGKILL)
    for _ in range(200):
        step()
"""
TRAINER_DIES = """
    print(*(process.pid for process in children), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_trainer(folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    program = folder / "trainer.py"
    program.write_text(BEGIN + end)
    return subprocess.run(
        [sys.executable, str(program), str(write_images(folder / "images", 4))],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_a_dead_process_is_an_error(tmp_path: Path):
    run = run_trainer(tmp_path, READER_DIES)
    assert run.returncode == 1
    assert re.search(
        r"^RuntimeError: (DataLoader worker .* (killed by|exited)|a prefetching process has died)",
        run.stderr,
        re.MULTILINE,
    )


def test_no_process_outlives_a_trainer_that_was_killed(tmp_path: Path):
    run = run_trainer(tmp_path, TRAINER_DIES)
    assert run.returncode == -signal.SIGKILL
    pids = {int(pid) for pid in run.stdout.split()}
    assert len(pids) >= 2
    left = [process for process in psutil.process_iter() if process.pid in pids]
    assert psutil.wait_procs(left, timeout=60)[1] == []
