"""One small model under the layouts that people use, each beside the same training in one process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

WORDS, WIDTH, BATCH, LENGTH, EXPERTS = 32, 16, 8, 8, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.down(torch.relu(self.up(self.norm(inputs))))
        return outputs * 1.0  # FSDP2 warns of views


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.blocks(self.embed(tokens))
        return outputs


class Uneven(Net):
    """17 rows over 4 ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(WIDTH, 17), nn.Tanh(), nn.Linear(17, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.head(super().forward(tokens))
        return outputs * 1.0


class Attention(Net):
    """Every position sees all others, whichever rank has them."""

    def forward(self, tokens: Tensor, gather: Callable[[Tensor], Tensor] = lambda part: part) -> Tensor:
        queries = self.embed(tokens)
        keys = gather(queries)
        mixed = torch.softmax(queries @ keys.transpose(1, 2) / WIDTH**0.5, -1) @ keys
        outputs: Tensor = self.blocks(mixed)
        return outputs


class Experts(Net):
    """Word ``i`` of a sentence goes to expert ``i``. ``part``: of them this rank has these."""

    def __init__(self, part: slice = slice(None)) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH)[part].clone() / 4)

    def forward(self, tokens: Tensor) -> Tensor:
        words = super().forward(tokens).transpose(0, 1)
        return self.through(words).transpose(0, 1)

    def through(self, words: Tensor) -> Tensor:
        if isinstance(self.experts, DTensor):
            mesh = self.experts.device_mesh
            whole = DTensor.from_local(words, mesh, [Replicate()], run_check=False)
            return torch.bmm(whole, self.experts).full_tensor()  # type: ignore[no-any-return,attr-defined]
        if len(self.experts) < EXPERTS:
            return _GatherSliced.apply(torch.bmm(_SliceGathered.apply(words), self.experts))  # type: ignore
        return torch.bmm(words, self.experts)


class _SliceGathered(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, whole: Tensor) -> Tensor:
        return whole.chunk(dist.get_world_size())[dist.get_rank()].contiguous()

    @staticmethod
    def backward(_: Any, part: Tensor) -> Tensor:  # type: ignore[override]
        return _gathered(part)


