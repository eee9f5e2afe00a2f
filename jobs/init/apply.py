"""Gives a model its initial weights, from the seed and the names of its layers alone."""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from jobs.init.lsuv import unit_variance_
from jobs.init.matrices import Weights, layers_of
from jobs.init.residual import residual_ends
from jobs.init.weights import load_weights
from jobs.spec.init import InitSpec, LayerInit
from jobs.spec.job_spec import JobSpec
from jobs.workloads.base import Workload
from jobs.workloads.errors import WorkloadError

_LSUV_SAMPLES = 64


class InitError(WorkloadError):
    """The model cannot be initialized this way; the text is one line with the reason."""


def build_initialized(spec: JobSpec, workload: Workload) -> nn.Module:
    """The workload's model on the CPU, from ``model.weights`` or ``model.init``; the same on every worker.

    Raises:
        DataError: the weights cannot be read, or do not fit.
        InitError: ``model.init`` asks for something that this model has not.
        WorkloadError: it is no model.
    """
    model = workload.build_model()
    if not isinstance(model, nn.Module):
        name, found = f"{type(workload).__module__}:{type(workload).__qualname__}", type(model).__name__
        raise WorkloadError(f"workload {name}: build_model() must return a torch.nn.Module, not a {found}")
    samples = np.random.default_rng(spec.seed).permutation(workload.n_train)[:_LSUV_SAMPLES]

    def forward() -> None:
        workload.loss(model, workload.train_batch(samples, 0, torch.device("cpu")))

    initialize(model, spec.model.initialization, seed=spec.seed, forward=forward)
    if spec.model.weights is not None:
        load_weights(model, spec.model.weights, strict=spec.model.weights_strict)
    return model


def initialize(model: nn.Module, spec: InitSpec, *, seed: int, forward: Callable[[], None]) -> None:
    """Initializes a model in place; the global random number generators stay untouched.

    A layer's weights depend on the seed and on its name: another layer more or less changes none of them.

    Args:
        model: on the CPU.
        spec: the scheme, what becomes of residual branches, exceptions by name.
        seed: of all draws.
        forward: runs a training batch through the model; called for ``lsuv`` only.

    Raises:
        InitError: a pattern matches no layer, or the model has no residual branch that could be set.
    """
    layers = list(layers_of(model))
    _check_patterns(spec, layers)
    for layer in layers:
        _draw(layer, _exception(spec, layer.name) or spec, seed)
    if spec.scheme == "lsuv":
        own = [layer for layer in layers if _exception(spec, layer.name) is None]
        unit_variance_(model, own, forward)
    if spec.residual != "keep":
        _residual(model, spec.residual)


def _residual(model: nn.Module, what: str) -> None:
    ends = residual_ends(model)
    if not ends:
        raise InitError(
            f"model.init.residual = {what}: {type(model).__name__} has no residual branch that is known; "
            "leave it out, or name the last layers in an attribute residual_ends of the block"
        )
    for tensor in (own.data for _, end in ends for own in end.parameters(recurse=False)):
        if what == "zero":
            tensor.zero_()
        else:
            tensor.mul_(len(ends) ** -0.5)


def _check_patterns(spec: InitSpec, layers: list[Weights]) -> None:
    names = [layer.name for layer in layers]
    for index, rule in enumerate(spec.layers):
        if not fnmatch.filter(names, rule.match):
            raise InitError(
                f'model.init.layers[{index}].match = "{rule.match}": matches none of the layers '
                f"{', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
            )


def _exception(spec: InitSpec, name: str) -> LayerInit | None:
    return next((rule for rule in spec.layers if fnmatch.fnmatchcase(name, rule.match)), None)


def _draw(layer: Weights, rule: InitSpec | LayerInit, seed: int) -> None:
    if rule.scheme == "default" or (layer.is_embedding and rule.scheme != "truncated_normal"):
        return  # a table of vectors has no fan-in
    for index, matrix in enumerate(layer.matrices):
        generator = torch.Generator().manual_seed(_seed(seed, f"{layer.name}#{index}"))
        _SCHEMES[rule.scheme](matrix, rule.std, generator)
        matrix.mul_(rule.gain)
    for bias in layer.biases:
        bias.zero_()


def _seed(seed: int, name: str) -> int:
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1, np.uint64)[0])


def _orthogonal(weight: Tensor, _: float, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(weight, generator=generator)


_SCHEMES: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    # He et al., "Delving Deep into Rectifiers" (2015), section 2.2
    "kaiming": lambda w, _, draw: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=draw),
    # Glorot and Bengio, "Understanding the difficulty ..." (2010), section 4.2.1
    "xavier": lambda w, _, draw: nn.init.xavier_normal_(w, generator=draw),
    "orthogonal": _orthogonal,  # Saxe et al., "Exact solutions to the nonlinear dynamics ..." (2014)
    "truncated_normal": lambda w, std, draw: nn.init.trunc_normal_(
        w, std=std, a=-2 * std, b=2 * std, generator=draw
    ),
    "lsuv": _orthogonal,
}
