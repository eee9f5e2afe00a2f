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
        torch.compile(lambda values: values.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0] if lines else type(error).__name__  # the first line that the compiler wrote
        raise JobError(
            f"train.compile: torch.compile does not work here: {why}; "
            "install a C++ compiler (CPU) or Triton (GPU), or omit train.compile"
        ) from error
    model.forward = torch.compile(model.forward)
