"""``train.profile_steps``: a trace, a table of operators, and the report's section."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guard import GuardMetrics
from guard.record.exposition import render
from jobs.observability.gpu import GpuUse
from jobs.observability.profile import StepProfiler
from jobs.report import write_page
from jobs.report.profile import Gpu, gpu_figure
from jobs.run_dir.paths import OPERATORS, TRACE, RunDir
from jobs.spec.job_spec import JobSpec
from jobs.training.loop import train_steps
from tests.guard.ranks import on_ranks
from tests.jobs.report.report_fixture import result
from tests.jobs.training.test_time_limits import CPU, STEPS, run_of

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")


def test_a_profile_has_the_steps_asked_for_and_changes_no_weight(tmp_path: Path) -> None:
    with run_of(tmp_path / "plain") as plain:
        train_steps(plain)
    with run_of(tmp_path / "job") as run:
        profiler = StepProfiler(3, tmp_path / "job", CPU, run.progress.event)
        object.__setattr__(run, "profiler", profiler)
        train_steps(run)
        profiler.close()
    assert run.guard.steps == STEPS
    assert torch.equal(run.model.bare.weight, plain.model.bare.weight)

    events = json.loads(gzip.decompress((tmp_path / "job" / TRACE).read_bytes()))["traceEvents"]
    names = {event["name"] for event in events if event["name"].startswith("ProfilerStep")}
    assert names == {"ProfilerStep#5", "ProfilerStep#6", "ProfilerStep#7"}
    table = json.loads((tmp_path / "job" / OPERATORS).read_text())
    assert 0 < sum(row["share"] for row in table["operators"]) <= 1 + 1e-9
    assert "aten::addmm" in {event["name"] for event in events}
    assert f"profiled 3 steps: {tmp_path / 'job' / TRACE}" in str(run.progress._events)

    folder = RunDir(tmp_path / "job")
    folder.spec.write_text(JobSpec.from_dict({}).to_yaml())
    gpu = {"name": "H200", "peak_bytes": 12_000_000_000, "total_bytes": 140_000_000_000, "utilization": 0.87}
    folder.result.write_text(json.dumps({**result("job", STEPS), "gpu": gpu}))
    page = write_page(folder.path).read_text()
    assert table["operators"][0]["name"] in page
    assert "12 GB" in page
    assert "of 140 GB; 87\u00a0% busy" in page


def test_a_run_that_ends_before_its_profile_says_so_and_leaves_no_trace(tmp_path: Path) -> None:
    said: list[str] = []
    profiler = StepProfiler(3, tmp_path, CPU, lambda _, text: said.append(text))
    profiler.step()
    profiler.close()
    assert said == ["no profile: it starts after 5 steps"]
    assert not (tmp_path / TRACE).exists()


def test_the_option_keeps_the_steps_that_a_spec_sets() -> None:
    assert JobSpec.from_dict({}).profiled().train.profile_steps == 3
    assert JobSpec.from_dict({"train": {"profile_steps": 7}}).profiled().train.profile_steps == 7


def test_a_cpu_has_no_gpu_figures_and_a_gpu_shows_them() -> None:
    use = GpuUse(CPU)
    assert (use.memory(), use.utilization(), use.summary()) == ({}, None, None)
    metrics = GuardMetrics(job="a")
    metrics.gpu(use.memory(), use.utilization())
    assert "gpu_memory_bytes{" not in render([metrics.snapshot()])
    metrics.gpu({"peak": 3.0}, 0.5)
    text = render([metrics.snapshot()])
    assert 'gradguard_gpu_memory_bytes{job="a",kind="peak"} 3.0' in text
    assert 'gradguard_gpu_utilization{job="a"} 0.5' in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_shows_its_memory() -> None:
    device = torch.device("cuda")
    use, held = GpuUse(device), torch.ones(1 << 20, device=device)
    memory = use.memory()
    assert held.nbytes <= memory["allocated"] <= memory["peak"] <= memory["total"]
    share = use.utilization()
    assert share is None or 0 <= share <= 1
    summary = use.summary()
    assert summary is not None
    assert summary["peak_bytes"] >= held.nbytes


def figures_of_a_rank(rank: int, world_size: int, folder: Path) -> Any:
    """As on a GPU of which rank 1 has used more, and less often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
        patch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _: (1 + rank) << 30)
        patch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
        patch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
        patch.setattr(torch.cuda, "utilization", lambda _: 90 - 50 * rank)
        use = GpuUse(torch.device("cuda", 0))
        use.sample()
        use.sample()  # within the same second
        use.exchange(world_size)
        return use.summary()


def test_every_rank_knows_the_gpus_of_all(tmp_path: Path) -> None:
    ranks = on_ranks(2, figures_of_a_rank, tmp_path)
    expected = [{"peak_bytes": 1 << 30, "utilization": 0.9}, {"peak_bytes": 2 << 30, "utilization": 0.4}]
    assert [seen["ranks"] for seen in ranks] == [expected, expected]
    ((_, _, words),) = gpu_figure(Gpu.from_row(ranks[0]))
    assert "most on rank 1: 2" in words
    assert "least busy: rank 1, 40" in words


def test_of_many_ranks_the_fullest_and_the_idlest_are_shown() -> None:
    metrics = GuardMetrics(job="a", max_ranks=2)
    metrics.gpus({"0": 5.0, "1": 9.0, "2": 7.0}, {"0": 0.9, "1": 0.8, "2": 0.1})
    text = render([metrics.snapshot()])
    assert [f'gpu_peak_bytes{{job="a",rank="{r}"}}' in text for r in "012"] == [False, True, True]
    assert [f'gpu_mean_utilization{{job="a",rank="{r}"}}' in text for r in "012"] == [False, True, True]
