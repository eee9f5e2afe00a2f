"""What the host will read of a device, copied while it is already in the next step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guard.observe.norms import widest
from guard.types import Floats


class HostCopy:
    """Copies of tensors that are on their way to pinned memory of the host, as floating-point numbers.

    Args:
        tensors: all are read from the device of the first, in one copy.
    """

    @torch.no_grad()
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        device = tensors[0].device
        dtype = widest(device)
        self._sizes = [tensor.numel() for tensor in tensors]
        values = torch.cat([tensor.to(device, dtype, non_blocking=True).flatten() for tensor in tensors])
        self._arrived: torch.cuda.Event | None = None
        self._host = values
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(device))

    def read(self) -> list[Floats]:
        """Waits until they have arrived; each is flat."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return np.split(self._host.numpy(), np.cumsum(self._sizes)[:-1])
