"""The first weights of a divided model: those of the whole one, which only rank 0 ever holds."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from guard.observe.shards import is_distributed, local
from jobs.checkpoints.shards import own_part

log = logging.getLogger(__name__)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The model without memory for its weights; built as usual where its code cannot do without."""
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:  # noqa: BLE001 - of the user's code, whatever it is
        log.info("the model is built whole on each worker first: %s", error)
        return build()


@torch.no_grad()
def fill(model: nn.Module, whole: nn.Module | None, device: torch.device, *, offloaded: bool) -> None:
    """Gives each rank its part of rank 0's weights and buffers, one tensor at a time. Collective.

    Args:
        model: divided; on the meta device, or with any values.
        whole: on rank 0 the initialized model on the CPU.
        device: on which the collectives run.
        offloaded: whether the weights stay in main memory.
    """
    tied = _tied(model)
    model.to_empty(device="cpu" if offloaded else device)
    for (first, name), *others in tied:
        for module, other in others:
            setattr(module, other, getattr(first, name))
    kept = {} if whole is None else {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    for name, tensor in model.named_parameters():
        _receive(tensor, kept.get(name), device)
    for name, buffer in model.named_buffers():
        buffer.data = buffer.to(device)
        _receive(buffer, kept.get(name), device)


def _tied(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The places of each parameter that has several; ``to_empty`` would make one for each place."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name))
    return [found for found in places.values() if len(found) > 1]


def _receive(tensor: Tensor, whole: Tensor | None, device: torch.device) -> None:
    first = torch.empty(tensor.shape, dtype=tensor.dtype) if whole is None else whole.detach()
    value = first.to(device).contiguous()
    # Broadcast of one whole tensor from rank 0; all ranks have the same names in the same order.
    dist.broadcast(value, src=0)
    part = own_part(value, tensor) if is_distributed(tensor) else value
    local(tensor).copy_(part)
