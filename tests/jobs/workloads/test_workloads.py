"""Workloads: the built-in one, and the way to a user's own class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jobs.spec.job_spec import JobSpec
from jobs.workloads import Workload, WorkloadError, load_workload

DIGITS = {"data": {"dataset": "digits", "batch_size": 16, "augment": "standard"}}
CPU = torch.device("cpu")

OWN = """
import torch
from torch import nn

class Slope:
    n_train = 8
    def __init__(self, spec):
        self.scale = spec.options.get("scale", 1)
    def build_model(self):
        return nn.Linear(1, 1)
    def train_batch(self, ids, epoch, device):
        return torch.from_numpy(ids.copy()).float().unsqueeze(1).to(device)
    def loss(self, model, batch):
        return (model(batch) - self.scale * batch).square().mean()
    def evaluate(self, model, rank, world_size, device):
        return {"error": 1.0}
    def metrics(self, sums):
        return {"test_error": sums["error"]}

class Half(Slope):
    evaluate = None
    metrics = None

class Unsized(Slope):
    n_train = None

number = 3
"""


@pytest.fixture(scope="module")
def vision() -> Workload:
    return load_workload(JobSpec.from_dict(DIGITS))


class Parity(nn.Module):
    """Answers class 0 for every image, so that the metrics are known."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return torch.tensor([1.0] + [0.0] * 9).expand(len(images), -1)


def summed(workload: Workload, model: nn.Module, world_size: int) -> dict[str, float]:
    shares = [workload.evaluate(model, rank, world_size, CPU) for rank in range(world_size)]
    assert all(list(share) == list(shares[0]) for share in shares)
    return {key: sum(share[key] for share in shares) for key in shares[0]}


@pytest.mark.parametrize("world_size", [1, 2, 7, 400])
def test_every_test_sample_is_evaluated_once_whatever_the_world_size(vision: Workload, world_size: int):
    model = Parity()
    sums = summed(vision, model, world_size)
    assert sums["count"] == 360
    assert vision.metrics(sums)["test_accuracy"] == pytest.approx(36 / 360)
    expected = np.log(np.e + 9) - 36 / 360
    assert vision.metrics(sums)["test_loss"] == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_evaluation_leaves_the_model_as_it_was(vision: Workload):
    model = vision.build_model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vision.evaluate(model, 0, 4, CPU)
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_shares(vision: Workload):
    model = vision.build_model().eval()
    ids = np.arange(16)
    whole = vision.loss(model, vision.train_batch(ids, 0, CPU))
    halves = [vision.loss(model, vision.train_batch(half, 0, CPU)) for half in np.split(ids, 2)]
    torch.testing.assert_close(whole, torch.stack(halves).mean(), rtol=1e-5, atol=1e-6)
    assert whole.ndim == 0


def test_a_batch_has_the_images_and_labels_of_its_ids(vision: Workload):
    images, labels = vision.train_batch(np.array([5, 3]), 1, CPU)
    assert (images.shape, images.dtype) == ((2, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((2,), torch.int64)
    reversed_images, reversed_labels = vision.train_batch(np.array([3, 5]), 1, CPU)
    assert torch.equal(images, reversed_images.flip(0))
    assert torch.equal(labels, reversed_labels.flip(0))


def test_two_workers_start_with_the_same_weights(vision: Workload):
    other = load_workload(JobSpec.from_dict(DIGITS))
    pairs = zip(vision.build_model().parameters(), other.build_model().parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_the_built_in_workload_learns_digits():
    workload = load_workload(JobSpec.from_dict({"data": {"dataset": "digits"}, "model": {"stem": "tiny"}}))
    model = workload.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=44)
    for ids in np.split(np.random.default_rng(0).permutation(workload.n_train)[:1408], 44):
        optimizer.zero_grad()
        workload.loss(model, workload.train_batch(ids, 0, CPU)).backward()
        optimizer.step()
        decay.step()
    assert workload.metrics(workload.evaluate(model, 0, 1, CPU))["test_accuracy"] > 0.8


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def load(path: str, **fields: object) -> Workload:
    return load_workload(JobSpec.from_dict({"workload": path, **fields}))


def test_a_class_of_ones_own_is_found_beside_the_spec(folder: Path):
    (folder / "lab_slope.py").write_text(OWN)
    workload = load("lab_slope:Slope", options={"scale": 3})
    assert workload.n_train == 8
    batch = workload.train_batch(np.array([0, 1]), 0, CPU)
    assert workload.loss(workload.build_model(), batch).ndim == 0
    assert workload.metrics(workload.evaluate(nn.Identity(), 0, 1, CPU)) == {"test_error": 1.0}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("lab_missing:Slope", "there is no module lab_missing"),
        ("jobs.nothing.here:Slope", "there is no module jobs.nothing"),
        ("lab_errors:Slop", 'the module lab_errors has no class Slop; did you mean "Slope"?'),
        ("lab_errors:number", "the module lab_errors has no class number"),
        ("lab_errors:Half", "the class lacks evaluate(), metrics()"),
        ("lab_errors:Unsized", "n_train must be the size of the training set, not None"),
        ("lab_broken:Slope", "importing lab_broken failed: SyntaxError"),
        ("lab_needs:Slope", "its module needs no_such_library, which is not installed"),
    ],
)
def test_what_is_no_workload_is_one_clear_line(folder: Path, path: str, said: str):
    (folder / "lab_errors.py").write_text(OWN)
    (folder / "lab_broken.py").write_text("def (:\n")
    (folder / "lab_needs.py").write_text("import no_such_library\n")
    with pytest.raises(WorkloadError) as caught:
        load(path)
    assert str(caught.value).startswith(f"workload {path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_inside_ones_own_class_is_one_line_and_keeps_its_traceback(folder: Path):
    (folder / "lab_raises.py").write_text(OWN.replace('spec.options.get("scale", 1)', "1 / 0"))
    with pytest.raises(
        WorkloadError, match=r"division by zero \(__init__, line 8 of lab_raises.py\)"
    ) as caught:
        load("lab_raises:Slope")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
