"""Parameters of which each rank holds a part: DTensors (FSDP2, tensor parallel), and plain ones so declared.

A sharded tensor is a ``DTensor``. What is done element by element (copying, scaling, clamping) is done on
the local shard; what is measured on a whole tensor is measured on the shards and put together by one small
collective over the ranks that share it, never over the replicas of an HSDP mesh.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from guard.errors import UnsupportedGradient
from guard.types import Floats

Declared = Mapping[str, dist.ProcessGroup]
"""By name pattern, the ranks over which plain parameters are divided."""
_PLAIN = frozenset({Tensor, nn.Parameter})
_VERSION = attrgetter("_version")


def is_distributed(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a ``DTensor``. Where its module, slow to import, was not imported, none is."""
    if type(tensor) in _PLAIN:  # hundreds of calls a step
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of ``tensor``, sharing its memory, without a graph; a plain tensor is its own."""
    if not is_distributed(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined]


def locals_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, for the foreach functions, which take no mixture of kinds."""
    return [local(tensor) for tensor in tensors]


def version(tensor: Tensor) -> int:
    """Grows whenever ``tensor`` or this rank's part of it is written to; 0 where torch does not count that,
    for a tensor made under ``inference_mode``."""
    if tensor.is_inference():
        return 0
    if type(tensor) in _PLAIN or not is_distributed(tensor):
        return tensor._version
    return tensor._version + local(tensor)._version


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """``version`` of each."""
    if _PLAIN.issuperset(map(type, tensors)):
        with suppress(RuntimeError):  # one was made under ``inference_mode``
            return list(map(_VERSION, tensors))
    return list(map(version, tensors))


def layout(tensor: Any) -> Any:
    """What ``laid_out`` needs to make a tensor like ``tensor`` of a new local part; None if it is plain."""
    if not is_distributed(tensor):
        return None
    return tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()


def laid_out(part: Tensor, layout: Any) -> Tensor:
    """The tensor of which ``part`` is this rank's part."""
    if layout is None:
        return part
    mesh, placements, shape, stride = layout
    made: Tensor = sys.modules["torch.distributed.tensor"].DTensor.from_local(
        part, mesh, placements, run_check=False, shape=shape, stride=stride
    )
    return made


class Shards:
    """Puts what the ranks measured on their shards of the parameters together.

    Use ``Shards.of``. Every method is collective: all ranks call it in the same order.
    """

    def __init__(
        self, names: Sequence[str], parameters: Sequence[Tensor], declared: Declared | None = None
    ) -> None:
        self._groups: list[tuple[dist.ProcessGroup, torch.device, list[int]]] = []
        known: dict[tuple[int, ...], list[int]] = {}
        for i, parameter in enumerate(parameters):
            for group in declared_groups(declared, names[i]) or _sharing(parameter, names[i]):
                ranks = tuple(sorted(dist.get_process_group_ranks(group)))
                if ranks not in known:
                    known[ranks] = []
                    self._groups.append((group, _device(parameter), known[ranks]))
                known[ranks].append(i)

    @property
    def divided(self) -> set[int]:
        """The indices of the parameters of which no rank holds the whole."""
        return {i for _, _, members in self._groups for i in members}

    @classmethod
    def of(
        cls,
        parameters: Sequence[Tensor],
        names: Sequence[str] | None = None,
        declared: Declared | None = None,
    ) -> Shards | None:
        """None where every parameter is whole on each rank: then nothing of this costs anything.

        Args:
            declared: name patterns of plain parameters of which each rank of the group holds its own part.

        Raises:
            UnsupportedGradient: a parameter holds partial sums.
        """
        if not declared and not any(is_distributed(parameter) for parameter in parameters):
            return None
        return cls(names or [f"parameter {i}" for i in range(len(parameters))], parameters, declared)

    def sum(self, values: Floats) -> Floats:
        """The sums over the shards of one value a parameter, float64 [parameters], equal on their ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def p_norms(self, norms: Floats, p: float) -> Floats:
        """The p-norms of whole parameters from those of their shards; scaled, so that no power overflows."""
        highest = self._reduce(norms, dist.ReduceOp.MAX)
        if p == np.inf:
            return highest
        scales = np.where(highest > 0, highest, 1.0)
        with np.errstate(invalid="ignore"):
            return scales * self.sum((norms / scales) ** p) ** (1 / p)

    @staticmethod
    def redistribute(parameters: Sequence[Tensor]) -> None:
        """Lays each gradient out as its parameter is; partial sums, as of sequence-parallel norms, are added.

        Collective over the ranks of such a gradient's mesh, which all have it laid out alike.
        """
        for parameter in filter(_laid_out_otherwise, parameters):
            _redistribute(parameter)

    def _reduce(self, values: Floats, op: Any) -> Floats:
        whole = values.copy()
        for group, device, members in self._groups:
            part = torch.from_numpy(whole[members]).to(device)
            # SUM or MAX of one float64 a parameter. Every rank of the group reaches it, in the same order of
            # groups: callers are reached on agreed numbers only. Each rank waits for the slowest.
            dist.all_reduce(part, op=op, group=group)
            whole[members] = part.cpu().numpy()
        return whole


def _sharing(parameter: Any, name: str) -> list[dist.ProcessGroup]:
    """The groups, one for each mesh dimension that splits it, over which ``parameter`` is sharded."""
    if not is_distributed(parameter):
        return []
    mesh = parameter.device_mesh
    if any(placement.is_partial() for placement in parameter.placements):
        raise UnsupportedGradient(f"{name} holds partial sums: redistribute it to Replicate() or Shard()")
    split = [d for d, placement in enumerate(parameter.placements) if not placement.is_replicate()]
    return [mesh.get_group(d) for d in split if mesh.size(d) > 1]


def _device(parameter: Any) -> torch.device:
    """Where the collectives of the parameter's mesh run, wherever the parameter itself is offloaded to."""
    if not is_distributed(parameter):
        return parameter.device
    kind = parameter.device_mesh.device_type
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(kind, torch.accelerator.current_device_index())


def laid_out_otherwise(parameters: Sequence[Tensor]) -> bool:
    """Whether a gradient has other placements than its parameter."""
    return any(map(_laid_out_otherwise, parameters))


def _redistribute(parameter: Any) -> None:
    # Reduce-scatter or all-reduce of one gradient. Every rank of the mesh reaches it: settings, and so the
    # placements, were compared before.
    parameter.grad = parameter.grad.redistribute(parameter.device_mesh, parameter.placements)


def _laid_out_otherwise(parameter: Any) -> bool:
    gradient = parameter.grad
    if gradient is None or type(gradient) is Tensor or not is_distributed(gradient):
        return False
    return is_distributed(parameter) and bool(gradient.placements != parameter.placements)


def declared_groups(declared: Declared | None, name: str) -> list[dist.ProcessGroup]:
    """The group over whose ranks the plain parameter of this name is divided; of several, the first."""
    return [group for pattern, group in (declared or {}).items() if fnmatchcase(name, pattern)][:1]
