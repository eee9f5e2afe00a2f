"""How two checkpoints differ: which tensors, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.checkpoints.load import Content


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor that is not the same in both.

    Attributes:
        name: of the tensor, beginning with its part.
        what: ``values``, ``shape``, ``dtype``, or ``only in STEP``.
        largest: largest absolute difference of an element; None where it is undefined.
        relative: norm of the difference over the norm of the first; None likewise.
        nonfinite: elements of the two that are NaN or infinite.
    """

    name: str
    what: str
    largest: float | None = None
    relative: float | None = None
    nonfinite: tuple[int, int] = (0, 0)


def differences(first: Content, second: Content) -> list[Difference]:
    """The tensors in which two checkpoints differ, bit for bit, by name; without random number generators."""
    steps = first.manifest.step, second.manifest.step
    ours, theirs = _trained(first.tensors), _trained(second.tensors)
    names = sorted({**ours, **theirs})
    found = (_difference(name, ours.get(name), theirs.get(name), steps) for name in names)
    return [difference for difference in found if difference is not None]


def _trained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("generators.")}


def _difference(name: str, a: Tensor | None, b: Tensor | None, steps: tuple[int, int]) -> Difference | None:
    if a is None or b is None:
        return Difference(name, f"only in {steps[0] if b is None else steps[1]}")
    if a.shape != b.shape:
        return Difference(name, "shape")
    if a.dtype != b.dtype:
        return Difference(name, "dtype")
    if torch.equal(_bits(a), _bits(b)):
        return None
    left, right = a.double().flatten(), b.double().flatten()
    both = left.isfinite() & right.isfinite()
    delta, base = (left - right)[both], left[both]
    nonfinite = int((~left.isfinite()).sum()), int((~right.isfinite()).sum())
    largest = float(delta.abs().max()) if delta.numel() else None
    norm = float(base.norm())
    return Difference(name, "values", largest, float(delta.norm()) / norm if norm else None, nonfinite)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
