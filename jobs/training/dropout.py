"""Sets dropout and stochastic depth of an existing model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from jobs.init.residual import residual_ends
from jobs.workloads.errors import WorkloadError

if TYPE_CHECKING:
    from jobs.spec.regularize import RegularizeSpec


def set_randomness(model: nn.Module, spec: RegularizeSpec) -> None:
    """Gives the model the dropout and the stochastic depth of the spec; parameter names do not change.

    Raises:
        WorkloadError: the model has no place for it.
    """
    if spec.dropout is not None:
        _set_dropout(model, spec.dropout)
    if spec.stochastic_depth is not None:
        _set_depth(model, spec.stochastic_depth)


def _set_dropout(model: nn.Module, share: float) -> None:
    layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    for layer in layers:
        layer.p = share
    for module in attention:
        module.dropout = share
    if layers or attention:
        return
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise WorkloadError(
            f"regularize.dropout: {type(model).__name__} has no dropout and no linear layer; omit it"
        )
    linear[-1].register_forward_pre_hook(partial(_drop_input, share))


def _drop_input(share: float, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (functional.dropout(inputs[0], share, module.training), *inputs[1:])


def _set_depth(model: nn.Module, most: float) -> None:
    """Huang et al., "Deep Networks with Stochastic Depth" (2016), section 3: linear in the depth."""
    own = [m for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    ends = [end for _, end in residual_ends(model)]
    places = own or ends
    if not places:
        raise WorkloadError(
            f"regularize.stochastic_depth: {type(model).__name__} has no residual branch that is known; "
            "omit it, or name the last layers in an attribute residual_ends of the block"
        )
    for index, place in enumerate(places):
        share = most * index / max(1, len(places) - 1)
        if own:
            place.p = share  # type: ignore[assignment]
        else:
            place.register_forward_hook(partial(_drop_branch, share))


def _drop_branch(share: float, module: nn.Module, _: Any, output: Tensor) -> Tensor:
    """Drops the branch for some samples and scales the others up, so that the mean is the same."""
    if not module.training or share == 0.0:
        return output
    shape = (output.shape[0],) + (1,) * (output.ndim - 1)
    kept = output.new_empty(shape).bernoulli_(1 - share)
    return output * kept / (1 - share)
