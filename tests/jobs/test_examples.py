"""The specs in jobs/examples are valid as they are, and what they name can be built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.cluster.session import PACKAGE_ROOT
from jobs.spec.job_spec import JobSpec
from jobs.training.data_agreement import check_same_data
from jobs.workloads import load_workload

EXAMPLES = PACKAGE_ROOT / "jobs" / "examples"
SPECS = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in (".yaml", ".json"))


def test_the_examples_are_there():
    names = {str(path.relative_to(EXAMPLES)) for path in SPECS}
    assert names >= {"fashion.yaml", "gpt-124m-8gpu.yaml", "gpt-cpu.yaml", "own_workload/spec.yaml"}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_valid_as_it_is(path: Path):
    spec = JobSpec.load(path)
    assert JobSpec.from_dict(spec.model_dump(mode="json")) == spec
    assert path.read_text().startswith("#"), "it says what it is for"


@pytest.mark.parametrize("name", ["gpt-124m-8gpu.yaml", "gpt-cpu.yaml", "own_workload/spec.yaml"])
def test_the_data_of_an_example_is_enough_for_its_batch_and_its_schedule(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str((EXAMPLES / name).parent))
    spec = JobSpec.load(EXAMPLES / name)
    workload = load_workload(spec)
    assert spec.total_steps(workload.n_train) == spec.train.max_steps


def test_the_own_workload_has_equal_weights_everywhere_and_a_loss(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "own_workload"))
    workload = load_workload(JobSpec.load(EXAMPLES / "own_workload" / "spec.yaml"))
    one, two = workload.build_model(), workload.build_model()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    batch = workload.train_batch(np.arange(8), 0, torch.device("cpu"))
    assert workload.loss(one, batch).item() == pytest.approx(np.log(3), rel=0.5)


def test_one_worker_has_no_other_to_disagree_with():
    check_same_data(load_workload(JobSpec.from_dict({"data": {"dataset": "digits"}})), 1)
