"""The verb decide: from what was observed and agreed to a verdict, a rung of the ladder and a clip."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Adagrad, Optimizer

from guard.act.outside import FROZEN
from guard.clip.make import make_clipper
from guard.config import ClipConfig, GuardConfig
from guard.decide.climbing import layers
from guard.decide.detector import SpikeDetector
from guard.decide.ladder import EscalationLadder
from guard.decide.new_level import NewLevel
from guard.decide.outliers import Outliers
from guard.decide.own_spikes import OwnSpikes
from guard.decide.rank_exclusion import RankExclusion
from guard.decide.rate_watch import RateWatch
from guard.decide.rates import RateHistory
from guard.decide.start_rate import fast
from guard.decide.vanishing import LostGradients
from guard.observe.shards import Shards
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
    StepLimits,
    Travelled,
)

_RELEARN_STEPS = 50
"""After a level has been accepted; two windows of the level."""
_MILD = 2.0
"""Times the first loss: up to that a lone outlier shows nothing about the weights."""
_FIRST = 1.1
"""Times the first level: the loss of the first weights, from which it has fallen until a level is known."""
_NEW_WEIGHTS = 4.0
"""Times the first level: the loss of new weights amid others that have grown is above that of fresh ones."""
_UNSEEN = Observation(math.nan, np.zeros(0))


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
        self.detector = SpikeDetector(config.detect)
        clip = config.clip if config.mode != "off" else ClipConfig(kind="off")
        self.clipper = make_clipper(clip, parameters, optimizer, shards)
        self.ladder = EscalationLadder(config.budget, config.on_suspect)
        self.rank_exclusion = RankExclusion(config.rank_exclusion)
        replays = config.recovery.data == "replay"
        self.new_level = NewLevel(patience=config.detect.patience, replays=replays)
        self.outliers = Outliers(config.detect.sigmas, replays=replays)
        self.own_spikes = OwnSpikes(config.budget.window_steps, config.clip.factor, replays=replays)
        self.changes = 0
        """Changes on purpose so far, announced or found."""
        self._changed: tuple[int, int] = (0, 0)
        """The step of the last one, and for how many steps it relearns."""
        self._rates = RateHistory()
        self.rate = RateWatch(
            config, self.ladder, layers(parameters), shortens=isinstance(optimizer, Adagrad)
        )
        self._lost = LostGradients(config, names, parameters)
        self._at_start: dict[str, Any] | None = None
        """What was remembered at the start, while the rate may return the run there."""

    def follow(
        self,
        names: list[str],
        parameters: Sequence[Tensor],
        origins: Sequence[int],
        shards: Shards | None = None,
    ) -> None:
        """The optimizer steps these parameters from now on; ``origins``: the former index of each, or -1."""
        self._lost.follow(names, parameters, origins)
        self.rate.climbing.layers = layers(parameters)
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
        lr_scale: float = 1.0,
        can_roll_back: bool,
        moved_far: Callable[[], bool],
        travelled: Callable[[], Travelled | None],
        way_back: Callable[[], float | None] = lambda: None,
        overflow: bool = False,
        fault: Correction | None = None,
    ) -> Evidence:
        """Judges one step attempt and counts it. ``overflow``: the scaler handles it, nothing is judged.

        ``moved_far`` and ``travelled`` measure the weights, ``way_back`` the loss between the first ones and
        them: called only where that decides.
        """
        self._keep_start()
        layer: int | None = None
        verdict, decision = OK, Decision("apply", "ok")
        typical = self.detector.clip_level(self._config.clip.factor)
        if self._config.mode != "off" and not overflow:
            update = None if moved is None else moved.per_lr
            normal = self.new_level.waits and self.detector.normal
            verdict = self.detector.observe(agreed.loss, seen.grad_norm, update, agreed.buffer_jump)
            self._rates.push(learning_rate)
            self.own_spikes.note(seen.grad_norm)
            self.new_level.moved_far = (
                partial(_far, moved_far, travelled) if self.detector.first is None else moved_far
            )
            decision = self._decide(
                verdict, agreed, attempt, step, normal=normal, can_roll_back=can_roll_back
            )
            if decision.new_level:
                verdict, typical = self._accept_change(verdict, agreed, step, seen.grad_norm), None
            elif decision.rung in ("rollback", "halt") and verdict.kind == "ok":
                verdict = replace(verdict, kind="spike", signal="loss")
            lost = self._lost.observe(attempt, seen.layer_norms)
            if lost is not None and verdict.kind == "ok":
                verdict, layer = Verdict("vanishing", "grad_norm", lost.score), lost.layer
                decision = Decision("apply", lost.reason)
            verdict, decision = self.rate.judge(
                verdict,
                decision,
                agreed.loss,
                learning_rate,
                step=step,
                scale=lr_scale,
                can_roll_back=can_roll_back,
                moved=None if moved is None else moved.ratio,
                travelled=travelled,
                way_back=way_back,
            )
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
                typical=self.own_spikes.usual(typical) if decision.rung == "apply" else typical,
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
        self.rate.changed(announced=loss is None)
        self.detector.expect_change(steps, loss, grad_norm)
        self.clipper.expect_change()

    def rolled_back(self, step: int, rate: RateFinding | None = None) -> None:
        """The detector has been restored as of ``step``; a change after that still holds, or comes again.

        What the run has shown is remembered, unless the ``rate`` is why it begins again.
        """
        at_start = self.rate.rolled_back(step)
        self.own_spikes.rolled_back()
        if rate is not None and at_start and self._at_start is not None:
            self._remember(copy.deepcopy(self._at_start))
        changed_at, steps = self._changed
        if self.changes and step <= changed_at:
            self.detector.expect_change(changed_at - step + steps)

    def _decide(
        self, verdict: Verdict, agreed: Agreed, attempt: int, step: int, *, normal: bool, can_roll_back: bool
    ) -> Decision:
        """The rung, and whether a change on purpose explains the verdict."""
        on = self.detector.ratios()
        ratio = max(on["loss"], on["grad_norm"])
        changed = agreed.changed % FROZEN
        most = _FIRST if changed < 2 else _NEW_WEIGHTS
        loaded = changed > 0 and self.detector.had_before(agreed.loss, most)
        persists = self.new_level.observe(ratio, agreed.loss, attempt, step, normal=normal, changed=loaded)
        if persists:
            self.ladder.give_back(self.new_level.accepted())
        rose = verdict.kind != "ok" and self._rates.rose
        instead = self._end_trial(verdict, agreed.loss, attempt, step, able=can_roll_back)
        if instead is None and verdict.kind != "ok":
            instead = self._instead(verdict, agreed.loss, attempt, step, rose)
        decision = self.ladder.decide(
            verdict, attempt=attempt, can_roll_back=can_roll_back, rate_rose=rose, instead=instead
        )
        if decision.rung == "rollback" and self._config.acts:
            self.new_level.rolled_back(verdict, agreed.loss, attempt=attempt, step=step, rate_rose=rose)
            self._rates.forget_recent()
        elif decision.rung == "skip" and self._config.acts:
            self.own_spikes.skipped(agreed.loss, attempt)
        return replace(decision, on_trial=True) if self.own_spikes.on_trial else decision

    def _end_trial(
        self, verdict: Verdict, loss: float, attempt: int, step: int, *, able: bool
    ) -> Decision | None:
        """What is right where a spike that was let through does not end."""
        ended = self.own_spikes.observe(verdict, loss, attempt, step)
        if ended == "new level":
            return Decision("apply", "the loss stays where it jumped to", new_level=True)
        if ended == "failed" and able:
            return Decision("rollback", "a spike that was let through did not end", recover=True)
        return None

    def _instead(self, verdict: Verdict, loss: float, attempt: int, step: int, rose: bool) -> Decision | None:
        """What is right where the weights are not the cause; in shadow nothing is restored or accepted."""
        far = (lambda: True) if rose else self.new_level.moved_far
        usual, mild = self.detector.had_before(loss), self.detector.had_before(loss, _MILD)
        unknown = self._config.acts and self.detector.first is None
        outlier = self.outliers.instead(
            verdict,
            attempt,
            usual=usual,
            mild=mild,
            moved_far=far,
            unknown=unknown,
            skipped=self._config.acts,
        )
        if not self._config.acts:
            return outlier
        if outlier is not None and outlier.rung == "skip" and self.new_level.has_habit(attempt):
            outlier = Decision("clip", outlier.reason)
        own = self.own_spikes.instead(verdict, loss, attempt, limit=self.detector.limits()[0], moved_far=far)
        if own is not None and own.rung == "apply":
            self.ladder.give_back(self.own_spikes.explained())
        known = self.new_level.instead(verdict, attempt=attempt, step=step, rate_rose=rose)
        return own or known or outlier or self.new_level.habit(verdict, attempt, rate_rose=rose)

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
        typical = self.own_spikes.usual(self.detector.clip_level(self._config.clip.factor))
        clip = self.clipper.plan(_UNSEEN, typical=typical, accepted=False).limit
        return StepLimits(loss, grad_norm, jump, math.inf if clip is None else clip)

    def as_skipped(self, evidence: Evidence) -> Evidence:
        """The device skipped a step that, by a rounding error, is just normal here: it counts as suspect."""
        verdict = replace(evidence.verdict, kind="suspect")
        return replace(evidence, verdict=verdict, decision=Decision("skip", f"{verdict.signal} is suspect"))

    def _keep_start(self) -> None:
        if not self.rate.needs_start():
            self._at_start = None
        elif self._at_start is None:
            self._at_start = copy.deepcopy(self._remembered())

    def _memories(self) -> dict[str, Any]:
        """What survives a rollback, by its name in checkpoints."""
        return {
            "ladder": self.ladder,
            "rank_exclusion": self.rank_exclusion,
            "outliers": self.outliers,
            "own_spikes": self.own_spikes,
            "new_level": self.new_level,
            "rates": self._rates,
        }

    def _remembered(self) -> dict[str, Any]:
        return {n: part.state_dict() for n, part in self._memories().items()} | self._lost.state_dict()

    def _remember(self, state: dict[str, Any]) -> None:
        for name, part in self._memories().items():
            if name in state:  # older checkpoints do not have all
                part.load_state_dict(state[name])
        self._lost.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": self.detector.state_dict(),
            "clip": self.clipper.state_dict(),
            "changes": [self.changes, *self._changed],
            **self.rate.state_dict(),
            **self._remembered(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.clipper.load_state_dict(state["clip"])
        self.changes, *changed = map(int, state.get("changes", (0, 0, 0)))
        self._changed = (changed[0], changed[1])
        self.rate.load_state_dict(state)
        self._remember(state)
        self._at_start = None


def _far(moved_far: Callable[[], bool], travelled: Callable[[], Travelled | None]) -> bool:
    """Whether the weights have moved far, where there may be no usual step to compare with."""
    return moved_far() or fast(travelled())
