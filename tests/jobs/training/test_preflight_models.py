"""The pre-flight raises no alarm over torchvision's own models with real images, whatever their family."""

from __future__ import annotations

import pytest
import torch

from jobs.init import build_initialized
from jobs.spec.job_spec import JobSpec
from jobs.training.preflight import first_batch, preflight
from jobs.workloads import load_workload

pytestmark = pytest.mark.slow

HEALTHY = {
    "resnet18": 32,
    "resnet50": 32,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_1": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "mnasnet0_5": 64,
    "googlenet": 64,
    "swin_t": 32,
}
"""Models with the image size that leaves their last layers something to see."""


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_gets_no_alarm(name: str):
    spec = JobSpec.from_dict(
        {
            "model": {"name": name, "stem": "tiny" if name.startswith("resnet") else "auto"},
            "data": {"dataset": "digits", "batch_size": 16, "image_size": HEALTHY[name]},
        }
    )
    workload = load_workload(spec)
    batch = first_batch(spec, workload, torch.device("cpu"))
    report = preflight(spec, workload, build_initialized(spec, workload), batch)
    assert report.verdict == "fine", report.line()
    assert len(report.layers) > 20
