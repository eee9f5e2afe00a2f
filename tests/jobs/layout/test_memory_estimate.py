"""The estimated memory is what the layout says: parts of weights, gradients, moments and snapshots."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.cluster.session import PACKAGE_ROOT
from jobs.layout.memory import MemoryEstimate, estimate, gpt_sizes, of_spec, sizes_of, too_large
from jobs.models.gpt import GPT
from jobs.spec.job_spec import JobSpec
from jobs.spec.language import GptShape

EXAMPLES = PACKAGE_ROOT / "jobs" / "examples"


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_sizes_of_a_gpt_are_those_of_the_model(mlp: Any, qk_norm: bool) -> None:
    shape = GptShape(3, 2, 32, 16, 300, mlp, qk_norm)
    assert gpt_sizes(shape) == sizes_of(GPT(shape, 0))


def spec_with(**sections: Any) -> JobSpec:
    return JobSpec.from_dict({"workload": "language", "scale": {"workers": 4}, **sections})


def test_a_divided_model_needs_its_share_of_weights_moments_and_snapshots() -> None:
    whole = estimate(spec_with(), [1000] * 4, 400)
    parts = estimate(spec_with(parallel={"kind": "fsdp2"}), [1000] * 4, 400)
    assert whole.weights == whole.gradients == 4 * 4400
    assert (whole.moments, whole.snapshots) == (2 * 4 * 4400, 2 * 3 * 4 * 4400)
    assert (parts.moments, parts.snapshots) == (whole.moments // 4, whole.snapshots // 4)
    assert parts.weights == 4 * 1100 + 4 * 2400  # its part, and two blocks and what is outside of them


def test_host_snapshots_and_offloaded_weights_need_no_memory_of_the_gpu() -> None:
    on_host = estimate(spec_with(guard={"snapshot": {"place": "host"}}), [1000], 0)
    offloaded = estimate(spec_with(parallel={"kind": "fsdp2", "cpu_offload": True}), [1000] * 4, 0)
    assert on_host.snapshots == offloaded.snapshots == offloaded.moments == 0


def test_checkpointed_activations_need_less() -> None:
    needs = [
        of_spec(spec_with(parallel={"kind": "fsdp2", "activation_checkpointing": how}))
        for how in ("none", "selective", "block")
    ]
    sizes = [found.activations or 0 for found in needs if found is not None]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_the_line_compares_with_the_gpus_that_are_there_or_says_that_there_are_none() -> None:
    found = MemoryEstimate(1 << 30, 1 << 30, 2 << 30, None, 0)
    assert "no GPU is here" in found.line([])
    assert "without activations" in found.line([])
    assert "8 GPUs of 80.0 GiB: it fits" in found.line([80 << 30] * 8)
    assert "1 GPU of 2.0 GiB: it does not fit" in found.line([2 << 30])


@pytest.mark.parametrize("name", ["gpt-1.5b-8gpu", "gpt-1.5b-64gpu", "gpt-7b-8gpu", "gpt-7b-64gpu"])
def test_the_large_examples_fit_gpus_of_80_gb_and_are_not_built_on_one_worker(name: str) -> None:
    spec = JobSpec.load(EXAMPLES / f"{name}.yaml")
    found = of_spec(spec)
    assert found is not None
    assert found.fits([80_000_000_000])
    assert too_large(spec)
