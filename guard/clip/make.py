"""From a kind of clipping to its clipper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor
from torch.optim import Optimizer

from guard.clip.adagc import AdaGcClipper
from guard.clip.adaptive import AutoClipper, PercentileClipper, ZClipper
from guard.clip.agc import AgcClipper
from guard.clip.base import Clipper
from guard.clip.fixed import GroupClipper, NormClipper, ValueClipper
from guard.config import ClipConfig
from guard.errors import UnsupportedGradient
from guard.observe.shards import Shards


def make_clipper(
    config: ClipConfig,
    parameters: Sequence[Tensor],
    optimizer: Optimizer | None = None,
    shards: Shards | None = None,
) -> Clipper:
    """The clipper of ``config.kind``.

    Args:
        parameters: those whose gradients are clipped, in the order of ``Observation.layer_norms``.
        optimizer: whose groups the kind ``group`` clips one by one; without it all parameters are one group.
        shards: how they are divided over the ranks, where that is not seen from the parameters.

    Raises:
        UnsupportedGradient: the kind cannot be right for sharded or complex parameters.
    """
    real_only = config.kind in ("value", "agc") or config.norm_type != 2
    if real_only and any(parameter.is_complex() for parameter in parameters):
        raise UnsupportedGradient(
            f"clip kind {config.kind} (norm_type {config.norm_type:g}) means nothing for complex parameters: "
            "set clip kind to auto, adagc, or norm with norm_type 2"
        )
    makers: dict[str, Callable[[ClipConfig, Sequence[Tensor]], Clipper]] = {
        "off": Clipper,
        "auto": AutoClipper,
        "norm": NormClipper,
        "value": ValueClipper,
        "group": partial(GroupClipper, optimizer=optimizer),
        "agc": AgcClipper,
        "autoclip": PercentileClipper,
        "zclip": ZClipper,
        "adagc": AdaGcClipper,
    }
    clipper = makers[config.kind](config, parameters)
    if shards is not None:
        clipper.follow(parameters, range(len(parameters)), shards)
    return clipper
