"""Attention logits: the largest of each head, and weights rescaled where it is too large.

QK-clip: Kimi Team, "Kimi K2: Open Agentic Intelligence" (2025), section 2.1. Fused attention shows no logits:
they are computed in one more forward of the batch without gradients, every k attempts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from guard.beside import loss_beside
from guard.observe.attention_logits import AttentionLogits, projections
from guard.observe.watched import unwrap
from guard.parts import StepParts
from guard.types import Floats, StepReport

log = logging.getLogger("guard")

_NAMED = 4
"""Layers that an entry of the journal names."""


class AttentionWatch:
    """Measures the logits of an attempt's batch, and rescales queries and keys after its step."""

    def __init__(self, model: nn.Module, parts: StepParts) -> None:
        self._model, self._parts = model, parts
        self._config = parts.config.attention
        self._active = self._config.action != "off" and parts.config.mode in ("exact", "shadow")
        self._works: dict[str, bool] = {}
        """Of each layer that was above the limit: whether rescaled weights lower its logits."""

    def around(self, run: Callable[[], StepReport], attempt: int) -> StepReport:
        """One attempt; where it is due, all ranks measure first."""
        self._parts.state.attention_logit = None
        if not self._active or attempt % self._config.every:
            return run()
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
            why = problem or ("no call of scaled_dot_product_attention" if not shapes else "the ranks differ")
            log.warning("attention logits cannot be watched: %s", why)
            return {}
        flat = self._parts.agreement.exchange(np.concatenate(list(seen.values())).tolist()).max(0)
        parts = np.split(flat, np.cumsum([len(heads) for heads in seen.values()])[:-1])
        return dict(zip(seen, parts, strict=True))

    def _own(self) -> tuple[dict[str, Floats], str | None]:
        """This rank's; and why there are none."""
        if self._parts.observer.shards is not None:
            return {}, "the weights are sharded"
        if not self._parts.search.has_closure:
            return {}, "guard.step() gets no closure that computes the batch again"
        names = {id(module): name for name, module in unwrap(self._model).named_modules()}
        logits = AttentionLogits(names)
        if loss_beside(self._model, self._parts, within=logits) is None:
            return {}, "the closure cannot be run beside the step"
        return logits.heads(), None

    @torch.no_grad()
    def _clip(self, found: dict[str, Floats], report: StepReport) -> None:
        clipped = {name: heads for name, heads in found.items() if self._rescaled(name, heads)}
        if not clipped:
            return
        named = ", ".join(f"{name} ({heads.max():.4g})" for name, heads in list(clipped.items())[:_NAMED])
        more = f" and {len(clipped) - _NAMED} more" if len(clipped) > _NAMED else ""
        reason = f"attention logits above {self._config.tau:g}, weights rescaled: {named}{more}"
        self._parts.recorder.rescaled(reason, len(clipped), step=report.step, attempt=report.attempt)
        new = {name: heads for name, heads in clipped.items() if name not in self._works}
        after = self._measured() if new else {}
        for name, heads in new.items():
            self._works[name] = name in after and after[name].max() < (heads.max() + self._config.tau) / 2
            if not self._works[name]:
                log.warning("%s: rescaled weights lower no logit: its queries or keys are normalized", name)

    def _rescaled(self, name: str, heads: Floats) -> bool:
        above = self._config.tau < float(heads.max()) < math.inf
        if not above or not self._works.get(name, True):
            return False
        weights = projections(unwrap(self._model).get_submodule(name), len(heads))
        if weights is None:
            self._works[name] = False
            log.warning("%s has logits of %.4g, and no weights that could be rescaled", name, heads.max())
            return False
        weights.rescale(np.minimum(1.0, self._config.tau / heads.clip(min=1e-30)))
        return True
