"""What comes out of a job on a Hugging Face model: exports, predictions, and image classifiers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from jobs import load_model
from jobs.checkpoints import CheckpointManager
from jobs.models.huggingface import TrainedWeights, is_adapted
from jobs.spec.job_spec import JobSpec
from jobs.torchvision_compat import import_torchvision
from jobs.training.data_agreement import identity
from jobs.training.predict import predict
from jobs.workloads import load_workload
from service.cli.app import app
from tests.jobs.training.training_fixture import begin

import_torchvision()
pytest.importorskip("transformers", reason="needs the extra: pip install gradguard[huggingface]")
pytest.importorskip("peft", reason="needs the extra: pip install gradguard[huggingface]")
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

from tests.jobs.workloads.huggingface_fixture import image_model, language_model, sentences, spec_of, texts

# PEFT reads a property that transformers renames in its next release.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
CPU = torch.device("cpu")


def trained(spec: JobSpec) -> Any:
    """Trains two steps, and leaves the folder that a job leaves. Returns the model."""
    workload = load_workload(spec)
    training = begin(workload, spec, 2)
    training.train(2)
    model = training.parts["model"]
    parts = {"model": TrainedWeights(model) if is_adapted(model) else model}
    parts |= {"optimizer": training.parts["optimizer"]}
    written = spec.model_dump(mode="json")
    CheckpointManager(spec.job_dir / "checkpoints", parts, spec=written, data=identity(workload)).save(
        2, closing=True
    )
    (spec.job_dir / "spec.yaml").write_text(spec.to_yaml())
    return model.eval()


@pytest.mark.parametrize("adapter", [{}, {"lora": {"rank": 2}}])
def test_an_export_loads_with_from_pretrained_and_computes_the_same(
    adapter: dict[str, Any], tmp_path: Path
) -> None:
    folder, rows = language_model(tmp_path / "model"), texts(tmp_path / "t.jsonl")
    spec = spec_of(folder, tmp_path, data={"path": str(rows)}, model={"context": 16, **adapter})
    model = trained(spec)
    target = tmp_path / "exported"
    said = CliRunner().invoke(
        app, ["checkpoints", str(spec.job_dir), "--export", "2", "--to", str(target)], catch_exceptions=False
    )
    assert "for from_pretrained" in said.output
    tokens = torch.arange(5, 15)[None]
    with torch.inference_mode():
        expected = model(input_ids=tokens).logits
        found = AutoModelForCausalLM.from_pretrained(target).eval()(input_ids=tokens).logits
        again = load_model(spec.job_dir)(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, expected)
    assert AutoTokenizer.from_pretrained(target).chat_template
    assert json.loads((target / "gradguard.json").read_text())["step"] == 2


def test_a_text_is_continued_and_has_the_perplexity_that_transformers_computes(tmp_path: Path) -> None:
    folder, rows = language_model(tmp_path / "model"), texts(tmp_path / "t.jsonl")
    spec = spec_of(folder, tmp_path, data={"path": str(rows)}, model={"context": 32})
    model = trained(spec)
    file = tmp_path / "prompt.txt"
    file.write_text(sentences(1)[0])
    (found,) = predict(spec.job_dir, [file])
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(file.read_text())["input_ids"])[-32:][None]
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert found.text
    assert found.line().startswith(f"{file}: perplexity {found.perplexity:.4g}, continued with ")


def test_a_classifier_is_trained_on_other_classes_as_its_processor_sees_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("bee", "cow"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for at in range(count):
                pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{at}.png")
    folder = image_model(tmp_path / "vit")
    data = {"dataset": "imagefolder", "root": str(tmp_path / "data")}
    spec = spec_of(folder, tmp_path, data=data, model={"lora": {"rank": 2}})
    workload = load_workload(spec)
    images, _ = workload.train_batch(np.arange(4), 0, CPU)
    assert images.shape == (4, 3, 16, 16)
    assert workload.pipeline.mean == [0.5] * 3
    assert workload.pipeline.std == [0.25] * 3
    model = trained(spec)
    heads = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
    assert heads
    assert all("classifier" in name for name in heads), "a new head is trained as a whole"
    file = tmp_path / "data" / "val" / "cow" / "0.png"
    (found,) = predict(spec.job_dir, [file])
    assert found.classes[0] in ("bee", "cow")
    target = tmp_path / "exported"
    CliRunner().invoke(app, ["checkpoints", str(spec.job_dir), "--export", "2", "--to", str(target)])
    loaded = AutoModelForImageClassification.from_pretrained(target).eval()
    assert loaded.config.id2label == {0: "bee", 1: "cow"}
    with torch.inference_mode():
        outputs = loaded(pixel_values=images).logits
        torch.testing.assert_close(outputs, workload.scores(model, images), rtol=1e-4, atol=1e-5)


def test_grey_digits_are_given_to_all_channels_of_a_model(tmp_path: Path) -> None:
    folder = image_model(tmp_path / "vit")
    workload = load_workload(spec_of(folder, tmp_path, data={"dataset": "digits", "test_limit": 20}))
    model, batch = workload.build_model(), workload.train_batch(np.arange(4), 0, CPU)
    assert batch[0].shape == (4, 1, 16, 16)
    workload.loss(model, batch).backward()
    assert "test_macro_f1" in workload.metrics(workload.evaluate(model, 0, 1, CPU))
