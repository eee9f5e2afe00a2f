"""The guard's part of a backward: its loss enters this rank's row, a bad micro-batch is dropped."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from guard.act.loop_checks import checked_loss, checked_weight
from guard.act.training_state import TrainingState
from guard.agree.agreement import Agreement
from guard.decide.recompute import Closure
from guard.errors import GuardError
from guard.observe.local_norms import refuse_join
from guard.parts import StepParts
from guard.step import StepPipeline


class BackwardPass:
    """Runs the backwards of an attempt, and repeats them where its step looks bad.

    Attributes:
        started: whether there was one.
        stop: asks all ranks to stop, with the next row.
        checkpoint: asks all ranks to save a checkpoint, with the next row.
    """

    def __init__(
        self,
        parts: StepParts,
        pipeline: Callable[[], StepPipeline],
        ddp: DistributedDataParallel | None,
    ) -> None:
        self._parts, self._pipeline, self._ddp = parts, pipeline, ddp
        self._agreement: Agreement = parts.agreement
        self._state: TrainingState = parts.state
        broadcasts = ddp is not None and ddp.broadcast_buffers
        self._watches_buffers = parts.agreement.rank == 0 or not broadcasts  # DDP sends rank 0's to all
        self.started = self.stop = self.checkpoint = False

    def run(self, loss: Tensor, weight: float) -> None:
        """Backward of one micro-batch; arguments as of ``GradientGuard.backward``."""
        if self._parts.search.running:
            self._parts.search.add(checked_loss(loss), weight)
            return
        self._pipeline().before_backward()
        self._state.checks.before_backward(checked_loss(loss), checked_weight(weight))
        accumulation = self._parts.accumulation
        self._forget_discarded()
        dropped = accumulation.begin(loss)
        self._note(loss)
        scaled = self._state.scaler.scale(loss if weight == 1.0 else loss * weight)
        try:
            with accumulation.dropping() if dropped else nullcontext():
                scaled.backward()
        except Exception as error:
            self._agreement.forget()
            accumulation.forget()
            if "second time" in str(error):
                error.add_note("of several losses of one batch pass the sum: guard.backward(first + second)")
            raise
        # Once backward is over the guard's code and data are in the processor's cache, before they are not.
        accumulation.ran()
        self._note_state(watch_buffers=not dropped)

    def observe(self, loss: Tensor) -> None:
        """The loop runs the backward of this loss itself, right after."""
        self._pipeline().before_backward()
        self._forget_discarded()
        self._note(checked_loss(loss))
        self._note_state(watch_buffers=True)

    def again(self, closure: Closure) -> None:
        """Runs the closure, which may run backward itself: by ``backward`` of the guard or of the loss."""
        checks = self._state.checks
        before = checks.begin_closure()
        self._arm_local()
        accumulation = self._parts.accumulation
        with accumulation.dropping() if accumulation.excluded else nullcontext():
            loss = closure()
        if loss is None or checks.notes > before:
            return
        if not checks.closure_ran_backward():
            self.run(loss, 1.0)
        elif self._state.scaler.active:
            raise GuardError(
                "the closure ran loss.backward() on a loss that is not scaled: let it only return the loss, "
                "guard.step(closure) scales it and runs backward"
            )
        else:
            self._note(torch.as_tensor(loss), arm=False)
            self._note_state(watch_buffers=True)

    def _forget_discarded(self) -> None:
        """Micro-batches before this one count for nothing if the loop has dropped their gradients."""
        if self._agreement.pending and self._parts.accumulation.discarded():
            self._agreement.forget(all_of_them=True)

    def _arm_local(self) -> None:
        if self._parts.local is not None:
            self._parts.local.arm(self._pipeline().wants_local(), self._state.scaler.factor())

    def _note(self, loss: Tensor, *, arm: bool = True) -> None:
        started = time.perf_counter()
        pipeline = self._pipeline()
        self.started = True
        refuse_join(self._ddp)
        self._state.before_backward()
        self._state.checks.noted()
        self._agreement.add(loss, stop=self.stop, checkpoint=self.checkpoint)
        if arm:
            self._arm_local()
        pipeline.seconds += time.perf_counter() - started

    def _note_state(self, *, watch_buffers: bool) -> None:
        started = time.perf_counter()
        shield = self._state.shield if watch_buffers and self._watches_buffers else None
        self._agreement.add_state(
            changed=self._state.outside.found() if self._agreement.pending == 1 else 0,
            buffer_jump=None if shield is None else shield.jump(),
        )
        self._pipeline().seconds += time.perf_counter() - started
