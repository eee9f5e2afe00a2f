"""Folders of images: their layouts, their sizes, and how broken ones are reported."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.data import DataError, SampleError, load_images
from jobs.data.images import ImageFiles, Images
from jobs.spec.job_spec import DataSpec, JobSpec, SpecError
from jobs.workloads import Workload, load_workload
from tests.jobs.data.image_folder_fixture import break_image, grey_image, write_images

CPU = torch.device("cpu")


def config(root: Path, **fields: Any) -> DataSpec:
    return DataSpec(dataset="imagefolder", root=str(root), **fields)


def names(images: Images) -> set[str]:
    assert isinstance(images, ImageFiles)
    return {str(images.folder / path) for path in images.paths}


@pytest.mark.parametrize("held_out", ["val", "test", "validation", "valid"])
def test_train_and_held_out_folders_are_taken_as_they_are(tmp_path: Path, held_out: str):
    write_images(tmp_path / "train", 4)
    write_images(tmp_path / held_out, 2)
    train, test = load_images(config(tmp_path))
    assert (len(train), len(test)) == (12, 6)
    assert train.classes == test.classes == ("blue", "green", "red")
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert all(f"/{held_out}/" in name for name in names(test))


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        *(("Train", "Val"), ("training", "testing"), ("train_set", "dev"), ("train2017", "val2017")),
        *(
            ("TrainImages", "TestData"),
            ("seg_train", "seg_test"),
            ("my-trn", "my-tst"),
            ("train", "held out"),
        ),
    ],
)
def test_splits_may_be_spelled_in_any_usual_way(tmp_path: Path, train: str, held_out: str):
    write_images(tmp_path / train, 4)
    write_images(tmp_path / held_out, 2)
    found = load_images(config(tmp_path))
    assert [len(split) for split in found] == [12, 6]
    assert found[0].classes == ("blue", "green", "red")


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path):
    write_images(tmp_path, 4)
    (tmp_path / "red").rename(tmp_path / "train")
    (tmp_path / "green").rename(tmp_path / "test")
    assert load_images(config(tmp_path))[0].classes == ("blue", "test", "train")


def test_a_class_with_the_word_of_a_split_in_its_name_stays_a_class(tmp_path: Path):
    write_images(tmp_path, 4)
    (tmp_path / "red").rename(tmp_path / "bullet_train")
    (tmp_path / "green").rename(tmp_path / "crash_test")
    assert load_images(config(tmp_path))[0].classes == ("blue", "bullet_train", "crash_test")


def test_data_sets_beside_each_other_are_no_classes(tmp_path: Path):
    for name in ("one", "two"):
        write_images(tmp_path / name / "train", 1)
        write_images(tmp_path / name / "val", 1)
    with pytest.raises(DataError, match=f"one, two hold train and val each: .* perhaps {tmp_path / 'one'}"):
        load_images(config(tmp_path))


def test_what_looks_like_splits_under_other_names_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name in ("gallery", "query"):
        write_images(tmp_path / name, 2)
    assert load_images(config(tmp_path))[0].classes == ("gallery", "query")
    assert "gallery, query all hold blue, green, red: if they are splits" in caplog.text


def test_a_linked_class_counts_once_and_links_and_images_that_are_left_out_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write_images(tmp_path, 4)
    (tmp_path / "all").symlink_to(tmp_path)
    (tmp_path / "scarlet").symlink_to(tmp_path / "red")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loose.png").write_bytes((tmp_path / "red" / "000.png").read_bytes())
    train, test = load_images(config(tmp_path))
    assert (train.classes, len(train) + len(test)) == (("blue", "green", "red"), 12)
    assert f"links into {tmp_path} itself are left out: all, scarlet" in caplog.text
    assert f"links in {tmp_path} that lead nowhere: gone" in caplog.text
    assert f"images in {tmp_path} beside the class folders are left out: 1" in caplog.text


def test_a_held_out_folder_that_is_a_link_to_the_training_one_is_refused(tmp_path: Path):
    write_images(tmp_path / "train", 2)
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(DataError, match="val is a link to train: nothing would be held out"):
        load_images(config(tmp_path))


def test_where_a_folder_may_be_a_split_or_a_class_the_user_decides(tmp_path: Path):
    write_images(tmp_path, 2)
    write_images(tmp_path / "train", 2)
    with pytest.raises(DataError, match="is train a split or a class, beside blue, green, red"):
        load_images(config(tmp_path))


def test_one_class_is_refused_with_the_folder_that_may_be_meant(tmp_path: Path):
    write_images(tmp_path / "dataset", 2)
    with pytest.raises(DataError, match=f"only one class, dataset: .* perhaps {tmp_path / 'dataset'}"):
        load_images(config(tmp_path))


def test_each_image_counts_once_whatever_links_to_it(tmp_path: Path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write_images(root, 4)
    write_images(elsewhere, 2)
    (root / "red" / "again").symlink_to(root)
    (root / "red" / "other").symlink_to(root / "blue")
    (root / "red" / "more").symlink_to(elsewhere / "red")
    (root / "blue" / "more").symlink_to(elsewhere / "blue")
    (elsewhere / "red" / "back").symlink_to(elsewhere / "red")
    train, test = load_images(config(root))
    assert torch.cat([train.labels, test.labels]).bincount().tolist() == [6, 4, 6]


def test_what_tools_leave_in_a_folder_is_no_data(tmp_path: Path):
    write_images(tmp_path, 4)
    write_images(tmp_path / "__MACOSX", 4)
    image = tmp_path / "red" / "000.png"
    for copy in (".ipynb_checkpoints/000-checkpoint.png", "._000.png", "__MACOSX/000.png"):
        (image.parent / copy).parent.mkdir(exist_ok=True)
        (image.parent / copy).write_bytes(image.read_bytes())
    train, test = load_images(config(tmp_path))
    assert len(train) + len(test) == 12
    assert train.classes == ("blue", "green", "red")


def test_what_was_found_and_what_was_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_images(tmp_path, 4)
    for number in range(3):
        (tmp_path / "red" / f"{number}.psd").touch()
    (tmp_path / "blue" / "000.png").rename(tmp_path / "blue" / "000.JFIF")
    with caplog.at_level(logging.INFO, "jobs.data"):
        load_images(config(tmp_path))
    assert f"data: 12 images in 3 classes in {tmp_path}" in caplog.text
    assert f"data: 3 of 15 files in {tmp_path} are left out: 3 .psd" in caplog.text


@pytest.mark.parametrize("below", [".", "train"])
def test_a_part_of_each_class_is_held_out_by_the_seed_where_there_is_no_split(tmp_path: Path, below: str):
    write_images(tmp_path / below, 10)
    train, test = load_images(config(tmp_path, val_share=0.3))
    assert test.labels.bincount().tolist() == [3, 3, 3]
    assert train.labels.bincount().tolist() == [7, 7, 7]
    assert not names(train) & names(test)
    again, other = (load_images(config(tmp_path, val_share=0.3, split_seed=seed))[1] for seed in (0, 1))
    assert names(again) == names(test) != names(other)


def test_a_class_may_be_missing_among_the_held_out_but_none_may_be_added(tmp_path: Path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "val", 2)
    for path in (tmp_path / "val" / "blue").iterdir():
        path.unlink()
    (tmp_path / "val" / "blue").rmdir()
    _, test = load_images(config(tmp_path))
    assert test.labels.tolist() == [1, 1, 2, 2]
    (tmp_path / "val" / "blue").mkdir()
    (tmp_path / "val" / "violet").mkdir()
    with pytest.raises(DataError, match=r"violet: this class is not in"):
        load_images(config(tmp_path))


@pytest.mark.parametrize(
    ("held_out", "said"),
    [("Cafe\u0301", "looks the same and has other bytes"), ("caf\u00e9", 'did you mean "Caf\u00e9"')],
)
def test_a_held_out_class_that_is_spelled_another_way_is_named_with_the_training_one(
    tmp_path: Path, held_out: str, said: str
):
    for folder, name in (("train", "Caf\u00e9"), ("train", "red"), ("val", held_out)):
        write_images(tmp_path / folder / name / "x", 1)
    with pytest.raises(DataError, match=said):
        load_images(config(tmp_path))


def test_what_is_not_there_is_named_with_the_way_out(tmp_path: Path):
    for root, said in (
        (tmp_path / "none", "there is no such folder"),
        (tmp_path, "images of each class belong into"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            load_images(config(root))
        assert str(root) in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "images.zip").touch()
    with pytest.raises(DataError, match=r"images.zip: is a file, no folder"):
        load_images(config(tmp_path / "images.zip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no images \(\.jpg"):
        load_images(config(tmp_path))
    with pytest.raises(SpecError, match=r"data\.root: is required for imagefolder"):
        JobSpec.from_dict({"data": {"dataset": "imagefolder"}})


def test_any_format_becomes_colour(tmp_path: Path):
    write_images(tmp_path, 2)
    grey_image(tmp_path / "blue" / "000.png")
    train, _ = load_images(config(tmp_path))
    assert isinstance(train, ImageFiles)
    for row, path in enumerate(train.paths):
        pixels = train.pixels(row)
        assert (pixels.dtype, pixels.shape[0]) == (torch.uint8, 3)
        if path.startswith("blue/000"):
            assert pixels.unique().tolist() == [90]


def workload(root: Path, augment: Any = "none", **data: Any) -> Workload:
    section = {"dataset": "imagefolder", "root": str(root), "batch_size": 4, "image_size": 24, **data}
    return load_workload(
        JobSpec.from_dict({"data": {**section, "augment": augment}, "model": {"stem": "tiny"}})
    )


@pytest.mark.parametrize("augment", ["none", "standard", {"crop": "pad", "randaugment": {}, "mixup": 0.2}])
def test_images_of_any_size_come_in_one_size_and_the_same_for_everybody(tmp_path: Path, augment: Any):
    job = workload(write_images(tmp_path, 5), augment)
    assert job.n_train == 12
    images, _ = job.train_batch(np.arange(8), 3, CPU)
    assert images.shape == (8, 3, 24, 24)
    parts = [job.train_batch(np.arange(at, at + 2), 3, CPU)[0] for at in (0, 2, 4, 6)]
    assert torch.equal(torch.cat(parts), images)


def test_the_usual_size_is_that_of_imagenet(tmp_path: Path):
    root = write_images(tmp_path, 2, size=(300, 280))
    images, _ = workload(root, image_size=None).train_batch(np.arange(1), 0, CPU)
    assert images.shape == (1, 3, 224, 224)
    spec = config(root)
    assert (spec.size, spec.resize_to) == (224, 256)
    assert config(root, image_size=96, resize=100).resize_to == 100


def broken(tmp_path: Path) -> tuple[Path, Path]:
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "val", 2)
    for part in ("train", "val"):
        break_image(tmp_path / part / "green" / "001.png")
    return tmp_path / "train" / "green" / "001.png", tmp_path / "val" / "green" / "001.png"


def test_a_broken_image_ends_the_job_with_its_name_on_one_line(tmp_path: Path):
    in_train, in_test = broken(tmp_path)
    job = workload(tmp_path)
    with pytest.raises(SampleError) as caught:
        job.train_batch(np.arange(9), 0, CPU)
    assert str(caught.value).startswith(f"{in_train}: is not a readable image: ")
    assert "data.on_broken: skip" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SampleError, match=str(in_test)):
        job.evaluate(job.build_model(), 0, 1, CPU)


@pytest.mark.parametrize("augment", ["none", "standard"])
def test_a_skipped_image_is_replaced_by_the_next_one_and_counted(
    tmp_path: Path, augment: str, caplog: pytest.LogCaptureFixture
):
    in_train, in_test = broken(tmp_path)
    job = workload(tmp_path, augment, on_broken="skip")
    _, labels = job.train_batch(np.array([3, 4, 5]), 0, CPU)
    assert labels.tolist() == [1, 1, 1]
    if augment == "none":
        images, _ = job.train_batch(np.array([4, 5]), 0, CPU)
        assert torch.equal(images[0], images[1])
    sums = job.evaluate(job.build_model(), 0, 1, CPU)
    assert sums["count"] == 5
    metrics = job.metrics(sums)
    assert metrics["test_skipped"] == 1
    assert metrics["train_skipped"] == (2 if augment == "none" else 1)
    for path in (in_train, in_test):
        assert f"{path}: is not a readable image" in caplog.text


def test_nothing_is_counted_where_nothing_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    job = workload(write_images(tmp_path, 3))
    metrics = job.metrics(job.evaluate(job.build_model(), 0, 1, CPU))
    assert set(metrics) == {"test_accuracy", "test_loss", "test_macro_f1"}
    assert not caplog.records
