"""A checkpoint is exported as an ONNX file whose outputs are those of the model in PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jobs.checkpoints import CheckpointManager
from jobs.errors import JobError
from jobs.models.exported import load_model
from jobs.spec.job_spec import JobSpec
from jobs.training.data_agreement import identity
from jobs.workloads import load_workload
from service.cli.app import app
from tests.jobs.checkpoints.checkpoint_fixture import proven
from tests.jobs.data.image_folder_fixture import write_images

pytest.importorskip("onnxscript", reason='needs pip install "gradguard[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime to read what was exported")

ROWS = {"workload": "tabular", "data": {"root": "rows.csv", "batch_size": 2}}
IMAGES = {"model": {"name": "resnet18", "stem": "tiny"}, "data": {"dataset": "digits", "batch_size": 16}}
TEXT = {
    "workload": "language",
    "data": {"corpus": "python"},
    "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8, "context": 24},
}


def job(folder: Path, **sections: Any) -> JobSpec:
    """A job with one good checkpoint, of step 4."""
    spec = JobSpec.from_dict({"name": "job", "storage": str(folder), **sections})
    workload = load_workload(spec)
    model = workload.build_model()
    for buffer in model.buffers():  # none stays as it was initialized
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer) / 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    known = {"spec": spec.model_dump(mode="json"), "data": identity(workload)}
    proven(
        CheckpointManager(spec.job_dir / "checkpoints", {"model": model, "optimizer": optimizer}, **known), 4
    )
    return spec


def export(spec: JobSpec, target: Path) -> str:
    words = ["checkpoints", str(spec.job_dir), "--export", "4", "--to", str(target)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def outputs(file: Path, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, str]]:
    session = onnxruntime.InferenceSession(file)
    (named,) = session.get_inputs()
    (found,) = session.run(["logits"], {named.name: inputs.numpy()})
    return torch.from_numpy(found), session.get_modelmeta().custom_metadata_map


def test_a_model_of_rows_runs_without_torch_and_names_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"{n / 7},{n * 90},{'cat' if n % 3 else 'dog'}" for n in range(24)]
    Path("rows.csv").write_text("\n".join(["height,weight,label", *lines]))
    spec, file = job(tmp_path, **ROWS), tmp_path / "model.onnx"
    said = export(spec, file)
    assert "it takes rows" in said
    assert f"load it with onnxruntime.InferenceSession({str(file)!r})" in said
    rows = torch.tensor([[0.5, 90.0], [3.0, 2000.0], [1.0, 4.0]])
    found, about = outputs(file, rows)
    torch.testing.assert_close(found, load_model(spec.job_dir)(rows).detach(), rtol=1e-4, atol=1e-5)
    assert json.loads(about["classes"]) == ["cat", "dog"]
    assert about["step"] == "4"
    assert "normalization" not in about, "rows are standardized inside the model"
    assert [path.name for path in tmp_path.glob("*.onnx*")] == ["model.onnx"]
    with pytest.raises(JobError, match="cannot write"):
        export(spec, tmp_path / "missing" / "model.onnx")
    monkeypatch.setattr("jobs.models.onnx_file.LARGEST", 1000)
    with pytest.raises(JobError, match="more than 2 GB"):
        export(spec, file)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(JobError, match=r"pip install .gradguard\[onnx\]"):
        export(spec, file)


@pytest.mark.slow
def test_a_model_of_images_has_their_normalization(tmp_path: Path) -> None:
    spec, file = job(tmp_path, **IMAGES), tmp_path / "model.onnx"
    export(spec, file)
    workload = load_workload(spec)
    batch = workload.train_batch(np.arange(3), 0, "cpu")[0]
    found, about = outputs(file, batch)
    torch.testing.assert_close(found, load_model(spec.job_dir)(batch).detach(), rtol=1e-4, atol=1e-4)
    normal = json.loads(about["normalization"])
    assert (normal["mean"], normal["std"]) == (list(workload.pipeline.mean), list(workload.pipeline.std))
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_a_model_of_texts_takes_their_words(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\na cat,x\nthe dog,y\nmy cat,x\nno dog,y\n")
    data = {"root": str(tmp_path / "texts.csv"), "columns": {"text": "text"}, "batch_size": 2}
    spec, file = job(tmp_path, workload="tabular", data=data), tmp_path / "model.onnx"
    export(spec, file)
    for shape in ((1, 3), (4, 9)):
        words = torch.randint(0, 1000, shape)
        expected = load_model(spec.job_dir)(words).detach()
        torch.testing.assert_close(outputs(file, words)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_model_of_hugging_face_gives_its_scores_for_images_and_is_refused_for_texts(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='needs pip install "gradguard[huggingface]"')
    from tests.jobs.workloads.huggingface_fixture import image_model, language_model, texts

    root, folder = write_images(tmp_path / "images", 4), image_model(tmp_path / "vit")
    data = {"dataset": "imagefolder", "root": str(root), "batch_size": 4}
    spec = job(tmp_path, workload="huggingface", model={"name": str(folder)}, data=data)
    export(spec, tmp_path / "model.onnx")
    batch = torch.rand(3, 3, 16, 16)
    found, about = outputs(tmp_path / "model.onnx", batch)
    torch.testing.assert_close(found, load_model(spec.job_dir)(batch).logits.detach(), rtol=1e-4, atol=1e-4)
    assert json.loads(about["normalization"]) == {"mean": [0.5] * 3, "std": [0.25] * 3}
    data = {"path": str(texts(tmp_path / "texts.jsonl")), "batch_size": 2}
    model = {"name": str(language_model(tmp_path / "llama"))}
    spec = job(tmp_path, name="texts", workload="huggingface", model=model, data=data)
    with pytest.raises(JobError, match="export to a folder instead"):
        export(spec, tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_language_model_takes_texts_of_any_length(tmp_path: Path) -> None:
    spec, file = job(tmp_path, **TEXT), tmp_path / "model.onnx"
    export(spec, file)
    model = load_model(spec.job_dir)
    for shape in ((1, 24), (3, 5)):
        tokens = torch.randint(0, 256, shape)
        torch.testing.assert_close(outputs(file, tokens)[0], model(tokens).detach(), rtol=1e-4, atol=1e-4)
