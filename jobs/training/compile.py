"""``train.compile``: the forward pass through ``torch.compile``, or one line on why it does not work."""

from __future__ import annotations

import torch
from torch import nn

from jobs.errors import JobError


def compile_forward(model: nn.Module, device: torch.device) -> None:
    """Compiles the forward pass of a bare module in place, at its first call.

    Hooks stay outside of the compiled code; parameter names do not change.

    Raises:
        JobError: ``torch.compile`` does not work on this machine; tried on one operation.
    """
    try:
        torch.compile(_try_out)(torch.zeros(8, device=device))
    except Exception as error:
        raise JobError(
            f"train.compile: torch.compile does not work here: {_reason(error)}; "
            "install a C++ compiler (CPU) or Triton (GPU), or omit train.compile"
        ) from error
    model.forward = torch.compile(model.forward)


def _try_out(values: torch.Tensor) -> torch.Tensor:
    return values.sin() + 1


def _reason(error: Exception) -> str:
    """The first line that the compiler wrote."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
