"""The loss of the present batch computed beside the step, which leaves no trace of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from guard.act import rng
from guard.act.untouched import untouched
from guard.parts import StepParts

log = logging.getLogger("guard")


def loss_beside(
    model: nn.Module,
    parts: StepParts,
    *,
    generators: dict[str, Any] | None = None,
    within: AbstractContextManager[Any] | None = None,
    run: Callable[[], float] | None = None,
) -> float | None:
    """This rank's, without gradients; None where the loop's own code failed.

    Args:
        generators: the random numbers to draw; those that come next where it is None.
        within: entered for the computation.
        run: computes it, where there is no closure.
    """
    try:
        with (
            torch.no_grad(),
            parts.replayer.aside(),
            untouched(model, parts.observer.parameters),
            within or nullcontext(),
        ):
            if generators is not None:
                rng.restore(generators)
            return parts.search.whole() if run is None else run()
    except Exception as error:  # noqa: BLE001 - whatever it raises: the other ranks wait
        log.debug("the closure computes no loss beside the step: %s: %s", type(error).__name__, error)
        return None
