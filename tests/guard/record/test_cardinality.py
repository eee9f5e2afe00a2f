"""The number of series does not grow with the model or with the cluster."""

import math

import numpy as np
import pytest

from guard.record.cardinality import group_names, group_norms, outliers
from guard.record.metrics import GuardMetrics, Layers
from guard.types import StepReport

BLOCK = [
    f"{kind}{n}.{part}"
    for n in (1, 2, 3)
    for kind, part in (("conv", "weight"), ("bn", "weight"), ("bn", "bias"))
]
RESNET = [
    *("conv1.weight", "bn1.weight", "bn1.bias"),
    *(
        f"layer{n}.{b}.{part}"
        for n, blocks in enumerate((3, 4, 6, 3), 1)
        for b in range(blocks)
        for part in BLOCK
    ),
    *("fc.weight", "fc.bias"),
]
STACK = [
    "embed.weight",
    *(f"model.layers.{n}.{part}.weight" for n in range(80) for part in ("attn.q", "attn.k", "mlp.up")),
    "head.weight",
]


def metrics_of(
    layers: dict[str, float], local_norms: list[float], **limits: int
) -> dict[str, dict[str, float]]:
    metrics = GuardMetrics(job="wide", **limits)
    report = StepReport(loss=1.0, grad_norm=1.0, local_norms=local_norms)
    metrics.observe(report, Layers(list(layers), np.array(list(layers.values()))))
    return metrics.snapshot()["values"]


def test_a_small_model_is_shown_parameter_by_parameter() -> None:
    assert group_names(["a.weight", "a.bias", "b"], 3) == {n: n for n in ("a.weight", "a.bias", "b")}


@pytest.mark.parametrize(
    "names", [RESNET, STACK, [f"p{n}" for n in range(1000)]], ids=["resnet", "stack", "flat"]
)
@pytest.mark.parametrize("limit", [1, 7, 64, 100])
def test_no_model_has_more_groups_than_allowed(names: list[str], limit: int) -> None:
    groups = group_names(names, limit)
    assert list(groups) == names
    assert len(set(groups.values())) <= limit


def test_groups_are_the_modules_of_the_model() -> None:
    groups = group_names(RESNET, 64)
    assert groups["layer4.2.conv3.weight"] == "layer4.2"
    assert groups["fc.bias"] == "fc.bias"


def test_a_stack_of_equal_blocks_is_not_one_group() -> None:
    groups = group_names(STACK, 64)
    assert groups["model.layers.3.mlp.up.weight"] == "model.layers.3..model.layers.4"
    assert len(set(groups.values())) > 32


def test_a_group_has_the_norm_of_its_parameters_together() -> None:
    norms = {"fc.weight": 3.0, "fc.bias": 4.0, "conv": 1.0}
    assert group_norms(norms, {"fc.weight": "fc", "fc.bias": "fc", "conv": "conv"}) == {
        "fc": 5.0,
        "conv": 1.0,
    }


def test_groups_lose_nothing_of_the_global_norm() -> None:
    layers = {name: 0.1 + index for index, name in enumerate(RESNET)}
    shown = metrics_of(layers, [1.0], max_layers=10)["layer_grad_norm"]
    assert len(shown) <= 10
    assert math.hypot(*shown.values()) == pytest.approx(math.hypot(*layers.values()))


def test_of_many_ranks_those_that_stand_out_are_shown() -> None:
    norms = [1.0 + rank / 10_000 for rank in range(512)]
    norms[77], norms[300], norms[9] = 40.0, 0.001, math.inf
    values = metrics_of({"fc": 1.0}, norms)
    assert len(values["grad_norm_local"]) == 64
    assert {"77", "300"} <= values["grad_norm_local"].keys()
    assert values["grad_norm_local_median"] == pytest.approx(1.0255, abs=1e-3)


def test_few_ranks_are_all_shown() -> None:
    assert outliers({"0": 1.0, "1": 2.0}, 2) == {"0": 1.0, "1": 2.0}
    assert outliers({"0": 1.0, "1": 1.1, "2": 0.0}, 1) == {"2": 0.0}


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 1 or more; got 0 and 64"):
        GuardMetrics(max_layers=0)
