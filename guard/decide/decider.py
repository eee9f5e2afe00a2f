"""The verb decide: from what was observed and agreed to a verdict, a rung of the ladder and a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from guard.clip.make import make_clipper
from guard.config import ClipConfig, GuardConfig
from guard.decide.detector import SpikeDetector
from guard.decide.ladder import EscalationLadder
from guard.decide.rank_exclusion import RankExclusion
from guard.decide.vanishing import FADED, VanishingByDepth
from guard.types import OK, Agreed, Correction, Decision, Evidence, Movement, Observation, Verdict

_UNSEEN = Observation(math.nan, np.zeros(0))


@dataclass(frozen=True, slots=True)
class StepLimits:
    """From what loss and gradient norm on a step is refused, and what norm it is clipped to; inf for none."""

    loss: float
    grad_norm: float
    clip: float


class Decider:
    """Detector, ladder and clipping: a deterministic function of agreed numbers.

    Args:
        config: the guard's.
        names: of the parameters.
        parameters: whose gradients are clipped.
        optimizer: its groups, for clipping by group.
    """

    def __init__(
        self, config: GuardConfig, names: list[str], parameters: Sequence[Tensor], optimizer: Optimizer
    ) -> None:
        self._config = config
        self._names = names
        self._parameters = parameters
        self.detector = SpikeDetector(config.detect)
        self.clipper = make_clipper(
            config.clip if config.mode != "off" else ClipConfig(kind="off"), parameters, optimizer
        )
        self.ladder = EscalationLadder(config.budget, config.on_suspect)
        self.rank_exclusion = RankExclusion(config.rank_exclusion)
        self._idle = np.zeros(len(names), dtype=np.int64)
        self._depth = VanishingByDepth(self._parameters, config.dead_steps)

    def foresee(self, agreed: Agreed, seen: Observation, moved: Movement | None) -> Verdict:
        """What ``judge`` would say; nothing is counted or learned."""
        update = None if moved is None else moved.per_rate
        return self.detector.foresee(agreed.loss, seen.grad_norm, update, agreed.buffer_jump)

    def culprit(
        self, attempt: int, agreed: Agreed, local_norms: NDArray[np.float64], expected: Verdict
    ) -> int | None:
        """The rank whose share is to be left out of a batch that ``foresee`` expects to be bad; counts it."""
        clips = expected.kind == "suspect" and self._config.on_suspect == "clip"
        typical = self.detector.typical("grad_norm")
        if not self._config.acts or clips or typical is None or expected.signal not in ("loss", "grad_norm"):
            return None

        def fine(loss: float) -> bool:
            return self.detector.foresee(loss, typical).kind == "ok"

        return self.rank_exclusion.culprit(attempt, agreed, local_norms, fine)

    def judge(
        self,
        agreed: Agreed,
        seen: Observation,
        moved: Movement | None,
        *,
        attempt: int,
        step: int,
        learning_rate: float,
        can_roll_back: bool,
        overflow: bool = False,
        fault: Correction | None = None,
    ) -> Evidence:
        """Judges one step attempt and counts it. ``overflow``: the scaler handles it, nothing is judged."""
        verdict, decision, layer = OK, Decision("apply", "ok"), None
        typical = self.detector.typical("grad_norm")
        if self._config.mode != "off" and not overflow:
            update = None if moved is None else moved.per_rate
            verdict = self.detector.observe(agreed.loss, seen.grad_norm, update, agreed.buffer_jump)
            decision = self.ladder.decide(verdict, attempt=attempt, can_roll_back=can_roll_back)
            verdict, decision, layer = self._silent(attempt, verdict, decision, seen)
        return Evidence(
            attempt=attempt,
            step=step,
            agreed=agreed,
            grad_norm=seen.grad_norm,
            layer_norms=seen.layer_norms,
            verdict=verdict,
            decision=decision,
            clip=self.clipper.plan(
                seen,
                typical=typical,
                suspect=decision.rung == "clip",
                accepted=decision.rung == "apply" and not overflow,
            ),
            learning_rate=learning_rate,
            moved=moved,
            ratios=self.detector.ratios(),
            fault=fault,
            layer=layer,
        )

    def limits(self) -> StepLimits:
        """What a device must know to judge the coming step by itself."""
        loss, grad_norm = self.detector.limits()
        typical = self.detector.typical("grad_norm")
        clip = self.clipper.plan(_UNSEEN, typical=typical, accepted=False).limit
        return StepLimits(loss, grad_norm, math.inf if clip is None else clip)

    def refused(self, evidence: Evidence) -> Evidence:
        """The device refused a step that, by a rounding error, is just normal here: it counts as suspect."""
        verdict = replace(evidence.verdict, kind="suspect")
        return replace(evidence, verdict=verdict, decision=Decision("skip", f"{verdict.signal} is suspect"))

    def _silent(
        self, attempt: int, verdict: Verdict, decision: Decision, seen: Observation
    ) -> tuple[Verdict, Decision, int | None]:
        """Layers that no gradient reaches any more are told once, the first of them by its index too.

        The step is applied.
        """
        dead = self._dead(seen)
        faded = self._depth.observe(attempt, seen.layer_norms)
        if verdict.kind != "ok" or not (dead or faded):
            return verdict, decision, None
        if dead:
            layers = ", ".join(self._names[i] for i in dead[:3]) + (", ..." if len(dead) > 3 else "")
            reason = f"no gradient in {self._config.dead_steps} steps: {layers}"
            return Verdict("vanishing", "grad_norm", float(len(dead))), Decision("apply", reason), dead[0]
        assert faded is not None
        layer, ratio = faded
        name = self._names[layer]
        reason = f"the gradient vanishes on its way back: from {name} on, {ratio:.1g} of it is left"
        score = self._config.detect.sigmas * math.log(ratio) / math.log(FADED)
        return Verdict("vanishing", "grad_norm", score), Decision("apply", reason), layer

    def _dead(self, seen: Observation) -> list[int]:
        """Layers that take part in the loss and have had no gradient for long, at the moment that is so."""
        self._idle = np.where(seen.layer_norms == 0.0, self._idle + 1, 0)
        due = np.flatnonzero(self._idle == self._config.dead_steps).tolist()
        return [i for i in due if self._parameters[i].grad is not None]

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as plain numbers and lists."""
        return {
            "detector": self.detector.state_dict(),
            "clip": self.clipper.state_dict(),
            "ladder": self.ladder.state_dict(),
            "rank_exclusion": self.rank_exclusion.state_dict(),
            "idle": self._idle.tolist(),
            "faded": self._depth.rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self.detector.load_state_dict(state["detector"])
        self.clipper.load_state_dict(state["clip"])
        self.ladder.load_state_dict(state["ladder"])
        if "rank_exclusion" in state:
            self.rank_exclusion.load_state_dict(state["rank_exclusion"])
        self._idle = np.asarray(state["idle"], dtype=np.int64)
        self._depth.rows = int(state.get("faded", 0))
