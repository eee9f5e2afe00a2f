"""``train.channels_last`` and ``train.compile``: another way to compute the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jobs.spec.job_spec import JobSpec
from jobs.training.compile import compile_forward
from jobs.workloads import load_workload

REPOSITORY = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


def test_channels_last_images_are_stored_pixel_by_pixel_and_give_the_same_loss():
    data = {"dataset": "digits", "batch_size": 16, "image_size": 16}
    jobs = [
        load_workload(JobSpec.from_dict({"data": data, "model": {"stem": "tiny"}, "train": train}))
        for train in ({}, {"channels_last": True})
    ]
    losses = []
    for job, expected in zip(jobs, (torch.contiguous_format, torch.channels_last), strict=True):
        images, labels = job.train_batch(np.arange(16), 0, CPU)
        assert images.is_contiguous(memory_format=expected)
        model = job.build_model().to(memory_format=expected)
        losses.append(job.loss(model, (images, labels)))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_model_computes_the_same_under_its_old_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    names, inputs = list(model.state_dict()), torch.randn(5, 8)
    expected = model(inputs)
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    compile_forward(model, CPU)
    with torch.no_grad():  # one graph less to compile
        torch.testing.assert_close(model(inputs), expected)
    assert list(model.state_dict()) == names
    assert seen == [1]


@pytest.mark.slow
def test_without_a_compiler_the_error_is_one_clear_line(tmp_path: Path):
    program = (
        "import torch; from torch import nn; from jobs.training.compile import compile_forward; "
        "compile_forward(nn.Linear(2, 2), torch.device('cpu'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PATH": str(tmp_path),
            "HOME": str(tmp_path),
            "CXX": "no-such-compiler",
            "PYTHONPATH": str(REPOSITORY),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("jobs.errors.JobError: train.compile: torch.compile does not work here: ")
    assert "install a C++ compiler" in last
