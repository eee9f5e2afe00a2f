"""A job that failed with two workers continues with one and with three, from the same sample."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.data.cursor import DataCursor
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload
from tests.integration.harness import runner
from tests.integration.harness.chaos import CONTINUES, final_weights, history, same_weights
from tests.integration.harness.runner import GRADGUARD, NOISY, Sandbox, noisy

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(900)]

STEPS = 36
SPEC: dict[str, Any] = {
    "workload": NOISY,
    "options": {"die_at": 13, "raise_at": 15, "hang_at": 14, "record": True},
    "scale": {"workers": 2, "max_failures": 1, "cpus_per_worker": 0.5},
    "data": {"dataset": "digits", "batch_size": 48, "augment": "standard"},
    "train": {"max_steps": STEPS, "checkpoint_every_steps": 5},
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(runner.__file__).parent)  # where the module of NOISY is


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, str]:
    """A job of two workers that survives one death, and not the error after it."""
    sandbox = noisy(tmp_path_factory.mktemp("broken"))
    run = sandbox.run(GRADGUARD, "train", sandbox.spec("broken", **SPEC))
    assert run.returncode == 1, run.stdout
    return sandbox, run.stdout


def test_what_cannot_be_survived_ends_with_its_cause_on_one_line(broken: tuple[Sandbox, str]) -> None:
    sandbox, output = broken
    assert "Traceback" not in output
    assert "rank 1: the worker process died" in output
    result = sandbox.result("broken")
    assert result["status"] == "failed"
    said = r"rank 1: ValueError: the loss of sample 17 is undefined \(_fail, line \d+ of chaos_workload.py\)"
    assert re.fullmatch(said, result["error"])
    assert result["error"] in output
    assert "Traceback" in (sandbox.path / "runs" / "broken" / "train.log").read_text()


def test_one_worker_continues_and_is_restarted_when_its_code_hangs(broken: tuple[Sandbox, str]) -> None:
    sandbox = broken[0]
    output = continued(sandbox, "one", "scale.workers=1", "scale.stall_timeout_s=8", "scale.max_failures=5")
    said = (
        r"rank 0: WorkerStalled: no batch was finished for 8 s .*: it hangs in _fail, line \d+ of .*_workload"
    )
    assert re.search(said, output), output
    before, after = trained(sandbox, "one", 1)
    assert [before[0], after[0]] == resumed_at(output)
    assert after[-1] == STEPS - 1
    sane(sandbox, "one", 1)


def test_three_workers_continue_and_are_restarted_to_the_bit(broken: tuple[Sandbox, str]) -> None:
    sandbox = broken[0]
    (first,) = resumed_at(continued(sandbox, "three", "scale.workers=3"))
    assert trained(sandbox, "three", 3) == [range(first, STEPS)]
    sane(sandbox, "three", 3)

    again = continued(sandbox, "again", "scale.workers=3", forget="die_at")
    assert "rank 1: the worker process died" in again
    assert resumed_at(again)[0] == first
    assert same_weights(final_weights(sandbox, "three"), final_weights(sandbox, "again"))
    assert history(sandbox, "three") == history(sandbox, "again")


def continued(sandbox: Sandbox, name: str, *changes: str, forget: str | None = None) -> str:
    """Continues a copy of the broken job, in which ``forget`` may happen again; returns the output."""
    folder = sandbox.path / "runs" / name
    shutil.copytree(sandbox.path / "runs" / "broken", folder, ignore=shutil.ignore_patterns("samples"))
    if forget is not None:
        (folder / forget).unlink()
    sets = [word for change in (f"name={name}", *changes) for word in ("--set", change)]
    run = sandbox.run(GRADGUARD, "train", "broken.yaml", "--resume", *sets)
    assert run.returncode == 0, run.stdout
    return run.stdout


def resumed_at(output: str) -> list[int]:
    return [int(step) for step in CONTINUES.findall(output)]


def trained(sandbox: Sandbox, job: str, workers: int) -> list[range]:
    """The places, in the order of the data, of the global batches that the ranks have seen together.

    One range for each start of the workers; a batch that was computed again counts once.
    """
    spec = JobSpec.load(sandbox.path / "runs" / job / "spec.yaml")
    cursor = DataCursor(load_workload(spec).n_train, spec.data.batch_size, spec.seed)
    order = {}
    for place in range(STEPS):
        batch = cursor.next_batch()
        order[batch.epoch, tuple(batch.ids.tolist())] = place
    ranks = [shares(sandbox.path / "runs" / job / "samples" / f"{workers}-{r}.jsonl") for r in range(workers)]
    found: list[range] = []
    for parts in zip(*ranks, strict=True):
        place = order[parts[0]["epoch"], tuple(i for part in parts for i in part["ids"])]
        if not found or place not in (found[-1].stop - 1, found[-1].stop):
            found.append(range(place, place))
        found[-1] = range(found[-1].start, place + 1)
    return found


def shares(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sane(sandbox: Sandbox, job: str, workers: int) -> None:
    result = sandbox.result(job)
    assert (result["status"], result["steps"], result["world_size"]) == ("succeeded", STEPS, workers)
    assert math.isfinite(result["metrics"]["test_loss"])
    assert 0.1 < result["metrics"]["test_accuracy"] <= 1
    steps = [row["step"] for row in sandbox.rows(job, "metrics.jsonl") if "action" in row]
    assert steps == list(range(1, STEPS + 1)), "two halves of one history"
