"""The example specs for folders of images are valid, and the way to a folder for them works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.data import load_images
from jobs.data.images import ImageFiles
from jobs.data.to_folder import main
from jobs.spec.job_spec import DataSpec, JobSpec

EXAMPLES = Path(__file__).resolve().parents[3] / "jobs" / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*imagefolder*.yaml")), ids=lambda path: path.name)
def test_an_example_is_valid_and_has_the_intended_values(path: Path):
    spec = JobSpec.load(path)
    assert spec.model.name == "resnet50"
    assert spec.data.dataset == "imagefolder"
    assert spec.scale.device == ("gpu" if "8gpu" in path.name else "cpu")
    assert JobSpec.from_dict(spec.model_dump(mode="json")) == spec
    assert spec.total_steps(n_train=1_281_167) > 10_000


def test_a_data_set_becomes_a_folder_of_the_same_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "images"
    assert main(["digits", str(folder), "--limit", "40"]) == 0
    assert "80 images of digits" in capsys.readouterr().out
    stored, _ = load_images(DataSpec(dataset="digits", train_limit=40))
    files, test = load_images(DataSpec(dataset="imagefolder", root=str(folder)))
    assert isinstance(files, ImageFiles)
    assert len(test) == 40
    assert sorted(files.labels.tolist()) == sorted(stored.labels.tolist())
    for row, path in enumerate(files.paths):
        source = int(Path(path).stem)
        assert files.classes[files.labels[row]] == stored.classes[stored.labels[source]]
        assert torch.equal(files.pixels(row), stored.pixels(source).expand(3, -1, -1))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digit", "new"], 'did you mean "digits"?'),
        (["mnist", "new"], "data.root: is required for mnist"),
        (["digits", "."], "is there already"),
    ],
)
def test_what_cannot_become_one_is_one_clear_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
