"""What a batch looks like is described; data that cannot be right are never called fine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jobs.spec.job_spec import JobSpec
from jobs.training.data_view import look_at
from jobs.workloads import load_workload

IMAGES, LABELS = torch.randn(8, 3, 4, 4), torch.arange(8) % 3


class Plain:
    """A workload that says nothing of its data."""


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ((torch.rand(8, 1, 1, 1).expand(8, 3, 4, 4), LABELS), "every sample is constant"),
        ((torch.zeros(8, 3, 4, 4), LABELS), "every sample is constant"),
        ((torch.rand(8, 3, 1, 1).expand(8, 3, 4, 4), LABELS), "every sample is constant"),
        ((torch.rand(8, 1, 1, 3).expand(8, 4, 4, 3), LABELS), "every sample is constant"),
        ((IMAGES[:1].expand(8, 3, 4, 4), LABELS), "all 8 samples are the same"),
        ((IMAGES, torch.ones(8, dtype=torch.int64)), "all 8 samples have the same value, 1"),
        ({"x": IMAGES / 0, "y": LABELS}, "x has NaN or infinity"),
        (torch.full((8, 5), 7), "every sample is constant"),
    ],
)
def test_what_cannot_be_right_is_named(batch: Any, says: str) -> None:
    (problem,) = look_at(Plain(), batch).problems
    assert says in problem


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, LABELS),
        (torch.eye(8), LABELS),
        (IMAGES, torch.randn(8)),
        (torch.ones(8, 1), LABELS),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64)),
        [{"ids": torch.arange(40).view(8, 5)}, None, "text"],
    ],
)
def test_ordinary_batches_have_no_problem(batch: Any) -> None:
    assert look_at(Plain(), batch).problems == []


def test_the_figures_are_those_of_the_tensors() -> None:
    images, labels = look_at(Plain(), (IMAGES, LABELS)).tensors
    assert (images.name, images.shape, images.dtype) == ("batch[0]", [8, 3, 4, 4], "float32")
    assert images.mean == pytest.approx(IMAGES.mean().item(), abs=1e-6)
    assert images.std == pytest.approx(IMAGES.std(correction=0).item(), rel=1e-5)
    assert (images.low, images.high) == (IMAGES.min().item(), IMAGES.max().item())
    assert labels.values == {"0": 3, "1": 3, "2": 2}
    assert labels.line() == "batch[1]: 8 int64, 3 of 0, 3 of 1, 2 of 2"


def test_classes_are_counted_and_one_class_is_a_problem() -> None:
    class Skewed:
        class_counts = {"cat": 990, "dog": 10}  # noqa: RUF012

    class Single:
        class_counts = {"cat": 10, "dog": 0}  # noqa: RUF012

    view = look_at(Skewed(), (IMAGES, LABELS))
    assert view.facts == [
        "2 classes, 1000 samples: cat 990, dog 10; a model that always answers cat is right in 99%"
    ]
    assert view.problems == []
    assert look_at(Single(), (IMAGES, LABELS)).problems == ["all training samples are of one class, cat"]


def test_tokens_are_shown_with_their_text() -> None:
    model = {"name": "gpt", "layers": 1, "heads": 1, "width": 8, "context": 8}
    spec = {"workload": "language", "model": model, "data": {"corpus": "python"}}
    workload = load_workload(JobSpec.from_dict(spec))
    batch = torch.tensor([list(b"import os")])
    facts = look_at(workload, batch).facts
    assert "tokens 105 109 112 111 114 116 32 111 115 = 'import os'" in facts
