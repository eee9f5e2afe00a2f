"""Initial weights: each scheme has the variance it promises, and depends only on the seed and the name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from jobs.init import InitError, build_initialized, initialize, residual_ends
from jobs.models.vision import build_model
from jobs.spec.init import InitSpec, LayerInit
from jobs.spec.job_spec import JobSpec, SpecError
from jobs.spec.sections import ModelSpec
from jobs.workloads import load_workload

DEPTH, WIDTH = 20, 128


def never() -> None:
    raise AssertionError("only lsuv needs data")


def deep(depth: int = DEPTH) -> nn.Sequential:
    return nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


def weights(model: nn.Module, **spec: object) -> dict[str, torch.Tensor]:
    initialize(model, InitSpec(**spec), seed=3, forward=never)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("scheme", "std"),
    [
        ("kaiming", math.sqrt(2 / 512)),
        ("xavier", math.sqrt(2 / (512 + 256))),
        ("orthogonal", math.sqrt(1 / 512)),
        ("truncated_normal", 0.02 * 0.8796),  # the deviation of a normal that is cut at two deviations
    ],
)
def test_each_scheme_has_the_deviation_of_its_formula(scheme: str, std: float):
    layer = nn.Linear(512, 256)
    weights(layer, scheme=scheme)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
    assert not layer.bias.any()


def test_orthogonal_rows_are_orthogonal_and_each_head_matrix_is_drawn_on_its_own():
    attention = nn.MultiheadAttention(32, 4)
    weights(attention, scheme="orthogonal")
    for matrix in attention.in_proj_weight.chunk(3):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(32), atol=1e-5, rtol=0)
    lstm = nn.LSTM(16, 16)
    weights(lstm, scheme="orthogonal")
    for gate in lstm.weight_hh_l0.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)


def test_kaiming_carries_the_signal_through_relus_where_the_default_loses_it():
    model, inputs = deep(), torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    weights(model, scheme="xavier")
    loss = model(inputs).square().mean().item()
    weights(model, scheme="kaiming")
    kept = model(inputs).square().mean().item()
    assert loss < 1e-3
    assert 0.05 < kept < 20


def test_weights_depend_on_seed_and_name_and_the_generators_are_untouched():
    torch.manual_seed(1)
    expected = torch.rand(2)
    short, long = weights(deep(2), scheme="kaiming"), weights(deep(4), scheme="kaiming")
    lstm = nn.LSTM(4, 4)
    torch.manual_seed(1)
    weights(lstm, scheme="kaiming")
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(short[name], long[name]) for name in short)
    other = deep(2)
    initialize(other, InitSpec(scheme="kaiming"), seed=4, forward=never)
    assert not torch.equal(other[0].weight, short["0.weight"])


def test_exceptions_by_name_and_only_those():
    model = deep(3)
    before = model[4].weight.clone()
    rules = (
        LayerInit(match="4", scheme="default"),
        LayerInit(match="[24]", scheme="truncated_normal", std=0.5),
    )
    weights(model, scheme="kaiming", layers=rules)
    assert torch.equal(model[4].weight, before)
    assert model[2].weight.std().item() == pytest.approx(0.44, rel=0.02)
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / WIDTH), rel=0.03)
    with pytest.raises(InitError, match="matches none of the layers 0, 2, 4"):
        weights(model, layers=(LayerInit(match="layer4.*", scheme="kaiming"),))


def test_a_tied_weight_is_drawn_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
            self.head.weight = self.table.weight

    model = Tied()
    weights(model, scheme="truncated_normal", std=0.1)
    alone = nn.ModuleDict({"table": nn.Embedding(10, 8)})
    weights(alone, scheme="truncated_normal", std=0.1)
    assert torch.equal(model.head.weight, alone["table"].weight)


def test_lsuv_gives_every_layer_unit_variance_on_its_batch_and_keeps_the_buffers():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Tanh(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    inputs = 100 * torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean = model[2].running_mean.clone()
    initialize(model, InitSpec(scheme="lsuv"), seed=0, forward=lambda: model(inputs))
    assert torch.equal(model[2].running_mean, mean)
    assert model[0](inputs).std().item() == pytest.approx(1, rel=1e-3)
    assert model(inputs).std(correction=0).item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("name", "branches"), [("resnet18", 8), ("resnet50", 16), ("vit_b_16", 24)])
def test_the_residual_branches_of_torchvision_are_known(name: str, branches: int):
    with torch.device("meta"):
        from torchvision import models

        assert len(residual_ends(models.get_model(name))) == branches


def test_zero_residual_branches_make_a_resnet_shallow_and_depth_scaling_divides_by_the_root():
    config = ModelSpec(name="resnet18")
    shallow, scaled, plain = (
        build_model(config, channels=1, classes=10, image_size=8, seed=0) for _ in range(3)
    )
    weights(shallow, residual="zero")
    weights(scaled, residual="depth_scaled")
    assert not any(end.weight.any() for _, end in residual_ends(shallow))
    assert torch.equal(shallow.layer1[0].conv1.weight, plain.layer1[0].conv1.weight)
    for (_, end), (_, before) in zip(residual_ends(scaled), residual_ends(plain), strict=True):
        torch.testing.assert_close(end.weight, before.weight / math.sqrt(8))
    with pytest.raises(InitError, match="no residual branch"):
        weights(deep(2), residual="zero")


def test_a_spec_names_a_scheme_or_writes_a_section():
    short = JobSpec.from_dict({"model": {"init": "kaiming"}})
    long = JobSpec.from_dict({"model": {"init": {"scheme": "kaiming"}}})
    assert short.model.initialization == long.model.initialization
    for spec in (short, long):
        assert JobSpec.from_dict(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("init", "path", "said"),
    [
        ("kaimin", "model.init", 'did you mean "kaiming"?'),
        ({"schema": "kaiming"}, "model.init.schema", 'did you mean "scheme"?'),
        ({"scheme": "lsuw"}, "model.init.scheme", 'did you mean "lsuv"?'),
        ({"layers": [{"match": "fc", "scheme": "lsuv"}]}, "model.init.layers[0].scheme", "must be one of"),
        ({"gain": 2.0}, "model.init.gain", "remove it"),
    ],
)
def test_a_wrong_section_is_one_clear_line(init: object, path: str, said: str):
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"model": {"init": init}})
    (problem,) = caught.value.problems
    assert problem.path == path
    assert said in str(problem)


def test_published_weights_are_not_overwritten():
    with pytest.raises(SpecError, match="would overwrite the published weights"):
        JobSpec.from_dict({"model": {"pretrained": True, "init": "lsuv"}})


def test_every_worker_builds_the_same_weights():
    model = {"name": "resnet18", "stem": "tiny", "init": {"scheme": "lsuv", "residual": "zero"}}
    spec = JobSpec.from_dict({"data": {"dataset": "digits", "augment": "standard"}, "model": model})
    first = build_initialized(spec, load_workload(spec))
    torch.manual_seed(99)
    torch.rand(7)
    second = build_initialized(spec, load_workload(spec))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