class _GatherSliced(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        return _gathered(part)

    @staticmethod
    def backward(_: Any, whole: Tensor) -> Tensor:  # type: ignore[override]
        return whole.chunk(dist.get_world_size())[dist.get_rank()].contiguous()


class _GatherSummed(torch.autograd.Function):
    """Positions of all ranks [batch, positions, width]; each rank's loss is another one."""

    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        return _gathered(part.transpose(0, 1)).transpose(0, 1)

    @staticmethod
    def backward(_: Any, whole: Tensor) -> Tensor:  # type: ignore[override]
        summed = whole.contiguous()
        dist.all_reduce(summed)
        return summed.chunk(dist.get_world_size(), 1)[dist.get_rank()]


def _gathered(part: Tensor) -> Tensor:
    parts = [
        torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


@dataclass
class Layout:
    """A model on this rank, its optimizer, and its loss of a batch (tokens, targets)."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Optimizer
    poisons_shard: bool = False
    """Whether one rank's gradient holds elements that no other rank's does."""
    arguments: dict[str, Any] = field(default_factory=dict)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(WORDS, (BATCH, LENGTH), generator=generator)
    return tokens, torch.randn(BATCH, LENGTH, WIDTH, generator=generator)


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def single(model: nn.Module) -> Layout:
    return Layout(model, lambda x, y: (model(x) - y).square().mean(), sgd(model))


def _own(values: Tensor, dim: int = 0) -> Tensor:
    return values.chunk(dist.get_world_size(), dim)[dist.get_rank()]


def _data_parallel(model: nn.Module) -> Layout:
    return Layout(model, lambda x, y: (model(_own(x)) - _own(y)).square().mean(), sgd(model))


def ddp() -> Layout:
    return _data_parallel(DistributedDataParallel(made(Net)))


def zero() -> Layout:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own module uses torch.jit.script
        from torch.distributed.optim import ZeroRedundancyOptimizer
    layout = ddp()
    settings = {"lr": 0.1, "momentum": 0.9, "foreach": False}
    layout.optimizer = ZeroRedundancyOptimizer(
        layout.model.parameters(), optimizer_class=torch.optim.SGD, **settings
    )
    return layout


def _sharded(model: Any, mesh: DeviceMesh) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model  # type: ignore[no-any-return]


def fsdp2() -> Layout:
    layout = _data_parallel(_sharded(made(Uneven), init_device_mesh("cpu", (4,))))
    layout.poisons_shard = True
    return layout


def hsdp() -> Layout:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return _data_parallel(_sharded(made(Net), mesh))


def _tensor_parallel(model: nn.Module, mesh: DeviceMesh, *, sequence: bool) -> nn.Module:
    between = Shard(1) if sequence else Replicate()
    plan: dict[str, Any] = {"embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=between)}
    for i, end in ((0, between), (1, Replicate())):
        if sequence:
            plan[f"blocks.{i}.norm"] = SequenceParallel()
        plan[f"blocks.{i}.up"] = ColwiseParallel(input_layouts=between)
        plan[f"blocks.{i}.down"] = RowwiseParallel(
            output_layouts=end, use_local_output=not sequence or i == 1
        )
    return parallelize_module(model, mesh, plan)


def tp() -> Layout:
    model = _tensor_parallel(made(Net), init_device_mesh("cpu", (4,)), sequence=False)
    return Layout(model, lambda x, y: (model(x) - y).square().mean(), sgd(model), poisons_shard=True)


def tp_sp() -> Layout:
    model = _tensor_parallel(made(Net), init_device_mesh("cpu", (4,)), sequence=True)
    return Layout(model, lambda x, y: (model(x) - y).square().mean(), sgd(model), poisons_shard=True)


def fsdp2_tp() -> Layout:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = _sharded(_tensor_parallel(made(Net), mesh["tensor"], sequence=False), mesh["data"])
    half = mesh.get_local_rank("data")

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (model(x.chunk(2)[half]) - y.chunk(2)[half]).square().mean()

    return Layout(model, loss, sgd(model), poisons_shard=True)


def experts_dtensor() -> Layout:
    model: Any = made(Experts)
    whole = model.experts.detach()
    model.experts = nn.Parameter(distribute_tensor(whole, init_device_mesh("cpu", (4,)), [Shard(0)]))
    return Layout(model, lambda x, y: (model(x) - y).square().mean(), sgd(model), poisons_shard=True)


def experts_plain() -> Layout:
    each = EXPERTS // dist.get_world_size()
    first = dist.get_rank() * each
    model = made(lambda: Experts(slice(first, first + each)))
    declared = {"shards": {"experts*": dist.group.WORLD}}
    loss = lambda x, y: (model(x) - y).square().mean()  # noqa: E731
    return Layout(model, loss, sgd(model), poisons_shard=True, arguments=declared)


def context() -> Layout:
    model = DistributedDataParallel(made(Attention))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (model(_own(x, 1), _GatherSummed.apply) - _own(y, 1)).square().mean()

    return Layout(model, loss, sgd(model))


LAYOUTS: dict[str, tuple[Callable[[], Layout], Callable[[], nn.Module]]] = {
    "DDP": (ddp, Net),
    "DDP, ZeRO": (zero, Net),
    "FSDP2": (fsdp2, Uneven),
    "HSDP": (hsdp, Net),
    "TP": (tp, Net),
    "TP + SP": (tp_sp, Net),
    "FSDP2 x TP": (fsdp2_tp, Net),
    "experts as DTensor": (experts_dtensor, Experts),
    "experts as plain tensors": (experts_plain, Experts),
    "context parallel": (context, Attention),
}
"""Each layout on four ranks, and the same model in one process."""
