"""Models of Hugging Face from local folders: texts, chats, adapters, images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from jobs.checkpoints import CheckpointManager
from jobs.data.errors import DataError
from jobs.models.huggingface import TrainedWeights, is_adapted
from jobs.spec.errors import SpecError
from jobs.torchvision_compat import import_torchvision
from jobs.workloads import load_workload, make_cursor
from tests.jobs.training.training_fixture import Training, assert_same_weights, begin, settle

import_torchvision()
pytest.importorskip("transformers", reason="needs the extra: pip install gradguard[huggingface]")
pytest.importorskip("peft", reason="needs the extra: pip install gradguard[huggingface]")
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.jobs.workloads.huggingface_fixture import chats, language_model, sentences, spec_of, texts

# PEFT reads a property that transformers renames in its next release.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
CPU = torch.device("cpu")
LORA = {"lora": {"rank": 4, "dropout": 0.1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts(tmp_path_factory.mktemp("texts") / "train.jsonl")


def text_spec(folder: Path, rows: Path, **sections: Any) -> Any:
    model = {"context": 16, **sections.pop("model", {})}
    return spec_of(folder, rows.parent, data={"path": str(rows)}, model=model, **sections)


def test_the_loss_is_that_of_transformers_and_the_weights_are_the_published_ones(
    folder: Path, rows: Path
) -> None:
    workload = load_workload(text_spec(folder, rows))
    model = workload.build_model().eval()
    published = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens, targets = workload.train_batch(np.arange(4), 0, CPU)
    assert torch.equal(tokens[:, 1:], targets[:, :-1]), "packed: nothing is padding, all is learned"
    ours = workload.loss(model, (tokens[:, :-1], targets[:, :-1]))
    assert ours.item() == pytest.approx(published(input_ids=tokens, labels=tokens).loss.item(), rel=1e-5)
    assert workload.build_model().training


def test_documents_end_and_are_evaluated_on_rows_that_are_held_out(folder: Path, rows: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    workload = load_workload(text_spec(folder, rows))
    stream = torch.cat([workload._train.batch(np.array([i]))[0][0] for i in range(workload.n_train)])
    text = tokenizer.decode(stream)
    assert text.startswith("<|end|>".join(sentences(60)[:3]))
    assert sentences(60)[-1] not in text
    sums = workload.evaluate(workload.build_model(), 0, 1, CPU)
    metrics = workload.metrics(sums)
    assert metrics["test_perplexity"] == pytest.approx(math.exp(metrics["test_loss"]))


def test_held_out_texts_that_fill_no_window_are_evaluated_in_a_shorter_one(folder: Path, rows: Path) -> None:
    workload = load_workload(text_spec(folder, rows, model={"context": 64}))
    tokenizer, (tokens, targets) = AutoTokenizer.from_pretrained(folder), workload._test.batch(np.array([0]))
    assert len(tokens[0]) < workload.tokens_per_sample
    seen = tokenizer.decode(torch.cat((tokens[0], targets[0, -1:])))
    assert seen == "".join(f"{text}<|end|>" for text in sentences(60)[-3:])
    assert workload.evaluate(workload.build_model(), 0, 1, CPU)["tokens"] == len(tokens[0])


def test_only_the_answers_of_a_chat_are_learned_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    path, tokenizer = chats(tmp_path / "chat.jsonl"), AutoTokenizer.from_pretrained(folder)
    data = {"path": str(path), "packing": False, "loss_on": "assistant"}
    workload = load_workload(spec_of(folder, tmp_path, data=data))
    tokens, targets = workload.train_batch(np.arange(3), 0, CPU)
    for row, text in enumerate(sentences(3)):
        assert tokenizer.decode(tokens[row]).startswith(f"<|user|>{text[:20]}<|end|><|assistant|>{text[20:]}")
        learned = targets[row][targets[row] != -100]
        assert tokenizer.decode(learned) == text[20:] + "<|end|>"
    one = workload.loss(model := workload.build_model().eval(), (tokens[:1], targets[:1]))
    length = int((targets[0] != -100).nonzero().max()) + 1
    short = workload.loss(model, (tokens[:1, :length], targets[:1, :length]))
    assert one.item() == pytest.approx(short.item(), rel=1e-5), "padding changes nothing"


def test_share_gpt_names_are_read_too(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    pair = [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "sat"}]
    path.write_text("\n".join([json.dumps({"conversations": pair})] * 40))
    workload = load_workload(spec_of(folder, tmp_path, data={"path": str(path)}, model={"context": 8}))
    assert "<|user|>the cat<|end|><|assistant|>sat<|end|>" in workload.tokenizer.decode(workload._train._ids)


@pytest.mark.parametrize("adapter", [{}, LORA])
def test_a_run_learns_and_resumes_to_the_bit(
    adapter: dict[str, Any], folder: Path, rows: Path, tmp_path: Path
) -> None:
    spec = text_spec(
        folder, rows, model=adapter, optimizer={"lr": 0.01}, guard={"snapshot": {"every_steps": 4}}
    )
    workload = load_workload(spec)
    whole = adapted_parts(begin(workload, spec, 12))
    losses = [report.loss for report in whole.train(6)]
    kept = whole.keep(tmp_path / "checkpoints")
    losses += [report.loss for report in whole.train(12)]
    settle(kept)
    assert np.mean(losses[-3:]) < losses[0]
    resumed = adapted_parts(begin(workload, spec, 12))
    assert CheckpointManager(tmp_path / "checkpoints", resumed.parts).load_latest() == 6
    assert [report.loss for report in resumed.train(12)] == losses[6:]
    assert_same_weights(whole, resumed)


def adapted_parts(training: Training) -> Training:
    """As ``open_checkpoints`` has them."""
    if is_adapted(training.parts["model"]):
        training.parts["model"] = TrainedWeights(training.parts["model"])
    return training


def test_an_adapter_is_all_that_is_trained_watched_held_and_saved(folder: Path, rows: Path) -> None:
    spec = text_spec(folder, rows, model=LORA)
    training = begin(load_workload(spec), spec, 8)
    model = training.parts["model"]
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    guard = training.stepper.guard
    training.train(4)
    assert guard.layer_norms
    assert all("lora_" in name for name in guard.layer_norms)
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in frozen.items())
    saved = TrainedWeights(model).state_dict()
    assert saved
    assert all("lora_" in name for name in saved)


def test_a_folder_without_weights_is_initialized_from_the_seed(
    folder: Path, rows: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    first, again, other = (
        load_workload(text_spec(tmp_path, rows, seed=seed)).build_model().state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_row_is_a_document_in_every_kind_of_table(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,n\n" + "\n".join(f"{text},1" for text in sentences(30)))
    (tmp_path / "plain.txt").write_text("\n".join(sentences(30)))
    for name in ("t.csv", "plain.txt"):
        workload = load_workload(
            spec_of(folder, tmp_path, data={"path": str(tmp_path / name)}, model={"context": 8})
        )
        assert sentences(1)[0] in workload.tokenizer.decode(workload._train._ids)


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ({"name": "./nowhere"}, {}, "model.name = ./nowhere: there is no such folder"),
        ({"name": "not-cached-anywhere"}, {}, "model.download: true downloads it"),
        ({"context": 65}, {}, "model.context = 65: the model has places for 64 tokens"),
        ({"lora": {"targets": ["nothing"]}}, {}, "model.lora: "),
        ({"lora": {"quantize": "4bit"}}, {}, "needs bitsandbytes: pip install it"),
        ({}, {"columns": {"text": "txt"}}, "there is no column 'txt'"),
        ({}, {"root": "x"}, "data.root is for images"),
        ({"context": 64}, {"train_limit": 3}, "are too few"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    model: dict, data: dict, said: str, folder: Path, rows: Path
) -> None:
    if "quantize" in str(model):
        import importlib.util

        if importlib.util.find_spec("bitsandbytes"):
            pytest.skip("bitsandbytes is installed")
    spec = spec_of(folder, rows.parent, data={"path": str(rows), **data}, model=model)
    if "too few" in said:
        rows = texts(rows.parent / "few.jsonl", 2)
        spec = spec_of(folder, rows.parent, data={"path": str(rows)}, model=model)
    with pytest.raises(DataError) as caught:
        load_workload(spec).build_model()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_chat_template_is_named(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "model", chat=False)
    path = chats(tmp_path / "chat.jsonl")
    with pytest.raises(DataError, match=r"has no chat template: put chat_template\.jinja"):
        load_workload(spec_of(folder, tmp_path, data={"path": str(path)}))


def test_smoothing_and_z_loss_count_the_learned_tokens_alone(folder: Path, tmp_path: Path) -> None:
    data = {"path": str(chats(tmp_path / "c.jsonl")), "packing": False, "loss_on": "assistant"}
    sections = {"regularize": {"label_smoothing": 0.1, "z_loss": 0.01}}
    workload = load_workload(spec_of(folder, tmp_path, data=data, **sections))
    model, (tokens, targets) = workload.build_model().eval(), workload.train_batch(np.arange(3), 0, CPU)
    learned = targets.flatten() != -100
    logits = model(input_ids=tokens).logits.flatten(0, 1)[learned]
    expected = functional.cross_entropy(logits, targets.flatten()[learned], label_smoothing=0.1)
    expected = expected + 0.01 * torch.logsumexp(logits, -1).square().mean()
    assert workload.loss(model, (tokens, targets)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_stream_of_texts_or_chats_has_the_same_samples_as_the_table(folder: Path, tmp_path: Path) -> None:
    pairs = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[:9]}]
             for text in sentences(40)]  # fmt: skip
    for name, cells in (("text", sentences(40)), ("messages", pairs)):
        for split in ("train", "val"):
            path = tmp_path / name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps({"n": 1, name: cell}) + "\n" for cell in cells))
        loss_on = "assistant" if name == "messages" else "all"
        data = {"path": str(path.parent), "packing": False, "loss_on": loss_on}
        found = []
        for more in ({}, {"stream": {}}):
            workload = load_workload(spec_of(folder, tmp_path, data={**data, **more}))
            batch = workload.train_batch(np.array([39, 0, 7]), 0, CPU)
            sums = workload.evaluate(workload.build_model(), 0, 2, CPU)
            found.append((workload.n_train, [part.tolist() for part in batch], sums))
        assert found[0] == found[1]
    cursor = make_cursor(workload, workload._spec)
    workload.read_ahead(cursor, 0, 1, CPU)
    ids = cursor.next_batch().ids
    assert workload.describe_sample(int(ids[0])).startswith("'<|user|>")
    assert workload.train_batch(ids, 0, CPU)[0].shape[0] == len(ids)


def test_a_stream_of_documents_takes_no_packing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"data.packing = true: cuts all documents into windows"):
        spec_of(folder, tmp_path, data={"path": "s3://bucket/chats", "stream": {}})
