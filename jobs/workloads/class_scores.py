"""What a classifier's evaluation adds up, class by class: top-5 accuracy, macro F1, confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

_TOP = 5
_LARGEST_MATRIX = 32


class ClassScores:
    """Sums over test samples; they stay on their device until ``sums``.

    Args:
        classes: how many there are.
        device: of the outputs.
    """

    def __init__(self, classes: int, device: torch.device | str) -> None:
        self._classes = classes
        self._counts = torch.zeros(3, classes, dtype=torch.int64, device=device)
        size = classes * classes if classes <= _LARGEST_MATRIX else 0
        self._pairs = torch.zeros(size, dtype=torch.int64, device=device)
        self._top = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Adds a batch: outputs [N, classes], labels int64 [N]."""
        answers = outputs.argmax(1)
        for row, found in enumerate((labels, answers, labels[answers == labels])):
            self._counts[row] += torch.bincount(found, minlength=self._classes)
        if len(self._pairs):
            pairs = labels * self._classes + answers
            self._pairs += torch.bincount(pairs, minlength=len(self._pairs))
        if self._classes > _TOP:
            self._top += (outputs.topk(_TOP, dim=1).indices == labels[:, None]).sum()

    def sums(self) -> dict[str, float]:
        """Sums by name, the same names on every rank."""
        names = ("label", "answer", "hit")
        rows = zip(names, self._counts.tolist(), strict=True)
        counts = {f"{name}.{at}": float(n) for name, row in rows for at, n in enumerate(row)}
        pairs = {f"pair.{at}": float(n) for at, n in enumerate(self._pairs.tolist())}
        top = {"top": float(self._top)} if self._classes > _TOP else {}
        return {**counts, **pairs, **top}


@torch.no_grad()
def class_sums(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int, device: torch.device | str
) -> dict[str, float]:
    """Correct answers, loss, number and classes, added up with the model in evaluation mode.

    Args:
        model: which computes the outputs as the batches are read.
        batches: outputs [N, classes] and labels, int64 [N].
        classes: how many there are.
        device: of the outputs.
    """
    was_training = model.training
    model.eval()
    sums, scores = {"correct": 0.0, "loss_sum": 0.0, "count": 0.0}, ClassScores(classes, device)
    for logits, labels in batches:
        outputs = logits.float()
        sums["correct"] += (outputs.argmax(1) == labels).sum().item()
        sums["loss_sum"] += functional.cross_entropy(outputs, labels, reduction="sum").item()
        sums["count"] += len(labels)
        scores.add(outputs, labels)
    model.train(was_training)
    return {**sums, **scores.sums()}


def class_metrics(sums: Mapping[str, float], classes: int) -> dict[str, float]:
    """``test_top5_accuracy``, with more than five classes, and ``test_macro_f1``.

    The F1 of a class is 2 hits / (labels + answers); the mean is over the classes that occur in either, as in
    scikit-learn's ``f1_score(average="macro")``.
    """
    found = {"test_top5_accuracy": sums["top"] / max(1.0, sums["count"])} if "top" in sums else {}
    rows = [(sums[f"hit.{at}"], sums[f"label.{at}"] + sums[f"answer.{at}"]) for at in range(classes)]
    scores = [2 * hits / total for hits, total in rows if total]
    return {**found, "test_macro_f1": sum(scores) / max(1, len(scores))}


def confusion_matrix(sums: Mapping[str, float], classes: int) -> list[list[int]] | None:
    """A row for each class, with how often each class was the answer; None with more than 32 classes."""
    if "pair.0" not in sums:
        return None
    return [[int(sums[f"pair.{row * classes + at}"]) for at in range(classes)] for row in range(classes)]
