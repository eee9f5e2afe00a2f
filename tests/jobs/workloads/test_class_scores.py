"""Macro F1, top-5 accuracy and confusion matrix are scikit-learn's, on any number of ranks."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearns_matrix
from sklearn.metrics import f1_score, top_k_accuracy_score

from jobs.workloads.class_scores import ClassScores, class_metrics, confusion_matrix


def drawn(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes - 1, (300,), generator=generator)  # the last one never occurs
    noise = torch.randn(300, classes, generator=generator)
    return noise + 2 * torch.nn.functional.one_hot(labels, classes), labels


def sums_of(outputs: torch.Tensor, labels: torch.Tensor, ranks: int) -> dict[str, float]:
    total: dict[str, float] = {"count": float(len(labels))}
    for rank in range(ranks):
        scores = ClassScores(outputs.shape[1], "cpu")
        for batch in torch.arange(rank, len(labels), ranks).split(64):
            scores.add(outputs[batch], labels[batch])
        for name, value in scores.sums().items():
            total[name] = total.get(name, 0.0) + value
    return total


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("classes", [3, 5, 6, 40])
def test_the_metrics_are_those_of_scikit_learn(classes: int, ranks: int) -> None:
    outputs, labels = drawn(classes)
    sums, answers = sums_of(outputs, labels, ranks), outputs.argmax(1)
    metrics = class_metrics(sums, classes)
    assert metrics["test_macro_f1"] == pytest.approx(f1_score(labels, answers, average="macro"))
    if classes > 5:
        names = range(classes)
        top = top_k_accuracy_score(labels, outputs.softmax(1), k=5, labels=names)
        assert metrics["test_top5_accuracy"] == pytest.approx(top)
    else:
        assert "test_top5_accuracy" not in metrics
    expected = sklearns_matrix(labels, answers, labels=range(classes)).tolist() if classes <= 32 else None
    assert confusion_matrix(sums, classes) == expected


def test_without_a_test_sample_the_metrics_are_zero() -> None:
    sums = {"count": 0.0, **ClassScores(6, "cpu").sums()}
    assert class_metrics(sums, 6) == {"test_top5_accuracy": 0.0, "test_macro_f1": 0.0}
