"""What the loss says about the learning rate: too high from the start, or since it has risen.

With ``rate: act`` it is changed; else, and in shadow, a rate to try is named, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from guard.config import GuardConfig
from guard.decide.climbing import Climb, Climbing
from guard.decide.ladder import EscalationLadder
from guard.decide.start_rate import CUT, StartRate
from guard.records import Verdict
from guard.types import Decision, RateFinding, Rung, Travelled

_WORTH_A_DUEL = 3000
"""Steps of a run from which on a duel takes at most a twentieth of them."""


class RateWatch:
    """Changes verdict and decision of an attempt where the learning rate explains its loss.

    Args:
        layers: weight matrices of the network.
        shortens: whether the optimizer's steps become shorter without a schedule, as those of Adagrad, which
            divides by the root of the sum of all squares: they are judged when they have.
    """

    def __init__(
        self, config: GuardConfig, ladder: EscalationLadder, layers: int, *, shortens: bool = False
    ) -> None:
        self._config, self._ladder = config, ladder
        self._acts = config.rate == "act" and config.mode == "exact"
        short = config.total_steps is not None and config.total_steps < _WORTH_A_DUEL
        watches = config.rate != "off" and config.mode != "off"
        self.start = StartRate(open=watches, shortens=shortens, short=short)
        self.climbing = Climbing(layers)
        self.advice = 1.0
        """What the learning rate should be multiplied by, where the guard may not."""
        self._scale = 1.0
        """What is the guard's in the rate of the present attempt: a cooldown, or a cut."""

    def follow(self, oldest_step: Callable[[], int], *, replays: bool) -> None:
        """How a return leads to the start.

        Args:
            oldest_step: of the oldest snapshot, to which it leads: after a resume that is another one.
            replays: whether its batches can come again, so that a duel leaves no trace.
        """
        self.start.oldest_step, self.start.replays = oldest_step, replays and self._acts

    def needs_start(self) -> bool:
        """Whether the run may still return to its start, which is then kept."""
        return self._acts and self.start.needs_start

    def changed(self, *, announced: bool) -> None:
        """A change on purpose."""
        self.climbing.relearn()
        if announced:
            self.start.changed()

    def judge(
        self,
        verdict: Verdict,
        decision: Decision,
        loss: float,
        rate: float,
        *,
        step: int,
        scale: float,
        can_roll_back: bool,
        moved: float | None,
        travelled: Callable[[], Travelled | None],
        way_back: Callable[[], float | None],
    ) -> tuple[Verdict, Decision]:
        """One attempt.

        Args:
            verdict: without the rate.
            decision: likewise.
            loss: agreed.
            rate: of its update.
            step: before it.
            scale: what the guard has multiplied the schedule's rate with.
            can_roll_back: whether there is a state to return to.
            moved: the mean distance of a step over the norm of the weights, where it was measured.
            travelled: how far the weights are from the first ones.
            way_back: at which share of that way the loss is lowest; called only where a rate is named.
        """
        self._scale = scale
        alarm = self._acts and decision.rung in ("rollback", "halt")
        finding = self.start.observe(loss, rate, travelled=travelled, alarm=alarm, step=step)
        if finding is None:
            healthy = verdict.kind == "ok" and decision.rung == "apply" and self._config.rate != "off"
            return self._check_climb(loss, rate, moved, verdict, decision) if healthy else (verdict, decision)
        if self._acts and can_roll_back:
            return self._change_rate(finding, verdict, decision)
        return self._advise(finding, verdict, decision, rate, way_back())

    def _advise(
        self, finding: RateFinding, verdict: Verdict, decision: Decision, rate: float, share: float | None
    ) -> tuple[Verdict, Decision]:
        """Names a rate to try, once: by where on their way the first steps were lowest, or by their climb."""
        self.start.open = False
        named = finding.named if share is None else max(CUT, 1 / share)
        finding = replace(finding, reason=f"{finding.climb}: {self._too_high(rate, named)}", acts=False)
        if verdict.kind != "ok" or decision.rung != "apply":
            reason = f"{decision.reason}; {finding.reason}"
            return verdict, replace(decision, reason=reason, rate=finding)
        warning = replace(verdict, kind="warning", signal="loss")
        return warning, Decision("apply", finding.reason, rate=finding)

    def _change_rate(
        self, finding: RateFinding, verdict: Verdict, decision: Decision
    ) -> tuple[Verdict, Decision]:
        """The run returns to its start with a lower rate, or goes on with another one."""
        if finding.factor == 1.0 and not finding.again:
            self.climbing.ignore()
        if not finding.again and decision.rung != "apply":
            return verdict, replace(decision, rate=finding)
        if decision.rung == "rollback":
            self._ladder.give_back(1)
        if finding.again:
            self.climbing.start_again()  # what the first steps reached, perhaps at another rate, is void
        kind: Literal["spike", "drift"] = "spike" if finding.again else "drift"
        rung: Rung = "rollback" if finding.again else "apply"
        return replace(verdict, kind=kind, signal="loss"), Decision(rung, finding.reason, rate=finding)

    def _check_climb(
        self, loss: float, rate: float, moved: float | None, verdict: Verdict, decision: Decision
    ) -> tuple[Verdict, Decision]:
        """Warns where the loss climbs under a rate that is too high; it is then held, if the guard may."""
        climbing, before = self.climbing, self.climbing.hold
        planned = rate / before
        climb = climbing.observe(loss, rate, moved)
        if self._acts:
            climbing.hold = climbing.held(planned)
        if climb is None and climbing.hold == before == 1.0:
            return verdict, decision
        finding = self._held_rate(planned, climb)
        if climb is None:
            return verdict, replace(decision, rate=finding)
        warning = Verdict("warning", "loss", climb.score, climb.lowest)
        return warning, Decision("apply", finding.reason, rate=finding)

    def _held_rate(self, planned: float, climb: Climb | None) -> RateFinding:
        factor = CUT**-self.start.cuts * self.climbing.hold
        if climb is None:
            return RateFinding(factor, False, "", "")
        since = f"since the learning rate passed {climb.rate:.2g}"
        if climb.moved is not None:
            since = f"while a step moves the weights by {climb.moved:.2g} of their norm"
        seen = f"the loss has climbed from {climb.lowest:.4g} to {climb.level:.4g} {since}"
        named = planned / climb.rate
        then = f"the learning rate is held at {climb.rate:.2g}, instead of {planned:.2g}"
        if not self._acts:
            then = self._too_high(planned, named)
        return RateFinding(factor, False, seen, f"{seen}: {then}", named, self._acts)

    def _too_high(self, rate: float, times: float) -> str:
        """Advice about the schedule's rate; a factor that was named before is no smaller now."""
        rate, times = rate / self._scale, max(times / self._scale, 1 / self.advice)
        self.advice = 1 / times
        probably = f"the learning rate {rate:.2g} is probably about {float(f'{times:.2g}'):g} times too high"
        then = "no healthy state is left to return to" if self._acts else "mode: shadow changes nothing"
        then = f"; {then}" if self._config.rate == "act" else ", or set rate: act"
        return f"{probably}: try {rate / times:.2g}{then}"

    def rolled_back(self, step: int) -> bool:
        """To that step; what is known of the rates still holds. Returns whether it is the start."""
        self.climbing.rolled_back()
        return self.start.returned(step)

    def state_dict(self) -> dict[str, Any]:
        return {
            "start_rate": self.start.state_dict(),
            "rising_rate": self.climbing.state_dict(),
            "rate_advice": self.advice,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "start_rate" in state:
            self.start.load_state_dict(state["start_rate"])
        if "rising_rate" in state:
            self.climbing.load_state_dict(state["rising_rate"])
        self.advice = float(state.get("rate_advice", 1.0))
