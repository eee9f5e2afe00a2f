"""The learning-rate range test of a job fits into the available time, or an error names the time it needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from jobs.errors import JobError
from jobs.init import build_initialized
from jobs.spec.job_spec import JobSpec
from jobs.training import lr_range
from jobs.training.lr_range import LIMIT_S, find_learning_rates, plan_range
from jobs.training.preflight import first_batch, preflight
from jobs.workloads import load_workload

SPEC = {
    "workload": "language",
    "model": {"name": "gpt", "layers": 2, "heads": 2, "width": 32, "context": 16, "vocabulary": 256},
    "data": {"corpus": "python", "batch_size": 64},
    "train": {"micro_batches": 4},
    "scale": {"workers": 2},
}


def test_a_fast_machine_takes_all_samples_that_fit() -> None:
    plan = plan_range(0.01, samples=16, batch_size=512)
    assert (plan.steps, plan.samples, plan.seconds) == (40, 16, pytest.approx(3.2))
    assert plan.line() == "learning rate: 40 steps with 16 samples of the 512 in a batch, about 3 s"
    assert (
        plan_range(0.001, samples=8, batch_size=8)
        .line()
        .startswith("learning rate: 40 steps with 8 samples,")
    )


@pytest.mark.parametrize("probe_s", [0.1, 1.0, 5.0, 14.0, 20.0])
def test_a_slower_one_takes_fewer_samples_then_fewer_steps_and_stays_within_the_limit(probe_s: float) -> None:
    plan = plan_range(probe_s, samples=64, batch_size=512)
    assert plan.seconds <= LIMIT_S
    assert plan.seconds == pytest.approx(plan.steps * probe_s * plan.samples / 2)
    assert (plan.steps == 40) or (plan.samples == 2)
    assert 12 <= plan.steps <= 40


def test_one_that_is_too_slow_names_the_time_it_would_take_and_what_to_do() -> None:
    with pytest.raises(
        JobError, match=r"would take 67 min here, where a step with 2 samples takes 2 min"
    ) as caught:
        plan_range(100.0, samples=16, batch_size=512)
    assert "run it where the job will run" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_job_reports_what_it_does_finds_a_rate_and_restores_the_model() -> None:
    spec = JobSpec.from_dict(SPEC)
    workload = load_workload(spec)
    model = build_initialized(spec, workload)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    messages: list[str] = []
    found = find_learning_rates(spec, workload, model, limit_s=3600.0, report=messages.append)
    assert messages[0].startswith("learning rate: 40 steps with 8 samples of the 64 in a batch, about ")
    assert found.suggested is not None
    assert 1e-5 < found.suggested < 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(JobError, match="the learning-rate range test would take"):
        find_learning_rates(spec, workload, model, limit_s=1e-6)


def test_the_first_steps_of_a_process_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = JobSpec.from_dict(SPEC)
    workload = load_workload(spec)
    clock = iter((0.0, 90.0, 90.0, 90.02))
    monkeypatch.setattr(lr_range, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    messages: list[str] = []
    find_learning_rates(spec, workload, build_initialized(spec, workload), report=messages.append)
    assert messages == ["learning rate: 40 steps with 8 samples of the 64 in a batch, about 2 s"]


def test_the_preflight_of_long_windows_takes_few_of_them() -> None:
    changed = {**SPEC, "model": {**SPEC["model"], "context": 2048}}
    spec = JobSpec.from_dict(changed)
    seen: list[torch.Size] = []
    workload = load_workload(spec)
    model = build_initialized(spec, workload)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert preflight(spec, workload, model, first_batch(spec, workload, torch.device("cpu"))).fine
    assert seen == [torch.Size([1, 2048])]
