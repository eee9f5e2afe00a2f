"""What a pre-flight found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["fine", "exploding", "vanishing", "dead", "overflow", "nan"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer, at its first call in the batch; layers are listed in the order of their calls.

    Attributes:
        name: of the module.
        kind: its class.
        mean: of its output.
        std: of its output.
        rms: root mean square of its output.
        abs_max: largest magnitude in its output.
        growth: rms of the output over rms of the input.
        dead_share: units (channels, features) without output for any sample, as a share of all.
        gradient_rms: of the loss with respect to the output; nan where it has none.
        weight_norm: of its own parameters, 0 without any.
        grad_norm: gradient norm of its own parameters.
        underflow_share: gradient entries that the chosen precision would round to zero.
        finite: whether output and gradients have neither NaN nor Inf.
        matrix: whether it has a weight of two or more dimensions.
    """

    name: str
    kind: str
    mean: float
    std: float
    rms: float
    abs_max: float
    growth: float
    dead_share: float
    gradient_rms: float
    weight_norm: float
    grad_norm: float
    underflow_share: float
    finite: bool
    matrix: bool

    @property
    def relative_gradient(self) -> float:
        """Gradient norm over weight norm: how fast plain SGD would change the layer; 0 without weights."""
        return self.grad_norm / self.weight_norm if self.weight_norm else 0.0


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """The verdict and the figures behind it.

    Attributes:
        verdict: what is wrong, ``fine`` if nothing is.
        layer: the first bad layer, in the direction in which the fault spreads; None if all is fine.
        reason: the figures behind the verdict.
        suggestion: what to change in the spec; empty if all is fine.
        loss: of the batch.
        grad_norm: global.
        growth_forward: factor per layer by which activations grow, on the average over the depth.
        growth_backward: factor per layer by which gradients grow on their way back to the input.
        precision: the one whose dynamic range was compared with.
        layers: in the order of the forward pass.
    """

    verdict: Kind
    layer: str | None
    reason: str
    suggestion: str
    loss: float
    grad_norm: float
    growth_forward: float
    growth_backward: float
    precision: Precision
    layers: tuple[LayerReport, ...]

    @property
    def fine(self) -> bool:
        """Whether training may start."""
        return self.verdict == "fine"

    def line(self) -> str:
        """The verdict in one line."""
        where = f" at layer {self.layer}" if self.layer else ""
        hint = f"; {self.suggestion}" if self.suggestion else ""
        return f"pre-flight: {self.verdict}{where}: {self.reason}{hint}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a figure that is not finite is null."""
        document: dict[str, Any] = _plain(asdict(self))
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
