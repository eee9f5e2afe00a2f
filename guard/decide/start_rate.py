"""A learning rate that is too high for the first steps: the loss climbs above its value before any update, or
does not fall while steps overshoot, or while the weights leave their initialization far behind.

Once that is established, a duel finds the rate: from the start again with a third, while that ends lower.
Where steps only seem long, the duel decides whether the rate is too high at all; if not, the run returns to
its start with its rate and its batches, so that it ends as if nothing had been tried.

A run that is bad from its start has no healthy history to be compared with, but it has its first loss: at the
initial weights, before the optimizer has changed anything.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from guard.decide.duel import COMPARED, LEAD, NEARLY, FirstBatch, end_of, ends_lower, lead_after
from guard.decide.first_climbs import FirstClimbs
from guard.decide.overshoot import Overshoot
from guard.types import RateFinding, Travelled

CUT = 3.0
"""A third of the rate each time: finer than the factor of 10 in which rates are usually guessed."""
_CLIMB, _CLIMB_AGAIN = 0.5, 0.3
"""How far the loss climbs from its lowest, in units of the loss before the first update; less is evidence
where it has climbed before."""
_ABOVE_AGAIN = 1.1
"""The same, where it has climbed before, from the loss before the first update."""
_FAST = 0.07
"""The first climb is evidence where the weights moved farther than this a step, in units of their norm: 0.15
and more at rates that are too high, 0.034 at most in healthy runs, where the first loss was a lucky one."""
_STALLED, _FAR = 0.95, 2.0
"""A loss above this share of the first one, with weights that are farther than this from the first ones, in
units of their norm: rates that train travel 0.1 to 1.3 in ten steps, those that do not 3 and more."""
_MEASURED = (10, 20)
"""At which attempts that is looked at: one pass over the weights, of a run that does not learn."""
_MOST_NAMED = 27.0
"""The first climb of a network without normalization exaggerates."""
_FALLEN = 0.5
"""Below this share of the first loss a run trains, however long its steps are: a network whose layers are
normalized shortens them itself."""
_DUEL_STEPS = 25
"""Attempts after the rate has last risen, once it was cut on evidence: more would favour low rates."""
_LONG_DUEL = 75
"""The same of a rate that only seems too high: of one that is three times too high the first 50 steps are
often as good as those of the right one, the next 25 are not."""
_SUSPECT = -0.65
"""The highest mean of eight overshoots from which on a third of a rate that was not cut is tried too."""
_WELL = 0.05
"""Below this share of the first loss the rate is good enough: the lowest loss after so few steps would favour
rates that are too low; below ``NEARLY`` where it was cut on evidence."""
_NEAR = 100
"""Attempts that a duel takes at most: a longer warm-up costs more than the last factor of 3 is worth."""
_RECOVERED, _LOST = 20, 10.0
"""Where a duel will decide, a climb is evidence only from this attempt on, or above this multiple of the
first loss."""
_RECENT, _ENOUGH = 5, 3
"""The median of the last five losses, from three on: one bad batch is no trend."""
_STEPS = 50
"""Attempts after the rate has last risen; the climb of a rate that is too high begins at once."""
_MOST_CUTS = 8
"""3^8 is beyond any rate that is chosen by mistake."""

Measure = Callable[[], Travelled | None]


@dataclass(slots=True)
class StartRate:
    """Follows the losses of the first attempts, and finds a rate that is too high.

    The run returns to its start, the first time with the same rate, since a bad batch may have broken the
    weights; then with a third of it each time. Where two cuts in a row do not make the climb slower, and the
    weights move slowly, the loss climbs by design: all are taken back, and nothing is judged any more.
    """

    open: bool = True
    cuts: int = 0
    _before: list[float] = field(default_factory=list)
    """The first loss after each start: of the weights before any update."""
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _climbs: FirstClimbs = field(default_factory=FirstClimbs)
    _observed: int = 0
    _steps: int = 0
    _highest: float = 0.0
    _lowest: float = math.inf
    _peak: float = 0.0
    overshoot: Overshoot = field(default_factory=Overshoot)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=COMPARED))
    _best: list[float] | None = None
    """How the first steps ended with the rate that is the best so far, once there is a duel."""
    _start_step: int | None = None
    """Of a duel, all runs begin there."""
    _first: FirstBatch = field(default_factory=FirstBatch)
    _same_start: bool = True
    _duel_after: int = _STEPS
    _doubt: str = ""
    """Which evidence was left to the duel: ``climb`` or ``overshoot``."""
    _next_lead: float = LEAD
    """That of a third of the present rate, ..."""
    _lead: float = LEAD
    """... and of the present rate, against three times of it."""
    shortens: bool = False
    """See ``RateWatch``."""
    short: bool = False
    """Whether the run is too short to try a rate that only seems too high."""
    oldest_step: Callable[[], int] | None = None
    replays: bool = False
    """See ``RateWatch.follow``."""

    @property
    def attempts(self) -> int:
        """Since the start."""
        return self._observed

    @property
    def needs_start(self) -> bool:
        """Whether the run may still return to its start."""
        return self.open and self._observed <= _NEAR

    def observe(
        self,
        loss: float,
        rate: float,
        *,
        travelled: Measure,
        alarm: bool = False,
        step: int = 0,
    ) -> RateFinding | None:
        """One attempt.

        Args:
            loss: agreed.
            rate: of its update.
            travelled: measures how far the weights are from the first ones; None where that is not watched.
                Called only where that decides.
            alarm: whether it would end in a rollback, which returns to the start too.
            step: before it.
        """
        if not self.open:
            return None
        if not self._losses:
            if not math.isfinite(loss):
                return None  # a bad batch, at weights that are still those before any update
            self._before.append(loss)
            self._start_step = step if len(self._before) == 1 else self._start_step
        self._first.note(step, loss, self._oldest)
        loss = loss if math.isfinite(loss) else math.inf
        self._losses.append(loss)
        self._last.append(loss)
        self._observed += 1
        self._steps = 0 if rate > self._highest else self._steps + 1
        self._highest, self._peak = max(self._highest, rate), max(self._peak, loss)
        if self._best is not None and self._start_step is None:
            return self._give_up()
        if self._tried and self._observed == 1 and (other := self._first.other(step, loss)):
            return self._lost(other, again=False)
        start = fmean(self._before)
        if self._steps > self._duel_after or start <= 0.0:
            return self._duel(start, step)
        if self._best is not None:
            return None  # three times the rate has lasted: the end of its first steps alone decides
        return self._judge(start, loss, travelled, alarm=alarm)

    @property
    def _tried(self) -> bool:
        """Whether this is a third of a rate that was not cut."""
        return self.cuts == 1 and self._best is not None

    def _judge(self, start: float, loss: float, travelled: Measure, *, alarm: bool) -> RateFinding | None:
        early = self._shortening and self._observed < _STEPS
        if alarm and loss > (1 + _CLIMB) * start and not early and (self._climbs or fast(travelled())):
            return self._too_high(start, loss, travelled)
        if len(self._losses) < _ENOUGH:
            return None
        level = median(self._losses)
        self._lowest = min(self._lowest, level)
        if early:
            return None if level < _LOST * start else self._too_high(start, level, travelled)
        if self._climbed(start, level, travelled) or self._stalled(start, level, travelled):
            return self._too_high(start, level, travelled)
        return self._overshot(start, level)

    def _climbed(self, start: float, level: float, travelled: Measure) -> bool:
        climb = level - min(self._lowest, start)
        if not self._climbs:
            climbed = climb > _CLIMB * start and fast(travelled())
            left = climbed and self._waits and self._observed < _RECOVERED and level < _LOST * start
            self._doubt = "climb" if left else self._doubt
            return climbed and not left
        return climb > _CLIMB_AGAIN * start or level > _ABOVE_AGAIN * start

    def _stalled(self, start: float, level: float, travelled: Measure) -> bool:
        measured = (_STEPS,) if self._shortening else _MEASURED
        if self._observed not in measured or level <= _STALLED * start:
            return False
        moved = travelled()
        return moved is not None and not moved.distance <= _FAR

    def _overshot(self, start: float, level: float) -> RateFinding | None:
        found = self.overshoot.found
        if found is None or level <= _FALLEN * start or self.cuts >= _MOST_CUTS:
            return None
        if self._waits:
            self._doubt = self._doubt or "overshoot"
            return None
        gain = (
            f"a step lowers the loss of its own batch by {max(0.0, -found):.0%} of what its gradient predicts"
        )
        return self._cut(gain, CUT)

    def _duel(self, start: float, step: int) -> RateFinding | None:
        """The first steps are over: with a third of a rate that is or may be too high they may end lower."""
        last, best = list(self._last), self._best
        end = end_of(last)
        if self._doubt == "climb" and not end <= _FALLEN * start:
            return self._too_high(start, end)  # it has not recovered
        well = NEARLY if self._duel_after == _DUEL_STEPS else _WELL
        worth, first = end >= well * start > 0.0 or bool(self._doubt), best is None and not self.cuts
        if not first or self._duel_after == _STEPS:
            self._next_lead = lead_after(end / start if start > 0.0 else 1.0, shortens=self.shortens)
        if first and self._duel_after == _STEPS and worth and self._suspect() and self._goes_on():
            return None
        if best is not None and not self._wins(last):
            return self._lost(
                f"the first steps end at {end_of(best):.4g}, with a third of the rate at {end:.4g}"
            )
        near = self._same_start and self._observed <= _NEAR and math.isfinite(end)
        worth = worth or (first and self._duel_after > _STEPS)
        tries = near and worth and self.cuts < _MOST_CUTS and (self.cuts > 0 or self._suspect())
        if tries and best is None and self._begin_at_oldest(step):
            return None
        if not (tries and self._start_kept):
            self.open = False
            return None
        self._best, self._lead = last, self._next_lead
        return self._cut(f"the first steps end at {end:.4g}", CUT, tries=True)

    def _wins(self, last: list[float]) -> bool:
        """Whether a third of the rate ends lower than what it was tried against."""
        known = self._duel_after == _DUEL_STEPS
        return self._best is not None and ends_lower(
            last, self._best, cut=known, lead=self._lead, paired=self._same_start
        )

    def _goes_on(self) -> bool:
        """Whether the first steps of a rate that only seems too high are to be longer, with a start to return
        to."""
        self._duel_after = min(_LONG_DUEL, _NEAR - 1 - (self._observed - self._steps))
        return self._steps <= self._duel_after

    def _give_up(self) -> RateFinding | None:
        """A third of the rate on trial, during which the loss has changed on purpose."""
        if self._tried:
            return self._lost("the first steps with a third of the rate cannot be compared")
        self.open = False
        return None

    def _lost(self, seen: str, *, again: bool = True) -> RateFinding:
        """The rate before is better, as far as is known: the run follows its steps again, as if no other had
        been tried; where the start is gone, it goes on from here."""
        self.open, again = False, again and self._start_kept
        self.cuts -= 1
        rate = CUT * self._highest
        now = f"{rate:.2g}" + (f" of {rate * CUT**self.cuts:.2g}" if self.cuts else "")
        reason = f"{seen}: {'again from the start with' if again else 'training goes on at'} {now}"
        return RateFinding(CUT**-self.cuts, again, seen, reason, replays=self.replays)

    def _suspect(self) -> bool:
        """Whether steps seem long, and a duel would leave no trace."""
        seems = not self.short and self.overshoot.highest > _SUSPECT
        return self.replays and (bool(self._doubt) or seems)

    @property
    def _shortening(self) -> bool:
        """Whether steps may be far too long only at first."""
        return self.shortens and not self._climbs

    @property
    def _waits(self) -> bool:
        """Whether a duel will decide: steps that are long at first may be right."""
        last_rise = self._observed - self._steps
        return self.replays and not self.cuts and self._same_start and last_rise <= _NEAR - _STEPS

    @property
    def _oldest(self) -> int | None:
        return self._start_step if self.oldest_step is None else self.oldest_step()

    @property
    def _start_kept(self) -> bool:
        return self._start_step is not None and self._oldest == self._start_step

    def _begin_at_oldest(self, step: int) -> bool:
        """After a resume the first steps begin where the run was resumed: a later one is the oldest state."""
        oldest, start = self._oldest, self._start_step
        if oldest is None or start is None or not start < oldest <= step:
            return False
        self._start_step, self._observed = oldest, step - oldest
        self._steps = min(self._steps, self._observed)
        return True

    def returned(self, step: int) -> bool:
        """After a rollback to ``step``: the first steps begin again there, or are not compared."""
        self._same_start = step == self._start_step
        if self._same_start and self._observed:
            self._restart()
        return self._same_start

    def changed(self) -> None:
        """The loss changes on purpose: that of before is no measure, and no reason to return to it."""
        self._same_start, self._start_step = False, None
        self.open = self.open and self._tried

    def _too_high(self, start: float, level: float, travelled: Measure = lambda: None) -> RateFinding:
        lowest = min(self._lowest, start)
        self._climbs.add((level - lowest) / start, self._observed)
        climb = f"the loss went from {lowest:.4g} to {level:.4g} in the first steps"
        if (self._climbs.unmoved() and not fast(travelled())) or self.cuts >= _MOST_CUTS:
            self.open, self.cuts = False, 0
            return RateFinding(1.0, False, climb, f"{climb}, at lower rates too: the rate is restored")
        named = self._named(start)
        self._best = None
        if len(self._climbs) > 1 or self.cuts:
            return self._cut(climb, named)
        self._restart()
        return RateFinding(1.0, True, climb, f"{climb}: again from the start", named)

    def _cut(self, seen: str, named: float, *, tries: bool = False) -> RateFinding:
        """From the start again with a third of the rate."""
        factor, rate = CUT**self.cuts, self._highest
        self._restart()
        self._duel_after = self._duel_after if tries else _DUEL_STEPS
        self.cuts += 1
        now = f"{rate / CUT:.2g} of {rate * factor:.2g}"
        times = float(f"{CUT**self.cuts:.1g}")  # a third more or less is not known
        too_high = f"the learning rate is about {times:.0f} times too high; training goes on at"
        reason = f"{seen}: from the start with {now}" if tries else f"{seen}: {too_high} {now}"
        return RateFinding(CUT**-self.cuts, True, seen, reason, named, replays=self.replays)

    def _restart(self) -> None:
        self._losses.clear()
        self._last.clear()
        self.overshoot.clear()
        self._doubt = ""
        self._steps = self._observed = 0
        self._highest, self._lowest, self._peak = 0.0, math.inf, 0.0

    def _named(self, start: float) -> float:
        """How many times too high the rate probably is: the loss overshoots about as far."""
        overshoot = min(_MOST_NAMED, max(CUT, self._peak / start))
        return CUT ** round(math.log(overshoot, CUT))

    def state_dict(self) -> dict[str, Any]:
        return {
            "open": self.open,
            "cuts": self.cuts,
            "before": list(self._before),
            "losses": list(self._losses),
            **self._climbs.state_dict(),
            "steps": self._steps,
            "observed": self._observed,
            "highest": self._highest,
            "lowest": self._lowest,
            "peak": self._peak,
            "overshoot": self.overshoot.state_dict(),
            "last": list(self._last),
            "best": self._best,
            "start_step": self._start_step,
            "same_start": self._same_start,
            "duel_after": self._duel_after,
            "doubt": self._doubt,
            "leads": [self._next_lead, self._lead],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.open, self.cuts = bool(state["open"]), int(state["cuts"])
        self._before = [*map(float, state["before"])]
        self._climbs.load_state_dict(state)
        self._losses = deque(map(float, state["losses"]), maxlen=_RECENT)
        self._steps, self._highest = int(state["steps"]), float(state["highest"])
        self._observed, self._lowest = int(state["observed"]), float(state["lowest"])
        self._peak = float(state.get("peak", 0.0))
        self.overshoot.load_state_dict(state.get("overshoot", {"changes": []}))
        self._last = deque(map(float, state.get("last", [])), maxlen=COMPARED)
        best = state.get("best")  # a mean, in states of before there were pairs
        self._best = [best] * COMPARED if isinstance(best, float) else best
        self._start_step = state.get("start_step")
        self._first = FirstBatch()  # as the oldest state: that of the resume, from now on
        self._duel_after = int(state.get("duel_after", _DUEL_STEPS if self.cuts else _STEPS))
        self._same_start, self._doubt = bool(state.get("same_start", True)), str(state.get("doubt", ""))
        self._next_lead, self._lead = map(float, state.get("leads", [LEAD, LEAD]))


def fast(moved: Travelled | None) -> bool:
    """Weights that are not finite are; those that are not measured are not."""
    return moved is not None and not moved.distance <= _FAST * moved.steps
