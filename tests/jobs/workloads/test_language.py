"""The language workload: its text, its samples, its model, and what it measures."""

from __future__ import annotations

import gzip
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from guard.preflight import run_preflight
from jobs.data.errors import DataError
from jobs.data.text import load_text
from jobs.data.tokens import Bytes, TokenizerFile, Windows
from jobs.models.gpt import GPT, rotated, rotation
from jobs.spec.job_spec import DataSpec, JobSpec, SpecError
from jobs.spec.language import GptShape
from jobs.workloads import load_workload
from jobs.workloads.language import LanguageWorkload

CPU = torch.device("cpu")
SMALL = {"name": "gpt", "layers": 2, "heads": 2, "width": 32, "context": 16}
SHAPE = GptShape(layers=2, heads=2, width=32, context=16, vocabulary=64)


def spec(**sections: object) -> JobSpec:
    return JobSpec.from_dict({"workload": "language", "model": SMALL, **sections})


def problem(**sections: object) -> str:
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"workload": "language", **sections})
    (found,) = caught.value.problems
    return str(found)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    lines = [f"{i} times {i} is {i * i}.\n" for i in range(400)]
    (tmp_path / "book.txt").write_text("".join(lines))
    return tmp_path / "book.txt"


@pytest.fixture
def workload(book: Path) -> LanguageWorkload:
    found = load_workload(spec(data={"path": str(book), "batch_size": 8}))
    assert isinstance(found, LanguageWorkload)
    return found


def test_the_defaults_of_a_language_model_are_written_into_the_spec():
    bare = JobSpec.from_dict({"workload": "language"})
    assert (bare.model.name, bare.optimizer.name) == ("gpt-tiny", "adamw")
    assert (bare.optimizer.betas, bare.optimizer.weight_decay) == ((0.9, 0.95), 0.1)
    assert JobSpec.from_dict(bare.model_dump(mode="json")) == bare
    own = JobSpec.from_dict({"workload": "language", "optimizer": {"name": "sgd", "lr": 0.1}}).optimizer
    assert (own.name, own.momentum, own.weight_decay) == ("sgd", 0.9, 5e-4)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"name": "gtp-small"}}, 'model.name = "gtp-small": must be one of gpt,'),
        ({"model": {"name": "gpt-smal"}}, 'did you mean "gpt-small"?'),
        ({"model": {"name": "gpt", "layers": 2}}, "also set model.heads, model.width, model.context"),
        ({"model": {"width": 100}}, "model.width = 100: must be a multiple of twice the 4 heads"),
        ({"model": {"stem": "tiny"}}, 'model.stem = "tiny": is for vision: remove it'),
        ({"model": {"init": {"residual": "depth_scaled"}}}, "is already the default of a gpt"),
        ({"model": {"dropout": 0.1}}, 'did you mean "regularize.dropout"?'),
        ({"data": {"dataset": "digits"}}, 'data.dataset = "digits": is for vision'),
        ({"data": {"root": "/x"}}, "write data.path"),
        ({"data": {"path": "/x", "corpus": "python"}}, "data.corpus"),
        ({"faults": [{"kind": "poisoned_batch", "step": 1}]}, "has no effect on text"),
        ({"workload": "vision", "model": {"layers": 3}}, "model.layers = 3: is for workload language"),
        ({"workload": "vision", "data": {"path": "x"}}, 'data.path = "x": is for workload language'),
    ],
)
def test_what_means_nothing_is_named(sections: dict, said: str):
    assert said in problem(**sections)


def test_workers_in_another_folder_find_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    data = spec(data={"path": "book.txt", "tokenizer": "words.json"}).absolute().data
    assert (data.path, data.tokenizer) == (str(tmp_path / "book.txt"), str(tmp_path / "words.json"))


def test_gpt_small_with_the_vocabulary_of_gpt2_has_124_million_parameters():
    named = JobSpec.from_dict({"workload": "language", "model": {"name": "gpt-small", "vocabulary": 50304}})
    with torch.device("meta"):
        model = GPT(named.model.gpt_shape(256), seed=0)
    assert 123e6 < sum(parameter.numel() for parameter in model.parameters()) < 125e6


def test_no_token_sees_what_comes_after_it():
    model = GPT(SHAPE, seed=0).eval()
    tokens = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 64
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9])


