"""``workload: huggingface`` with a text classifier: from a table to its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.checkpoints import CheckpointManager
from jobs.data.errors import DataError
from jobs.spec.data import StreamSpec
from jobs.spec.job_spec import JobSpec
from jobs.torchvision_compat import import_torchvision
from jobs.training.data_agreement import identity
from jobs.training.predict import predict
from jobs.workloads import load_workload
from tests.jobs.training.training_fixture import CPU, begin

import_torchvision()
pytest.importorskip("transformers", reason="needs the extra: pip install gradguard[huggingface]")
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from tests.jobs.workloads.huggingface_fixture import WORDS, language_model, spec_of


def encoder(folder: Path) -> Path:
    """A BERT of one layer, pretrained for masks, with the tokenizer of the small Llama."""
    language_model(folder, chat=False)
    for path in (*folder.glob("*.safetensors"), folder / "config.json", folder / "generation_config.json"):
        path.unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def reviews(path: Path, rows: int = 120) -> Path:
    """Texts about cats or dogs, among other words."""
    rng = np.random.default_rng(0)
    lines = ["review,mood"]
    for n in range(rows):
        words = [*rng.choice(WORDS[2:4] + WORDS[8:], 5), ("cat", "dogs")[n % 2]]
        lines.append(f"{' '.join(rng.permutation(words))},{('happy', 'sad')[n % 2]}")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def spec(folder: Path, root: Path, **columns: Any) -> JobSpec:
    data = {"dataset": "table", "root": str(root), "batch_size": 16}
    data["columns"] = {"text": "review", "label": "mood", **columns}
    return spec_of(folder, folder.parent, data=data, optimizer={"name": "adamw", "lr": 0.01})


def keep(training: Any, own: JobSpec, workload: Any) -> None:
    """The folder that a job leaves."""
    parts = {name: training.parts[name] for name in ("model", "optimizer")}
    written = own.model_dump(mode="json")
    folder = own.job_dir / "checkpoints"
    CheckpointManager(folder, parts, spec=written, data=identity(workload)).save(60, closing=True)
    (own.job_dir / "spec.yaml").write_text(own.to_yaml())


def test_a_pretrained_encoder_learns_the_labels_of_a_table(tmp_path: Path) -> None:
    own = spec(encoder(tmp_path / "bert"), reviews(tmp_path / "t.csv"))
    workload = load_workload(own)
    assert workload.classes == ("happy", "sad")
    training = begin(workload, own, 60)
    training.train(60)
    model = training.parts["model"]
    assert model.config.id2label == {0: "happy", 1: "sad"}
    parts = [workload.evaluate(model, rank, 2, CPU) for rank in range(2)]
    metrics = workload.metrics({name: parts[0][name] + parts[1][name] for name in parts[0]})
    assert metrics["test_accuracy"] >= 0.9
    keep(training, own, workload)
    (tmp_path / "new.txt").write_text("cat over rain while hills")
    (found,) = predict(own.job_dir, [tmp_path / "new.txt"])
    assert found.classes == ["happy"]
    tokens, labels = workload.train_batch(np.arange(3), 0, CPU)
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape
    assert labels.shape == (3,)


def test_a_missing_text_or_table_is_one_line(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "bert")
    (tmp_path / "t.csv").write_text("review,mood,stars\nfine,happy,1\nbad,,2\npoor,sad,3\n")
    with pytest.raises(DataError, match="row 2 has no mood"):
        load_workload(spec(folder, tmp_path / "t.csv"))
    with pytest.raises(DataError, match="row 1: stars is 1: it takes texts"):
        load_workload(spec(folder, tmp_path / "t.csv", text="stars", label="review"))
    with pytest.raises(DataError, match=r"write data\.dataset: table"):
        load_workload(spec_of(folder, tmp_path, data={"path": str(tmp_path / "t.csv")}))


def test_a_stream_of_texts_is_tokenized_like_the_table(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "model")
    for split in ("train", "val"):
        reviews(tmp_path / "rows" / f"{split}.csv")
    plain = spec(folder, tmp_path / "rows")
    streamed = plain.model_copy(update={"data": plain.data.model_copy(update={"stream": StreamSpec()})})
    ids, batches = np.array([7, 100, 3]), []
    for own in (plain, streamed):
        workload = load_workload(own)
        tokens, labels = workload.train_batch(ids, 0, CPU)
        sums = workload.evaluate(workload.build_model(), 0, 1, CPU)
        batches.append((tokens["input_ids"].tolist(), labels.tolist(), workload.classes, sums))
    assert batches[0] == batches[1]
