"""What a batch of training data looks like to the model, and what cannot be right with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jobs.workloads.errors import WorkloadError

if TYPE_CHECKING:
    from jobs.workloads.base import Workload

_FEWEST = 8
"""With fewer samples, equal labels are chance."""
_VALUES = 5
_CLASSES = 5
_UNEVEN = 20
"""The largest class has N times as many samples as the smallest."""


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of a batch.

    Attributes:
        name: its place in the batch: ``1``, or ``image``.
        shape: samples first.
        dtype: without ``torch.``.
        low, high, mean, std: of its values; nan where it has none.
        values: of a row of whole numbers the most frequent ones, each with its count.
    """

    name: str
    shape: list[int]
    dtype: str
    low: float
    high: float
    mean: float
    std: float
    values: dict[str, int]

    def line(self) -> str:
        """All of it in one line."""
        size = "x".join(map(str, self.shape)) or "one number"
        figures = f"{self.low:.4g} to {self.high:.4g}, mean {self.mean:.4g}, std {self.std:.4g}"
        counts = ", ".join(f"{count} of {value}" for value, count in self.values.items())
        return f"{self.name}: {size} {self.dtype}, {counts or figures}"


@dataclass(frozen=True, slots=True)
class DataView:
    """A batch, and the whole training set as far as the workload knows it.

    Attributes:
        tensors: of the batch.
        facts: lines on the training set, such as the sizes of its classes.
        problems: what cannot be right, each a line with what to look at; empty where nothing is known.
    """

    tensors: list[TensorView]
    facts: list[str]
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def look_at(workload: Workload, batch: Any) -> DataView:
    """The view of a batch of ``workload.train_batch``; the batch is unchanged.

    A workload may add to it: ``class_counts``, the number of training samples by the name of their class, and
    ``describe(batch) -> list[str]``, lines such as tokens and their text.
    """
    tensors = list(_tensors(batch))
    counts: Mapping[str, int] = getattr(workload, "class_counts", {})
    if not isinstance(counts, Mapping):
        kind = type(counts).__name__
        raise WorkloadError(f"class_counts must be a dict, samples by the name of their class, not a {kind}")
    describe = getattr(workload, "describe", None)
    facts = [*_balance(counts), *(describe(batch) if callable(describe) else ())]
    problems = [problem for name, tensor in tensors for problem in _problems(name, tensor)]
    if len([count for count in counts.values() if count]) == 1:
        problems.append(f"all training samples are of one class, {next(k for k, v in counts.items() if v)}")
    return DataView([_view(name, tensor) for name, tensor in tensors], facts, problems)


def _tensors(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield name or "batch", batch.detach()
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(batch, list | tuple):
        for index, value in enumerate(batch):
            yield from _tensors(value, f"{name}[{index}]" if name else f"batch[{index}]")


def _view(name: str, tensor: Tensor) -> TensorView:
    values, known = tensor.double().flatten(), tensor.numel() > 0
    whole = not (tensor.is_floating_point() or tensor.is_complex()) and tensor.ndim == 1
    return TensorView(
        name,
        list(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        values.min().item() if known else math.nan,
        values.max().item() if known else math.nan,
        values.mean().item() if known else math.nan,
        values.std(correction=0).item() if known else math.nan,
        {str(v): n for v, n in Counter(tensor.tolist()).most_common(_VALUES)} if whole else {},
    )


def _problems(name: str, tensor: Tensor) -> Iterator[str]:
    if tensor.ndim == 0 or len(tensor) < 2 or tensor.is_complex():
        return
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        yield f"{name} has NaN or infinity in it"
    elif tensor.ndim == 1:
        if len(tensor) >= _FEWEST and bool((tensor == tensor[0]).all()):
            yield f"{name}: all {len(tensor)} samples have the same value, {tensor[0].item():g}"
    elif tensor[0].numel() > 1:
        if _is_constant(tensor):
            yield f"{name}: every sample is constant, such as an image of one colour"
        elif bool((tensor == tensor[:1]).all()):
            yield f"{name}: all {len(tensor)} samples are the same"


def _is_constant(tensor: Tensor) -> bool:
    """Whether each sample has one value; of images, each channel, which are normalized differently."""
    places = ((2, 3), (1, 2)) if tensor.ndim == 4 else (tuple(range(1, tensor.ndim)),)
    return any(bool((tensor.amax(dims) == tensor.amin(dims)).all()) for dims in places)


def _balance(counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    total, (most, least) = sum(counts.values()), (ordered[0], ordered[-1])
    chosen = ordered if len(ordered) <= _CLASSES else [*ordered[: _CLASSES - 1], least]
    names = ", ".join(f"{name} {count}" for name, count in chosen)
    uneven = most[1] > _UNEVEN * max(1, least[1])
    note = f"; a model that always answers {most[0]} is right in {most[1] / total:.0%}" if uneven else ""
    return [f"{len(counts)} classes, {total} samples: {names}{note}"]