def test_attention_depends_on_distance_alone():
    """Su et al. (2021), equation 11: the product of two turned vectors is one of their distance."""
    turns = rotation(12, 8, CPU)
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    products = rotated(query.expand(12, 8), turns) @ rotated(key.expand(12, 8), turns).T
    for distance in range(-11, 12):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotated(query.expand(12, 8), turns).norm(dim=1), query.norm().expand(12))


def test_the_weights_depend_on_the_seed_alone_and_the_last_layer_is_the_embedding():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = GPT(SHAPE, seed=1), GPT(SHAPE, seed=1), GPT(SHAPE, seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.embedding.weight, other.embedding.weight)
    assert one.head.weight is one.embedding.weight
    assert one.blocks[0].mlp.out.weight.detach().std().item() == pytest.approx(0.02 / 2, rel=0.1)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_a_new_gpt_is_in_good_health_and_as_good_as_a_guess(workload: LanguageWorkload, mlp: str):
    model = GPT(GptShape(4, 4, 64, 16, 256, mlp=mlp), seed=0)
    batch = workload.train_batch(np.arange(8), 0, CPU)
    report = run_preflight(model, lambda bare: workload.loss(bare, batch), precision="fp32")
    assert report.fine, report.line()
    assert report.loss == pytest.approx(math.log(256), rel=0.05)


def test_with_qk_norm_attention_logits_stay_within_their_limit_however_large_the_weights():
    largest = {}
    for qk_norm in (False, True):
        shape = GptShape(1, 2, 32, 16, 256, qk_norm=qk_norm)
        attention = GPT(shape, seed=0).blocks[0].attention
        with torch.no_grad():
            attention.qkv.weight.mul_(1e3)
        query, key, _ = attention.qkv(torch.randn(4, 16, 32)).view(4, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
        logits = attention.query_norm(query) @ attention.key_norm(key).transpose(-1, -2) / 16**0.5
        largest[qk_norm] = logits.abs().max().item()
    assert largest[True] <= 16**0.5 + 1e-3, "of two vectors of length sqrt(16)"
    assert largest[False] > 100 * largest[True]


def test_dropout_and_depth_of_the_spec_reach_every_branch(workload: LanguageWorkload):
    from jobs.init.residual import residual_ends
    from jobs.spec.regularize import RegularizeSpec
    from jobs.training.dropout import set_randomness

    model = workload.build_model()
    assert len(residual_ends(model)) == 4
    set_randomness(model, RegularizeSpec(dropout=0.2, stochastic_depth=0.5))
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.2}
    batch = workload.train_batch(np.arange(8), 0, CPU)
    assert not torch.equal(workload.loss(model, batch), workload.loss(model, batch))
    model.eval()
    assert torch.equal(workload.loss(model, batch), workload.loss(model, batch))


@pytest.mark.parametrize("world_size", [1, 2, 5, 200])
def test_every_held_out_token_counts_once_whatever_the_world_size(
    workload: LanguageWorkload, world_size: int
):
    model = workload.build_model()
    shares = [workload.evaluate(model, rank, world_size, CPU) for rank in range(world_size)]
    sums = {key: sum(share[key] for share in shares) for key in shares[0]}
    assert sums["tokens"] == len(workload._test) * 16
    metrics = workload.metrics(sums)
    assert metrics["test_loss"] == pytest.approx(math.log(256), rel=0.05)
    assert metrics["test_perplexity"] == pytest.approx(math.exp(metrics["test_loss"]))


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_shares(workload: LanguageWorkload):
    model, ids = workload.build_model(), np.arange(16)
    whole = workload.loss(model, workload.train_batch(ids, 0, CPU))
    halves = [workload.loss(model, workload.train_batch(half, 0, CPU)) for half in np.split(ids, 2)]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_smoothing_and_z_loss_of_the_spec_are_in_the_loss(book: Path, workload: LanguageWorkload):
    regularized = load_workload(
        spec(data={"path": str(book), "batch_size": 8}, regularize={"label_smoothing": 0.1, "z_loss": 0.5})
    )
    model, batch = workload.build_model(), workload.train_batch(np.arange(8), 0, CPU)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    logits, targets = model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    expected = expected + 0.5 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(regularized.loss(model, batch), expected)


def test_windows_follow_each_other_and_predict_each_token_once():
    windows = Windows(np.arange(50, dtype=np.uint8), context=7)
    assert len(windows) == 7
    batch = windows.batch(np.arange(7))
    assert batch.dtype == torch.int64
    assert batch[:, 1:].flatten().tolist() == list(range(1, 50))
    few = Windows(np.arange(50, dtype=np.uint8), context=7, limit=3)
    assert len(few) == 3
    assert all(row in batch.tolist() for row in few.batch(np.arange(3)).tolist())


