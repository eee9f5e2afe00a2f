"""Attention logits: the largest of each head, and weights rescaled where it is too large.

QK-clip: Kimi Team, "Kimi K2: Open Agentic Intelligence" (2025), section 2.1. Fused attention shows no logits:
they are computed in one more forward without gradients, every k attempts: of the batch where there is a
closure, else of what the model computed last.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from guard.beside import loss_beside
from guard.observe.attention_logits import AttentionLogits
from guard.observe.last_forward import LastForward
from guard.observe.projections import Projections, projections
from guard.observe.watched import unwrap
from guard.parts import StepParts
from guard.types import Floats, StepReport

log = logging.getLogger("guard")

_NAMED = 4
"""Layers that an entry of the journal names."""
_WHOLE = "the model"
_TRIAL = 0.5
"""So much less shows in most heads, whatever other layers that are tried with it change in their inputs."""
_UNSEEN = (
    "the model calls no attention that is known, or calls it in a kernel of its own (flash-attn, xformers)"
)


class AttentionWatch:
    """Measures the logits of an attempt's batch, and rescales queries and keys after its step."""

    def __init__(self, model: nn.Module, parts: StepParts) -> None:
        self._model, self._parts = model, parts
        self._config = parts.config.attention
        self._active = self._config.action != "off" and parts.config.mode in ("exact", "shadow")
        self._last = LastForward(model) if self._active else None
        self._works: dict[str, bool] = {}
        """Of each layer that was above the limit: whether rescaled weights lower its logits."""
        self._widths: dict[str, int | None] = {}

    def around(self, run: Callable[[], StepReport], attempt: int) -> StepReport:
        """One attempt; where it is due, all ranks measure first."""
        self._parts.state.attention_logit = None
        try:
            return self._around(run) if self._active and attempt % self._config.every == 0 else run()
        finally:
            if self._last is not None:
                self._last.forget()

    def _around(self, run: Callable[[], StepReport]) -> StepReport:
        found = self._measured()
        finite = [float(heads.max()) for heads in found.values() if np.isfinite(heads).all()]
        if finite and len(finite) == len(found):
            self._parts.state.attention_logit = max(finite)
        report = run()
        if report.applied and self._parts.config.acts and self._config.action == "qk_clip":
            self._clip(found, report)
        return report

    def _measured(self) -> dict[str, Floats]:
        """The largest logit of each head of each layer, over the ranks; empty where it cannot be known."""
        seen, problem = self._own()
        shapes = [float(len(heads)) for heads in seen.values()]
        rows = self._parts.agreement.exchange([float(problem is None), float(len(shapes)), sum(shapes)])
        if not rows[:, 0].all() or (rows != rows[0]).any() or not shapes:
            self._active = False
            why = problem or (_UNSEEN if not shapes else "the ranks differ")
            log.warning("attention logits cannot be watched: %s", why)
            return {}
        flat = self._parts.agreement.exchange(np.concatenate(list(seen.values())).tolist()).max(0)
        parts = np.split(flat, np.cumsum([len(heads) for heads in seen.values()])[:-1])
        return dict(zip(seen, parts, strict=True))

    def _own(self) -> tuple[dict[str, Floats], str | None]:
        """This rank's; and why there are none."""
        if self._parts.observer.shards is not None:
            return {}, "the weights are sharded"
        if self._last is None or not (self._parts.search.has_closure or self._last):
            return {}, "guard.step() gets no closure, and the model that the guard has was not called"
        run = None if self._parts.search.has_closure else self._last.again
        names = {id(module): name for name, module in unwrap(self._model).named_modules()}
        logits = AttentionLogits(names)
        if loss_beside(self._model, self._parts, within=logits, run=run) is None:
            return {}, "the batch cannot be computed again beside the step"
        self._widths = {name: logits.width(name) for name in logits.heads()}
        return logits.heads(), logits.problem

    @torch.no_grad()
    def _clip(self, found: dict[str, Floats], report: StepReport) -> None:
        above = {name: heads for name, heads in found.items() if self._config.tau < heads.max() < math.inf}
        weights = self._weights(above)
        changed = [parameter for projected in weights.values() for parameter in projected.parameters]
        with self._parts.state.on_purpose(changed):
            self._rescale(weights, above)
        if weights:
            largest = [f"{name or _WHOLE} ({above[name].max():.4g})" for name in weights]
            reason = f"attention logits above {self._config.tau:g}, weights rescaled: {_listed(largest)}"
            self._parts.recorder.rescaled(reason, len(weights), step=report.step, attempt=report.attempt)

    def _rescale(self, weights: dict[str, Projections], above: Mapping[str, Floats]) -> None:
        """Takes out of ``weights`` those that have no effect, which a trial shows the first time."""
        if new := {name: projected for name, projected in weights.items() if name not in self._works}:
            self._try(new, above)
        for name in self._without_effect(new):
            del weights[name]
        for name, projected in weights.items():
            projected.rescale(np.minimum(1.0, self._config.tau / above[name].clip(min=1e-30)))

    def _try(self, new: Mapping[str, Projections], above: Mapping[str, Floats]) -> None:
        """Whether weights for half of the logits give them: two forwards; they are restored to the bit."""
        saved = {name: projected.saved() for name, projected in new.items()}
        high = {name: above[name] > self._config.tau for name in new}
        before = self._measured()  # the step may have moved them far
        for name, projected in new.items():
            projected.rescale(np.where(high[name], _TRIAL, 1.0))
        after = self._measured() if before else {}
        for name, projected in new.items():
            projected.restore(saved[name])
            shown = after[name][high[name]] / before[name][high[name]] if name in after else np.ones(1)
            self._works[name] = bool(np.median(shown) < (1 + _TRIAL) / 2)

    def _weights(self, above: Mapping[str, Floats]) -> dict[str, Projections]:
        """Of these layers, each weight once; layers without any are named, once."""
        usable = {name: heads for name, heads in above.items() if self._works.get(name, True)}
        found = {name: self._projections(name, len(heads)) for name, heads in usable.items()}
        self._works |= {name: False for name, weights in found.items() if weights is None}
        if without := [
            f"{name or _WHOLE} ({above[name].max():.4g})" for name, w in found.items() if w is None
        ]:
            log.warning("attention logits without weights that could be rescaled: %s", _listed(without))
        shared = {weights.place: name for name, weights in reversed(found.items()) if weights is not None}
        return {name: w for name, w in found.items() if w is not None and shared[w.place] == name}

    def _projections(self, name: str, heads: int) -> Projections | None:
        """Those of the module that computes attention, or of the one around it."""
        model = unwrap(self._model)
        around = (model.get_submodule(place) for place in (name, name.rpartition(".")[0]))
        made = (projections(module, heads, self._widths.get(name)) for module in around)
        return next((weights for weights in made if weights is not None), None)

    def _without_effect(self, new: Mapping[str, Projections]) -> list[str]:
        failed = [name for name in new if not self._works[name]]
        if failed:
            what = "its queries or keys are normalized, or its weights have another layout"
            log.warning("rescaled weights would lower no logit: %s: %s", _listed(failed), what)
        return failed


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name or _WHOLE for name in names[:_NAMED]) + more
