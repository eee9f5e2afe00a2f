"""MixUp and CutMix: the same pairs however a batch is cut, and the right shares of pixels and labels."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.data import DataCursor
from jobs.data.mixing import Draw, Mixer
from jobs.spec.augment import AugmentSpec
from jobs.spec.job_spec import JobSpec
from jobs.workloads import Workload, load_workload
from jobs.workloads.losses import cross_entropy

N, BATCH, SIZE = 50, 12, 16
CPU = torch.device("cpu")


def mixer(**fields: Any) -> Mixer:
    return Mixer(AugmentSpec(**fields), n_samples=N, batch_size=BATCH, seed=3, size=SIZE)


def batches(epoch: int) -> list[np.ndarray]:
    cursor = DataCursor(N, BATCH, seed=3)
    drawn = [cursor.next_batch() for _ in range((epoch + 1) * cursor.batches_per_epoch)]
    return [batch.ids for batch in drawn if batch.epoch == epoch]


def same(one: Draw, other: Draw) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_partner_is_another_sample_of_the_same_global_batch_and_everybody_is_one_once():
    for ids in batches(epoch=2):
        draw = mixer(mixup=0.2).draw(ids, 2)
        assert (draw.partners != ids).all()
        assert sorted(draw.partners) == sorted(ids)


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_pairs_and_shares_are_the_same_however_the_batch_is_cut(parts: int):
    ids = batches(epoch=1)[2]
    whole = mixer(mixup=0.4, cutmix=1.0).draw(ids, 1)
    cut = [mixer(mixup=0.4, cutmix=1.0).draw(part, 1) for part in np.split(ids, parts)]
    assert same(whole, Draw(*(np.concatenate(field) for field in zip(*cut, strict=True))))
    backwards = mixer(mixup=0.4, cutmix=1.0).draw(ids[::-1].copy(), 1)
    assert same(whole, backwards.rows(np.arange(BATCH)[::-1]))


def test_samples_of_several_batches_and_of_the_left_over_ones_can_be_asked_for_together():
    together = mixer(cutmix=1.0).draw(np.arange(N), 0)
    for ids in batches(epoch=0):
        assert same(mixer(cutmix=1.0).draw(ids, 0), together.rows(ids))


def test_other_epochs_and_batches_draw_other_partners():
    draws = [mixer(mixup=1.0).draw(ids, epoch).share for epoch in (0, 1) for ids in batches(epoch)]
    assert len({tuple(share) for share in draws}) == len(draws)


def test_the_shares_have_the_distribution_of_the_papers():
    wide = Mixer(AugmentSpec(mixup=0.3), n_samples=4000, batch_size=4000, seed=0, size=SIZE)
    share = wide.draw(np.arange(4000), 0).share
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.3 + 1)), abs=0.01)  # of Beta(a, a)
    half = Mixer(
        AugmentSpec(mixup=0.3, mix_probability=0.5), n_samples=4000, batch_size=4000, seed=0, size=SIZE
    ).draw(np.arange(4000), 0)
    alone = half.partners == np.arange(4000)
    assert alone.mean() == pytest.approx(0.5, abs=0.03)
    assert (half.share[alone] == 1).all()


def test_both_together_are_shared_out_evenly():
    both = Mixer(AugmentSpec(mixup=1.0, cutmix=1.0), n_samples=4000, batch_size=4000, seed=0, size=64).draw(
        np.arange(4000), 0
    )
    cut = both.boxes.any(1)
    assert cut.mean() == pytest.approx(0.5, abs=0.03)
    area = (both.boxes[:, 1] - both.boxes[:, 0]) * (both.boxes[:, 3] - both.boxes[:, 2])
    np.testing.assert_allclose(both.share[cut], 1 - area[cut] / 64**2, rtol=1e-6)


def workload(**augment: Any) -> Workload:
    data = {"dataset": "digits", "batch_size": 16, "augment": {"crop": "none", **augment}}
    return load_workload(JobSpec.from_dict({"data": data, "regularize": {"label_smoothing": 0.1}}))


def of_batch(job: Workload, ids: np.ndarray, epoch: int = 0) -> tuple[Tensor, Tensor]:
    images, targets = job.train_batch(ids, epoch, CPU)
    return images, targets


def first_batch(job: Workload, epoch: int = 0) -> np.ndarray:
    cursor = DataCursor(job.n_train, 16, 0)
    return next(b.ids for b in iter(cursor.next_batch, None) if b.epoch == epoch)


def test_mixed_images_and_targets_are_the_same_weighted_sum():
    plain, mixed = workload(), workload(mixup=0.5)
    ids = first_batch(mixed)
    images, labels = of_batch(plain, ids)
    blended, targets = of_batch(mixed, ids)
    assert targets.shape == (16, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    draw = mixed._reader._mixer.draw(ids, 0)  # type: ignore[attr-defined]
    others, their_labels = of_batch(plain, draw.partners)
    share = torch.from_numpy(draw.share)
    weight = share[:, None, None, None]
    torch.testing.assert_close(blended, weight * images + (1 - weight) * others)
    rows = torch.arange(16)
    expected = torch.zeros(16, 10)
    expected[rows, labels] += share
    expected[rows, their_labels] += 1 - share
    torch.testing.assert_close(targets, expected)


def test_a_cut_image_has_every_pixel_from_one_of_the_two_in_the_shares_of_its_label():
    plain, mixed = workload(), workload(cutmix=1.0)
    ids = first_batch(mixed, epoch=1)
    draw = mixed._reader._mixer.draw(ids, 1)  # type: ignore[attr-defined]
    own, other = of_batch(plain, ids, 1)[0], of_batch(plain, draw.partners, 1)[0]
    images, _ = of_batch(mixed, ids, 1)
    assert ((images == own) | (images == other)).all()
    for row, (top, bottom, left, right) in enumerate(draw.boxes):
        assert torch.equal(images[row, :, top:bottom, left:right], other[row, :, top:bottom, left:right])
        kept = 64 - (bottom - top) * (right - left)
        assert draw.share[row] == pytest.approx(kept / 64)


def test_the_ranks_of_any_world_together_see_the_same_mixed_batch():
    whole = of_batch(workload(mixup=0.5, cutmix=1.0), first_batch(workload()))
    for world_size in (2, 4):
        parts = np.split(first_batch(workload()), world_size)
        shares = [of_batch(workload(mixup=0.5, cutmix=1.0), part) for part in parts]
        for k in range(2):
            assert torch.equal(torch.cat([share[k] for share in shares]), whole[k])


def test_soft_targets_go_with_label_smoothing_and_with_the_z_loss():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    hard = torch.tensor([0, 1, 2, 3, 0])
    soft = torch.nn.functional.one_hot(hard, 4).float()
    for options in ({"label_smoothing": 0.2}, {"z_loss": 0.1}, {}):
        torch.testing.assert_close(
            cross_entropy(logits, soft, **options), cross_entropy(logits, hard, **options)
        )
    mixed = 0.7 * soft + 0.3 * soft.roll(1, 0)
    expected = -(mixed * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(cross_entropy(logits, mixed), expected)


def test_a_mixed_batch_trains_and_is_evaluated_with_plain_labels():
    job = workload(mixup=0.2, cutmix=1.0)
    model = job.build_model()
    loss = job.loss(model, job.train_batch(first_batch(job), 0, CPU))
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert 0 <= job.metrics(job.evaluate(model, 0, 1, CPU))["test_accuracy"] <= 1
