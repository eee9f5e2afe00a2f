"""The section ``regularize`` of a spec: penalties, dropout and noise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from guard.config import Config

Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class RegularizeSpec(Config):
    """Regularizers; all are off by default. Penalties on weights are scaled by the learning rate."""

    l1: Strength = 0.0
    """Proximal L1 after each applied step: shrinks every selected weight by ``l1 * lr`` and stops at zero, so
    that weights become exactly zero. With ``l2`` it is the elastic net."""

    l2: Strength = 0.0
    """Proximal L2 after each applied step: divides every selected weight by ``1 + l2 * lr``. Independent of
    ``optimizer.weight_decay``."""

    orthogonal: Strength = 0.0
    """Penalty added to the loss: this times the sum over the selected matrices of ||W W^T - I||^2
    (Frobenius)."""

    gradient_noise: Strength = 0.0
    """Variance of Gaussian noise on the gradients at step 0; it falls as ``(1 + step) ** -0.55``."""

    label_smoothing: Probability = 0.0
    """Share of each label's weight that is spread over all classes. Built-in workloads only."""

    z_loss: Strength = 0.0
    """Penalty added to the loss: this times the mean of log(Z)^2, Z the softmax's denominator; 1e-4 is common
    for language models. Built-in workloads only."""

    dropout: Probability | None = None
    """Probability of all dropout layers; a model without any gets one before its last linear layer."""

    stochastic_depth: Probability | None = None
    """Probability of dropping the last residual branch; it falls linearly to 0 at the first branch."""

    weight_decay_on: Literal["auto", "all", "weights"] = "auto"
    """What ``optimizer.weight_decay`` acts on: ``all`` parameters, or only ``weights``, without norms and
    biases. ``auto``: ``weights`` for adamw, else ``all``."""

    parameters: tuple[str, ...] = ()
    """Names of the parameters that l1, l2 and orthogonal act on, with * and ? as in file names. Default: all
    with two or more dimensions."""

    warmup_steps: NonNegativeInt = 0
    """Steps over which l1, l2 and orthogonal rise from zero to their strength."""

    fade: Literal["none", "linear", "cosine"] = "none"
    """How l1, l2 and orthogonal fall to zero by the end of the run."""
