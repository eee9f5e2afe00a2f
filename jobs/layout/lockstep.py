"""Ranks that share a model evaluate together: each forward pass needs all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Lockstep:
    """Before each forward pass the ranks agree whether one was asked to stop; a rank that has nothing left
    to compute takes part until all are done.

    Args:
        model: divided over the ranks.
        device: of the collectives.
        stop: whether this rank was asked to stop.
        spare: a forward pass of which nobody needs the result.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, stop: Callable[[], bool], spare: Callable[[], None]
    ) -> None:
        self._model, self._device, self._stop, self._spare = model, device, stop, spare
        self._done = False
        self.in_forward = False
        """Whether a forward pass of this rank has begun and not ended: the others wait in it."""

    @contextmanager
    def joined(self, stopped: type[BaseException]) -> Iterator[None]:
        """Around the forward passes of this rank; all ranks raise ``stopped`` at the same one. Collective.

        An error between two of them stops the other ranks.
        """

        def agree(*_: Any) -> None:
            if not self._done and self._ask()[1]:
                raise stopped
            self.in_forward = True

        def leave(*_: Any) -> None:
            self.in_forward = False

        handles = [
            self._model.register_forward_pre_hook(agree, prepend=True),
            self._model.register_forward_hook(leave),
        ]
        try:
            yield
            self._done = True
            self._accompany(stopped)
        except Exception:
            if not self.in_forward:
                self._ask(failed=True)
            raise
        finally:
            for handle in handles:
                handle.remove()

    def _accompany(self, stopped: type[BaseException]) -> None:
        while True:
            busy, stop = self._ask()
            if stop:
                raise stopped
            if not busy:
                return
            self._spare()

    def _ask(self, *, failed: bool = False) -> tuple[int, int]:
        """How many ranks have a forward pass left, and how many want to stop."""
        votes = torch.tensor(
            [not self._done, failed or self._stop()], dtype=torch.float32, device=self._device
        )
        # Sum over all ranks: each is before a forward pass of its own, or accompanies those of others.
        dist.all_reduce(votes)
        busy, stop = votes.tolist()
        return int(busy), int(stop)
