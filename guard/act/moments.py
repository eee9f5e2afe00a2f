"""What an outlier that is applied would leave in the optimizer: taken out again after its step.

A finite spike that is clipped still fills one layer's second moment, where that layer is small beside the
others, and makes its updates small for dozens of steps (Huang et al. 2025, "SPAM", section 3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from guard.act.stores import state_of

log = logging.getLogger("guard")

_TORCH = (
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"),
    *("sum", "acc_delta", "row_var", "col_var", "variance", "prev", "step_size"),
)
_OTHERS = (
    *("momentum", "m", "v", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_fast", "exp_avg_slow"),
    *("exp_avg_diff", "neg_pre_grad", "hessian", "state1", "state2", "absmax1", "absmax2"),
)
"""Of transformers' Adafactor, AdEMAMix, Adan, Sophia and bitsandbytes."""
_MOMENTS = frozenset(_TORCH + _OTHERS)
"""Anything else in a state may be weights or counters, and stays."""
_reported: WeakSet[Optimizer] = WeakSet()


def kept_moments(optimizer: Optimizer, step: Callable[[], None]) -> None:
    """Runs one ``step``: the optimizer makes its update, and its moments are as before it.

    A parameter that had no state before has none after.
    """
    states = state_of(optimizer)
    before = {parameter: _moments(state) for parameter, state in states.items() if state}
    step()
    for parameter in list(states):
        if parameter in before:
            _restore(states[parameter], before[parameter])
        else:
            del states[parameter]
    _report_unknown(optimizer, before.values())


def _moments(state: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: value for name, value in state.items() if name in _MOMENTS}
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in named.items()}


@torch.no_grad()
def _restore(state: dict[str, Any], before: Mapping[str, Any]) -> None:
    """In place where the tensor is there; one that the step has added is removed."""
    for name in [name for name in state if name in _MOMENTS]:
        known, now = before.get(name), state[name]
        if name not in before:
            del state[name]
        elif isinstance(known, Tensor) and isinstance(now, Tensor) and now.shape == known.shape:
            now.copy_(known)
        else:
            state[name] = known


def _report_unknown(optimizer: Optimizer, found: Any) -> None:
    if any(found) or optimizer in _reported:
        return
    _reported.add(optimizer)
    states = state_of(optimizer).values()
    names = sorted({n for state in states for n, v in state.items() if isinstance(v, Tensor) and v.ndim})
    if names:
        log.warning(
            "an outlier was applied and may stay in the moments of %s: nothing is known of %s in its state",
            type(optimizer).__name__,
            ", ".join(names),
        )