def test_a_folder_is_read_in_order_and_what_is_no_text_is_ignored(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("two\n" * 40)
    (tmp_path / "a.txt").write_text("äöü" * 40)
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"three\n" * 40))
    (tmp_path / "d.bin").write_bytes(bytes(range(256)))
    (tmp_path / ".hidden").write_text("secret")
    corpus = load_text(DataSpec(path=str(tmp_path), holdout=0.25))
    assert [text[:3].decode(errors="ignore") for text in corpus.train] == ["ä", "two", "thr"]
    assert corpus.train[1] + corpus.test[1] == b"two\n" * 40
    assert corpus.test[1] == b"two\n" * 10
    assert all(text.decode() for text in (*corpus.train, *corpus.test)), "no character is cut in two"


def test_a_folder_may_define_what_is_held_out(tmp_path: Path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.md").write_text(name)
    corpus = load_text(DataSpec(path=str(tmp_path)))
    assert (corpus.train, corpus.test) == ([b"train"], [b"val"])


@pytest.mark.parametrize("corpus", ["auto", "python"])
def test_there_is_text_on_every_machine_and_it_is_the_same_each_time(corpus: str):
    one, two = load_text(DataSpec(corpus=corpus)), load_text(DataSpec(corpus=corpus))
    assert one == two
    assert sum(map(len, one.train)) > 1e6


def test_missing_text_is_one_clear_line(tmp_path: Path):
    with pytest.raises(DataError, match="there is no file or folder"):
        load_text(DataSpec(path=str(tmp_path / "nothing")))
    (tmp_path / "noise.bin").write_bytes(b"\0\1\2")
    with pytest.raises(DataError, match="no text in"):
        load_text(DataSpec(path=str(tmp_path)))
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DataError, match="too few for windows of 16"):
        load_workload(spec(data={"path": str(tmp_path)}))


def test_bytes_come_back_as_the_text_they_were():
    tokenizer = Bytes()
    tokens = tokenizer.encode(["grün".encode(), b"two"])
    assert tokens.tolist() == [*"grün".encode(), 0, *b"two", 0]
    assert tokenizer.decode(tokens.tolist()) == "grün\ntwo\n"


def test_a_tokenizer_file_gives_tokens_and_their_text(tmp_path: Path, book: Path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([book.read_text()], trainer)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    tokenizer = TokenizerFile(path)
    tokens = tokenizer.encode([b"7 times 7 is 49.\n"])
    assert (tokenizer.size, tokens.dtype, len(tokens) < 17) == (300, np.uint16, True)
    assert tokens[-1] == 0, "the end of the text"
    assert tokenizer.decode(tokens.tolist()) == "7 times 7 is 49.\n"
    data = {"path": str(book), "tokenizer": str(path), "batch_size": 8}
    found = load_workload(spec(data=data))
    assert found.build_model().embedding.num_embeddings == 300
    with pytest.raises(DataError, match="the tokenizer has 300 tokens; write 320"):
        load_workload(spec(data=data, model={**SMALL, "vocabulary": 256}))


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match="there is no file"):
        TokenizerFile(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match="is no tokenizer file"):
        TokenizerFile(tmp_path / "broken.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'gradguard\[language\]'"):
        TokenizerFile(tmp_path / "broken.json")


def test_samples_continue_the_held_out_text_and_are_the_same_each_time(workload: LanguageWorkload):
    model = workload.build_model()
    state = torch.get_rng_state()
    samples = workload.samples(model, CPU)
    assert samples == workload.samples(model, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert len(samples) == 3
    assert all(prompt and text for prompt, text in samples)
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_to_predict(book: Path, optimizer: str):
    from jobs.training.optim import build_optimizer, tables_of

    given = spec(
        data={"path": str(book), "batch_size": 32}, optimizer={"name": optimizer, "lr": 5e-3}, seed=1
    )
    workload = load_workload(given)
    model = workload.build_model()
    stepped = build_optimizer(given.optimizer, model.parameters(), tables=tables_of(model))
    order = np.random.default_rng(0)
    for _ in range(150):
        stepped.zero_grad()
        ids = order.permutation(workload.n_train)[:32]
        workload.loss(model, workload.train_batch(ids, 0, CPU)).backward()
        stepped.step()
    assert workload.metrics(workload.evaluate(model, 0, 1, CPU))["test_perplexity"] < 5
