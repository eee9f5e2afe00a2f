"""A job's model classifies files as its evaluation does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from jobs.checkpoints import CheckpointManager
from jobs.data.cursor import DataCursor
from jobs.errors import JobError
from jobs.init import build_initialized
from jobs.spec.job_spec import JobSpec
from jobs.training.predict import predict
from jobs.workloads import load_workload
from service.cli.app import app

CPU = torch.device("cpu")


def test_a_file_gets_the_class_and_the_probability_that_the_model_gives_its_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "digits"
    fields = {"name": "digits", "storage": str(folder.parent), "model": {"name": "shufflenet_v2_x0_5"}}
    spec = JobSpec.from_dict({**fields, "data": {"dataset": "digits", "augment": "none"}})
    workload = load_workload(spec)
    model = build_initialized(spec, workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    CheckpointManager(folder / "checkpoints", {"model": model, "optimizer": optimizer}).save(1, closing=True)
    (folder / "spec.yaml").write_text(spec.to_yaml())

    ids = DataCursor(workload.n_train, 4, 0).next_batch().ids
    pixels = workload._reader.train.images[torch.from_numpy(ids.copy())]
    files = []
    for at, image in enumerate(pixels):
        files.append(tmp_path / f"{at}.png")
        Image.fromarray(np.asarray(image[0])).save(files[-1])
    with torch.inference_mode():
        expected = model.eval()(workload.pipeline.normalize(pixels)).softmax(1)

    found = list(predict(folder, files, top=2))
    assert [f.file for f in found] == files
    assert [f.classes[0] for f in found] == [workload.classes[i] for i in expected.argmax(1)]
    assert [f.probabilities[0] for f in found] == pytest.approx(expected.max(1).values.tolist(), rel=1e-4)
    said = CliRunner().invoke(app, ["predict", str(folder), str(files[0]), "--json"]).output
    assert json.loads(said)["classes"] == found[0].classes[:1]


def test_a_job_that_reads_text_is_named(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("to be or not to be\n" * 400)
    fields = {"workload": "language", "model": {"name": "gpt-tiny"}, "data": {"path": str(text)}}
    (tmp_path / "spec.yaml").write_text(JobSpec.from_dict(fields).to_yaml())
    with pytest.raises(JobError, match="predict classifies images"):
        list(predict(tmp_path, []))
