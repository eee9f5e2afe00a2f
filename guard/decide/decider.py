"""The verb decide: from what was observed and agreed to a verdict, a rung of the ladder and a clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from guard.clip.make import make_clipper
from guard.config import ClipConfig, GuardConfig
from guard.decide.climbing import Climb, Climbing, layers
from guard.decide.detector import SpikeDetector
from guard.decide.ladder import EscalationLadder
from guard.decide.new_level import NewLevel
from guard.decide.outliers import Outliers
from guard.decide.rank_exclusion import RankExclusion
from guard.decide.rates import RateHistory
from guard.decide.start_rate import CUT, StartRate, fast
from guard.decide.vanishing import VANISHED, VanishingByDepth
from guard.observe.shards import Shards
from guard.observe.watched import remapped
from guard.records import OK, Verdict
from guard.types import (
    Agreed,
    Correction,
    Decision,
    Evidence,
    Floats,
    Movement,
    Observation,
    RateFinding,
    Rung,
    Travelled,
)

_RELEARN_STEPS = 50
"""After a level has been accepted; two windows of the level."""
_NEW_WEIGHTS = 4.0
"""Times the first level: the loss of new weights amid others that have grown is above that of fresh ones."""
_UNSEEN = Observation(math.nan, np.zeros(0))


@dataclass(frozen=True, slots=True)
class StepLimits:
    """From which loss, gradient norm and jump of the buffers on a step is skipped, and the norm it is clipped
    to; inf for none."""

    loss: float
    grad_norm: float
    jump: float
    clip: float


class Decider:
    """Detector, ladder and clipping: a deterministic function of agreed numbers."""

    def __init__(
        self,
        config: GuardConfig,
        names: list[str],
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        shards: Shards | None = None,
    ) -> None:
        self._config = config
        self._names = names
        self._parameters = parameters
        self.detector = SpikeDetector(config.detect)
        clip = config.clip if config.mode != "off" else ClipConfig(kind="off")
        self.clipper = make_clipper(clip, parameters, optimizer, shards)
        self.ladder = EscalationLadder(config.budget, config.on_suspect)
        self.rank_exclusion = RankExclusion(config.rank_exclusion)
        replays = config.recovery.data == "replay"
        self.new_level = NewLevel(patience=config.detect.patience, replays=replays)
        self.outliers = Outliers(config.detect.sigmas, replays=replays)
        self.changes = 0
        """Changes on purpose so far, announced or found."""
        self._changed: tuple[int, int] = (0, 0)
        """The step of the last one, and for how many steps it relearns."""
        self._rates = RateHistory()
        self.start_rate = StartRate(open=config.rate != "off" and config.mode != "off")
        self._climbing = Climbing(layers(parameters))
        self._idle = np.zeros(len(names), dtype=np.int64)
        """Steps in a row in which each parameter's gradient was exactly zero."""
        self._any_idle = True
        self._by_depth = VanishingByDepth(self._parameters, config.dead_steps)

    def follow(
        self,
        names: list[str],
        parameters: Sequence[Tensor],
        origins: Sequence[int],
        shards: Shards | None = None,
    ) -> None:
        """The optimizer steps these parameters from now on; ``origins``: the former index of each, or -1."""
        self._names, self._parameters = names, parameters
        self._idle = remapped(self._idle, origins)
        self._by_depth = VanishingByDepth(parameters, self._config.dead_steps)
        self._climbing.layers = layers(parameters)
        self.clipper.follow(parameters, origins, shards)

    def foresee(self, agreed: Agreed, seen: Observation, moved: Movement | None) -> Verdict:
        """The verdict that ``judge`` would reach; nothing is counted or learned."""
        update = None if moved is None else moved.per_lr
        return self.detector.foresee(agreed.loss, seen.grad_norm, update, agreed.buffer_jump)

    def culprit(self, attempt: int, agreed: Agreed, local_norms: Floats, expected: Verdict) -> int | None:
        """The rank to exclude from a batch that ``foresee`` expects to be bad; counts it."""
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
        previous_rate: float | None = None,
        can_roll_back: bool,
        moved_far: Callable[[], bool],
        travelled: Callable[[], Travelled | None],
        overflow: bool = False,
        fault: Correction | None = None,
    ) -> Evidence:
        """Judges one step attempt and counts it. ``overflow``: the scaler handles it, nothing is judged.

        ``moved_far`` and ``travelled`` measure the weights: called only where that decides.
        """
        verdict, decision, layer = OK, Decision("apply", "ok"), None
        typical = self.detector.clip_level(self._config.clip.factor)
        if self._config.mode != "off" and not overflow:
            update = None if moved is None else moved.per_lr
            normal = self.new_level.waits and self.detector.normal
            verdict = self.detector.observe(agreed.loss, seen.grad_norm, update, agreed.buffer_jump)
            self._rates.push(learning_rate)
            self.new_level.moved_far = (
                partial(_far, moved_far, travelled) if self.detector.first is None else moved_far
            )
            decision = self._decide(
                verdict, agreed, attempt, step, normal=normal, can_roll_back=can_roll_back
            )
            if decision.new_level:
                verdict, typical = self._accept_change(verdict, agreed, step, seen.grad_norm), None
            verdict, decision, layer = self._check_vanishing(attempt, verdict, decision, seen)
            alarm = self._config.rate == "act" and decision.rung in ("rollback", "halt")
            finding = self.start_rate.observe(
                agreed.loss, learning_rate, travelled=travelled, alarm=alarm, step=step
            )
            if finding is not None:
                verdict, decision = self._change_rate(finding, verdict, decision, able=can_roll_back)
            elif verdict.kind == "ok" and decision.rung == "apply" and self._config.rate != "off":
                ratio = None if moved is None else moved.ratio
                verdict, decision = self._check_climb(agreed.loss, learning_rate, ratio, verdict, decision)
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
            previous_rate=previous_rate,
            moved=moved,
            ratios=self.detector.ratios(),
            fault=fault,
            layer=layer,
        )

    def _change_rate(
        self, finding: RateFinding, verdict: Verdict, decision: Decision, *, able: bool
    ) -> tuple[Verdict, Decision]:
        """The run returns to its start with a lower rate, or goes on with another one."""
        if self._config.rate != "act" or not able:
            self.start_rate.open = False
            return verdict, replace(decision, rate=replace(finding, acts=False))
        if finding.factor == 1.0 and not finding.again:
            self._climbing.ignore()
        if not finding.again and decision.rung != "apply":
            return verdict, replace(decision, rate=finding)
        if decision.rung == "rollback":
            self.ladder.give_back(1)
        if finding.again:
            self._climbing.relearn()  # what the first steps reached, perhaps at another rate, is void
        kind: Literal["spike", "drift"] = "spike" if finding.again else "drift"
        rung: Rung = "rollback" if finding.again else "apply"
        return replace(verdict, kind=kind, signal="loss"), Decision(rung, finding.reason, rate=finding)

    def _check_climb(
        self, loss: float, rate: float, moved: float | None, verdict: Verdict, decision: Decision
    ) -> tuple[Verdict, Decision]:
        """Warns where the loss climbs under a rate that is too high; it is then held, if the guard may."""
        climbing = self._climbing
        before = climbing.hold
        planned = rate / before
        climb = climbing.observe(loss, rate, moved)
        acts = self._config.rate == "act" and self._config.mode == "exact"
        if acts:
            climbing.hold = climbing.held(planned)
        if climb is None and climbing.hold == before == 1.0:
            return verdict, decision
        finding = self._held_rate(planned, climb, acts=acts)
        if climb is None:
            return verdict, replace(decision, rate=finding)
        warning = Verdict("warning", "loss", climb.score, climb.lowest)
        return warning, Decision("apply", finding.reason, rate=finding)

    def _held_rate(self, planned: float, climb: Climb | None, *, acts: bool) -> RateFinding:
        factor = CUT**-self.start_rate.cuts * self._climbing.hold
        if climb is None:
            return RateFinding(factor, False, "", "")
        since = f"since the learning rate passed {climb.rate:.2g}"
        if climb.moved is not None:
            since = f"while a step moves the weights by {climb.moved:.2g} of their norm"
        seen = f"the loss has climbed from {climb.lowest:.4g} to {climb.level:.4g} {since}"
        now = f"held at {climb.rate:.2g}, instead of {planned:.2g}" if acts else f"{planned:.2g} now"
        held = f"{seen}: the learning rate is {now}"
        return RateFinding(factor, False, seen, held, planned / climb.rate, acts)

    def expect_change(
        self, step: int, steps: int, loss: float | None = None, grad_norm: float | None = None
    ) -> None:
        """A change on purpose after ``step``: levels are relearned in the next ``steps`` attempts.

        Args:
            step: steps before it.
            steps: attempts after it.
            loss: of the attempt that showed it, if one has.
            grad_norm: likewise.
        """
        self.changes += 1
        self._changed = (step, steps)
        self._climbing.relearn()
        self.detector.expect_change(steps, loss, grad_norm)
        self.clipper.expect_change()

    def rolled_back(self, step: int) -> None:
        """The detector has been restored as of ``step``; a change after that still holds, or comes again."""
        self._climbing.rolled_back()
        self.start_rate.returned(step)
        changed_at, steps = self._changed
        if self.changes and step <= changed_at:
            self.detector.expect_change(changed_at - step + steps)

    def _decide(
        self, verdict: Verdict, agreed: Agreed, attempt: int, step: int, *, normal: bool, can_roll_back: bool
    ) -> Decision:
        """The rung, and whether a change on purpose explains the verdict."""
        on = self.detector.ratios()
        ratio = max(on["loss"], on["grad_norm"])
        most = 1.0 if agreed.changed < 2 else _NEW_WEIGHTS
        loaded = agreed.changed > 0 and self.detector.had_before(agreed.loss, most)
        persists = self.new_level.observe(ratio, agreed.loss, attempt, step, normal=normal, changed=loaded)
        if persists:
            self.ladder.give_back(self.new_level.accepted())
        rose = verdict.kind != "ok" and self._rates.rose
        instead = None
        if verdict.kind != "ok":
            instead = self._instead(verdict, agreed.loss, attempt, step, rose)
        decision = self.ladder.decide(
            verdict, attempt=attempt, can_roll_back=can_roll_back, rate_rose=rose, instead=instead
        )
        if decision.rung == "rollback" and self._config.acts:
            self.new_level.rolled_back(verdict, agreed.loss, attempt=attempt, step=step, rate_rose=rose)
            self._rates.forget_recent()
        return decision

    def _instead(self, verdict: Verdict, loss: float, attempt: int, step: int, rose: bool) -> Decision | None:
        """What is right where the weights are not the cause; a guard that only watches restores none, and
        finds no new level."""
        far = (lambda: True) if rose else self.new_level.moved_far
        usual = self.detector.had_before(loss)
        unknown = self._config.acts and self.detector.first is None
        outlier = self.outliers.instead(
            verdict, attempt, usual=usual, moved_far=far, unknown=unknown, skipped=self._config.acts
        )
        if not self._config.acts:
            return outlier
        if outlier is not None and outlier.rung == "skip" and self.new_level.has_habit(attempt):
            outlier = Decision("clip", outlier.reason)
        known = self.new_level.instead(verdict, attempt=attempt, step=step, rate_rose=rose)
        return known or outlier or self.new_level.habit(verdict, attempt, rate_rose=rose)

    def _accept_change(self, verdict: Verdict, agreed: Agreed, step: int, grad_norm: float) -> Verdict:
        """The present level is the new one, reported once as a drift."""
        self.ladder.give_back(self.new_level.accepted())
        if verdict.signal == "buffers":
            self.detector.accept_jump(agreed.buffer_jump or 0.0)
        else:
            self.expect_change(step, _RELEARN_STEPS, agreed.loss, grad_norm)
        return replace(verdict, kind="drift")

    def limits(self) -> StepLimits:
        """What a device must know to decide the coming step."""
        loss, grad_norm, jump = self.detector.limits()
        typical = self.detector.clip_level(self._config.clip.factor)
        clip = self.clipper.plan(_UNSEEN, typical=typical, accepted=False).limit
        return StepLimits(loss, grad_norm, jump, math.inf if clip is None else clip)

    def as_skipped(self, evidence: Evidence) -> Evidence:
        """The device skipped a step that, by a rounding error, is just normal here: it counts as suspect."""
        verdict = replace(evidence.verdict, kind="suspect")
        return replace(evidence, verdict=verdict, decision=Decision("skip", f"{verdict.signal} is suspect"))

    def _check_vanishing(
        self, attempt: int, verdict: Verdict, decision: Decision, seen: Observation
    ) -> tuple[Verdict, Decision, int | None]:
        """Reports once the layers that gradients no longer reach, and the index of the first of them.

        The step is applied.
        """
        dead = self._dead(seen)
        vanished = self._by_depth.observe(attempt, seen.layer_norms)
        if verdict.kind == "ok" and dead:
            layers = ", ".join(self._names[i] for i in dead[:3]) + (", ..." if len(dead) > 3 else "")
            reason = f"no gradient in {self._config.dead_steps} steps: {layers}"
            return Verdict("vanishing", "grad_norm", float(len(dead))), Decision("apply", reason), dead[0]
        if verdict.kind == "ok" and vanished:
            layer, ratio = vanished
            start = self._names[layer]
            reason = f"the gradient vanishes on its way back: from {start} on, {ratio:.1g} of it remains"
            score = self._config.detect.sigmas * math.log(ratio) / math.log(VANISHED)
            return Verdict("vanishing", "grad_norm", score), Decision("apply", reason), layer
        return verdict, decision, None

    def _dead(self, seen: Observation) -> list[int]:
        """Layers with a gradient of exactly zero in ``dead_steps`` steps in a row, as of this step."""
        if seen.layer_norms.all():  # what is not finite counts as a gradient
            if self._any_idle:
                self._idle.fill(0)
                self._any_idle = False
            return []
        self._any_idle = True
        self._idle = np.where(seen.layer_norms == 0.0, self._idle + 1, 0)
        due = np.flatnonzero(self._idle == self._config.dead_steps).tolist()
        return [i for i in due if self._parameters[i].grad is not None]

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": self.detector.state_dict(),
            "clip": self.clipper.state_dict(),
            "ladder": self.ladder.state_dict(),
            "rank_exclusion": self.rank_exclusion.state_dict(),
            "outliers": self.outliers.state_dict(),
            "new_level": self.new_level.state_dict(),
            "changes": [self.changes, *self._changed],
            "rates": self._rates.state_dict(),
            "start_rate": self.start_rate.state_dict(),
            "rising_rate": self._climbing.state_dict(),
            "idle": self._idle.tolist(),
            "faded": self._by_depth.rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.clipper.load_state_dict(state["clip"])
        self.ladder.load_state_dict(state["ladder"])
        if "rank_exclusion" in state:
            self.rank_exclusion.load_state_dict(state["rank_exclusion"])
        if "outliers" in state:
            self.outliers.load_state_dict(state["outliers"])
        if "new_level" in state:
            self.new_level.load_state_dict(state["new_level"])
            self.changes, *changed = map(int, state["changes"])
            self._changed = (changed[0], changed[1])
            self._rates.load_state_dict(state["rates"])
        if "start_rate" in state:
            self.start_rate.load_state_dict(state["start_rate"])
        if "rising_rate" in state:
            self._climbing.load_state_dict(state["rising_rate"])
        if len(state["idle"]) == len(self._names):
            self._idle = np.asarray(state["idle"], dtype=np.int64)
        self._by_depth.rows = int(state.get("faded", 0))


def _far(moved_far: Callable[[], bool], travelled: Callable[[], Travelled | None]) -> bool:
    """Whether the weights have moved far, where there may be no usual step to compare with."""
    return moved_far() or fast(travelled())
