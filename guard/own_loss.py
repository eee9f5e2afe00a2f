"""The loss of a batch before and after its own step, computed beside the step: does the step gain anything?

Only where the rate of a run's first steps is judged and may be changed, and the loop passes a closure.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import SyncBatchNorm

from guard.beside import loss_beside
from guard.parts import StepParts
from guard.types import StepReport


class OwnLoss:
    """Measures it around an attempt, and passes it to the rule of the first steps."""

    def __init__(self, model: nn.Module, parts: StepParts) -> None:
        self._model, self._parts = model, parts
        self._rule = parts.decider.rate.start
        exchanges = any(isinstance(module, SyncBatchNorm) for module in model.modules())
        self._active = parts.config.rate == "act" and parts.config.mode == "exact" and not exchanges
        if self._active:
            parts.replayer.arm()

    def around(self, run: Callable[[], StepReport]) -> StepReport:
        """One attempt; where it is due, all ranks measure it.

        Memory: a copy of the weights, for one step.
        """
        rule = self._rule
        if not (self._active and rule.open and rule.overshoot.due(rule.attempts) and self._able()):
            return run()
        parameters, generators = list(self._parts.observer.parameters), self._parts.replayer.generators
        weights = [parameter.detach().clone() for parameter in parameters]
        before = loss_beside(self._model, self._parts, generators=generators)
        report = run()
        whole = not (report.dropped_micro_batches or report.excluded_ranks or report.excluded_samples)
        predicted = _along(parameters, weights) if report.applied and whole else None
        if predicted is not None and report.clip_coef > 0.0:
            after = loss_beside(self._model, self._parts, generators=generators)
            self._share(before, after, predicted / report.clip_coef)
            self._parts.replayer.arm()
        return report

    def _able(self) -> bool:
        return self._parts.search.has_closure and self._parts.observer.shards is None

    def _share(self, before: float | None, after: float | None, predicted: float) -> None:
        """The means over the ranks; where one could not compute it, none tries again."""
        known = before is not None and after is not None
        rows = self._parts.agreement.exchange([float(known), before or 0.0, after or 0.0, predicted])
        if not rows[:, 0].all():
            self._active = False
            return
        first, second, expected = rows[:, 1:].mean(0).tolist()
        self._rule.overshoot.add(second - first, expected)


def _along(parameters: list[Tensor], weights: list[Tensor]) -> float | None:
    """The gradient times the movement; None where gradients are sparse, or there is none."""
    moved = [(p.grad, p.detach() - w) for p, w in zip(parameters, weights, strict=True) if p.grad is not None]
    if not moved or any(gradient.is_sparse for gradient, _ in moved):
        return None
    products = [torch.sum(gradient * way, dtype=torch.float64) for gradient, way in moved]
    return float(torch.stack([product.to(products[0].device) for product in products]).sum())
