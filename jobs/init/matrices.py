"""Which tensors of a module are weight matrices, and which are their biases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The weights of one layer.

    Attributes:
        name: of the module, as ``named_modules`` gives it.
        module: the layer.
        matrices: views of its weights, each to be drawn on its own: [out, in, ...].
        biases: its biases.
    """

    name: str
    module: nn.Module
    matrices: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @property
    def is_embedding(self) -> bool:
        """Whether this is a table of vectors, whose fan-in means nothing."""
        return isinstance(self.module, nn.Embedding)


def layers_of(model: nn.Module) -> Iterator[Weights]:
    """Linear, convolutional, recurrent, attention and embedding layers; a shared weight only once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        matrices, biases = _weights(module)
        fresh = tuple(m for m in matrices if m.data_ptr() not in seen)
        seen.update(m.data_ptr() for m in fresh)
        if fresh:
            yield Weights(name, module, fresh, biases)


def _weights(module: nn.Module) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module)
    if isinstance(module, nn.RNNBase):
        return _recurrent(module)
    if isinstance(module, nn.Linear | _ConvNd):
        return (module.weight.data,), () if module.bias is None else (module.bias.data,)
    if isinstance(module, nn.Embedding):
        return (module.weight.data,), ()
    return (), ()


def _attention(module: nn.MultiheadAttention) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Queries, keys and values share one tensor, but each is a separate matrix."""
    biases = () if module.in_proj_bias is None else (module.in_proj_bias.data,)
    if module.in_proj_weight is not None:
        return module.in_proj_weight.data.chunk(3), biases
    separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    return tuple(weight.data for weight in separate), biases


def _recurrent(module: nn.RNNBase) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Each gate is a separate matrix."""
    gates = _GATES[module.mode.partition("_")[0]]
    named = [(name, parameter.data) for name, parameter in module.named_parameters(recurse=False)]
    matrices = [gate for name, tensor in named if "weight" in name for gate in tensor.chunk(gates)]
    return tuple(matrices), tuple(tensor for name, tensor in named if "bias" in name)
