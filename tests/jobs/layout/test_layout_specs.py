"""A layout that does not fit the other sections is refused in one line that says what to write."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.checkpoints.spec_match import check_spec
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fsdp2 with one worker": ({"parallel": {"kind": "fsdp2"}}, "parallel.kind"),
    "hsdp with two": ({"parallel": {"kind": "hsdp"}, "scale": {"workers": 2}}, "parallel.kind"),
    "shards that do not divide": (
        {"parallel": {"kind": "hsdp", "shard": 3}, "scale": {"workers": 8}},
        "parallel.shard",
    ),
    "one replica": ({"parallel": {"kind": "hsdp", "shard": 8}, "scale": {"workers": 8}}, "parallel.shard"),
    "shards of fsdp2": ({"parallel": {"kind": "fsdp2", "shard": 2}, "scale": {"workers": 4}}, "shard"),
    "tensor and workers": ({"parallel": {"tensor": 4}, "scale": {"workers": 2}}, "scale.workers = 2"),
    "tensor and heads": (
        {"parallel": {"tensor": 8}, "scale": {"workers": 8}},
        "must divide the 4 heads of gpt-tiny",
    ),
    "tensor and vision": (
        {"workload": "vision", "parallel": {"tensor": 2}, "scale": {"workers": 2}, "model": {}},
        "parallel.tensor",
    ),
    "tensor and qk_norm": (
        {"parallel": {"tensor": 2}, "scale": {"workers": 2}, "model": {"qk_norm": True}},
        "model.qk_norm",
    ),
    "elastic hsdp": (
        {"parallel": {"kind": "hsdp"}, "scale": {"workers": 4, "min_workers": 2}, "data": {"batch_size": 48}},
        "scale.min_workers",
    ),
    "offload of ddp": ({"parallel": {"cpu_offload": True}}, "parallel.cpu_offload"),
    "muon": ({"parallel": {"kind": "fsdp2"}, "scale": {"workers": 2}, "optimizer": {"name": "muon"}}, "muon"),
    "hugging face": (
        {
            "workload": "huggingface",
            "model": {"name": "./x"},
            "parallel": {"kind": "fsdp2"},
            "scale": {"workers": 2},
        },
        "workload huggingface",
    ),
    "average": (
        {"parallel": {"kind": "fsdp2"}, "scale": {"workers": 2}, "train": {"ema_decay": 0.9}},
        "train.ema_decay",
    ),
    "fp16": (
        {"parallel": {"kind": "fsdp2"}, "scale": {"workers": 2}, "train": {"precision": "fp16"}},
        "train.precision fp16",
    ),
    "dropout of parts": (
        {"parallel": {"tensor": 2}, "scale": {"workers": 2}, "regularize": {"dropout": 0.1}},
        "regularize.dropout",
    ),
    "communication hook": (
        {"parallel": {"kind": "fsdp2"}, "scale": {"workers": 2}, "guard": {"local_norm_by": "comm"}},
        "communication hook",
    ),
    "rank exclusion": (
        {"parallel": {"kind": "fsdp2"}, "scale": {"workers": 2}, "guard": {"rank_exclusion": {"after": 2}}},
        "guard.rank_exclusion.after",
    ),
    "deferred": (
        {"parallel": {"kind": "fsdp2"}, "scale": {"workers": 2}, "guard": {"mode": "deferred"}},
        "guard.mode",
    ),
    "fault of a parameter": (
        {
            "parallel": {"kind": "fsdp2"},
            "scale": {"workers": 2},
            "faults": [{"kind": "scaled_gradient", "step": 3}],
        },
        "a divided model has parts",
    ),
    "unknown kind": ({"parallel": {"kind": "fsdp"}}, "fsdp2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_layout_that_cannot_be_is_refused_in_one_line(case: str) -> None:
    sections, expected = WRONG[case]
    with pytest.raises(SpecError) as raised:
        JobSpec.from_dict({"workload": "language", **sections})
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("parallel", "workers"),
    [
        ({"kind": "fsdp2"}, 2),
        ({"kind": "hsdp"}, 4),
        ({"kind": "hsdp", "shard": 1}, 2),
        ({"kind": "hsdp", "shard": 2, "tensor": 2}, 8),
        ({"tensor": 4}, 4),
        ({"activation_checkpointing": "selective"}, 1),
    ],
)
def test_a_layout_that_fits_is_the_same_after_a_round_trip(parallel: dict[str, Any], workers: int) -> None:
    spec = JobSpec.from_dict({"workload": "language", "parallel": parallel, "scale": {"workers": workers}})
    assert JobSpec.from_dict(spec.model_dump(mode="json")) == spec
    layout = spec.parallel
    assert layout.replicas(workers) * layout.shards(workers) * layout.tensor == workers


def test_an_elastic_job_may_be_divided_over_any_number_of_workers() -> None:
    scale = {"workers": 4, "min_workers": 1}
    spec = JobSpec.from_dict({"parallel": {"kind": "fsdp2"}, "scale": scale, "data": {"batch_size": 48}})
    assert spec.parallel.sharded


def test_a_checkpoint_continues_under_another_layout() -> None:
    old = JobSpec.from_dict({"workload": "language", "scale": {"workers": 4}, "parallel": {"kind": "fsdp2"}})
    new = JobSpec.from_dict({"workload": "language", "scale": {"workers": 2}})
    check_spec(old.model_dump(mode="json"), new.model_dump(mode="json"), 10)
