"""The guard in a training loop: observe, agree, decide, act, record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from prometheus_client import CollectorRegistry
from torch import Tensor, nn
from torch.optim import Optimizer

from guard.act.snapshot import Stateful
from guard.act.untouched import kept_weights
from guard.agree.agreement import Agreement
from guard.agree.rank_failure import raises_rank_lost, report_exit, report_failure
from guard.agree.settings import RankSettings, Settings
from guard.arguments import (
    WrappedOptimizer,
    as_callable,
    as_config,
    as_journal,
    as_metrics,
    as_states,
    check_change,
    check_groups,
    check_optimizer,
    check_saved,
    check_shards,
    check_states,
)
from guard.attention import AttentionWatch
from guard.auto_mode import resolved
from guard.backward import BackwardPass
from guard.config import GuardConfig
from guard.decide.bad_samples import SampleClosure, Samples
from guard.deferred_step import resolve_saved
from guard.hooks import ForwardHook
from guard.observe.local_norms import CommHook, find_ddp, give_hook
from guard.observe.noise_scale import NoiseEstimate
from guard.observe.observer import Observer
from guard.observe.shards import declared_groups
from guard.observe.watched import Watched
from guard.own_loss import OwnLoss
from guard.parts import make_parts
from guard.pipelines import make_pipeline
from guard.record.journal import Journal
from guard.record.metrics import GuardMetrics
from guard.record.totals import Totals
from guard.types import StepReport


class GradientGuard:
    """Replaces ``clip_grad_norm_`` and ``optimizer.step``, and keeps the run alive through explosions.

    Args:
        model: the module, or its DDP wrapper. Buffers are protected on a skip.
        optimizer: any ``torch.optim`` optimizer.
        config: what to watch and how far to go; a dict of its fields will do.
        scheduler: stepped by the guard, once for each applied step.
        scaler: a ``GradScaler``, if the loss is scaled.
        state: what else a rollback restores, by name.
        data: the data cursor: rolled back only when ``recovery.data`` is ``replay``; its ``last_ids``, if
            there are any, name the samples of an incident, and its ``describe(id)`` says what a sample is.
        ema: averaged weights: restored by a rollback, and kept from learning twice from the same weights
            when a step is skipped. In mode ``deferred`` update it only after a report with ``applied``.
        metrics: a ``GuardMetrics``, or a Prometheus registry to put a new one on.
        journal: a ``Journal`` or the path of one; written on rank 0.
        process_group: the ranks that train together; default: the default group, if there is one.
        shards: plain parameters of which each rank of a group holds its own part, such as experts, by name
            pattern: ``{"*.experts.*": group}``. Their names are the same on all ranks. DTensors need none.
        job: the name in incidents and metrics.

    Every rank constructs the guard and calls ``backward`` and ``step`` alike; pipeline stages are refused.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: GuardConfig | Mapping[str, Any] | None = None,
        *,
        scheduler: Any | None = None,
        scaler: torch.amp.GradScaler | None = None,
        state: Mapping[str, Stateful] | None = None,
        data: Stateful | None = None,
        ema: Stateful | None = None,
        metrics: GuardMetrics | CollectorRegistry | None = None,
        journal: Journal | str | Path | None = None,
        process_group: dist.ProcessGroup | None = None,
        shards: Mapping[str, dist.ProcessGroup] | None = None,
        job: str = "",
    ) -> None:
        report_exit()
        self._wrapped = WrappedOptimizer(optimizer)
        optimizer = self._wrapped.inner
        states, self._model = as_states(state), model
        check_optimizer(model, optimizer)
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        asked = as_config(config)
        self.config = resolved(asked, optimizer, scaler=scaler, shards=shards, ema=ema, rank=rank)
        check_states(optimizer, scheduler, states, data, ema)
        check_groups(shards, self.config.mode, process_group)
        observer = Observer(watched=Watched(model, optimizer), declared=shards)
        check_shards(shards, model, observer)
        device = observer.parameters[0].device
        settings = RankSettings(
            self.config,
            optimizer,
            lambda: dict(zip(observer.names, observer.parameters, strict=True)),
            divided=lambda name: bool(declared_groups(shards, name)),
        )
        self._agreement = Agreement(
            process_group, device, describe=self._deciding, deferred=self.config.mode == "deferred"
        )
        self._agreement.check_names(observer.names)
        self.metrics = as_metrics(metrics, job)
        self._parts = make_parts(
            model,
            optimizer,
            self.config,
            observer=observer,
            agreement=self._agreement,
            settings=settings,
            scheduler=scheduler,
            scaler=scaler,
            states=states,
            data=data,
            ema=ema,
            metrics=self.metrics,
            journal=as_journal(journal, self._agreement.rank),
            process_group=process_group,
            job=job,
            by_host=lambda: self._pipeline.by_host,
        )
        self._state = self._parts.state
        self._pipeline = make_pipeline(self._parts)
        self._own_loss, self._attention = OwnLoss(model, self._parts), AttentionWatch(model, self._parts)
        self._ddp = find_ddp(model)
        self._backward = BackwardPass(self._parts, lambda: self._pipeline, self._ddp)
        self._state.start(0)
        self._before_first_backward(model)

    @property
    def steps(self) -> int:
        """Optimizer steps applied and not rolled back; one in flight counts as applied."""
        return self._pipeline.standing_steps

    @property
    def attempts(self) -> int:
        """Calls of ``step`` so far."""
        return self._pipeline.attempt

    @property
    def totals(self) -> Totals:
        """What the guard has done and found so far, with or without ``metrics``; it grows with each step."""
        return self._parts.recorder.totals

    @property
    def layer_norms(self) -> dict[str, float]:
        """The gradient norm of every parameter in the last step, before clipping."""
        return dict(zip(self._parts.observer.names, self._pipeline.layer_norms.tolist(), strict=True))

    @property
    def noise_scale(self) -> NoiseEstimate | None:
        """The gradient noise scale, a hint on batch size; None until known (it needs two ranks)."""
        return self._pipeline.noise.estimate(len(getattr(self._parts.data, "last_ids", ())) or None)

    def report_failure(self, error: BaseException) -> None:
        """Shares the cause of this rank's failure: the ``RankLost`` of the other ranks names it."""
        report_failure(error)

    def restore_from(self, restore: Callable[[int], int | None]) -> None:
        """Sets what to restore when the last snapshot in memory was restored twice and did not help.

        Args:
            restore: loads a healthy state of the given step or an earlier one, of all but the guard, on every
                rank alike, and returns its step; None where there is none: the snapshot is then used again.
        """
        self._state.restore_from(as_callable(restore, "restore", "pass a function of a step"))

    def request_stop(self) -> None:
        """Asks all ranks to stop: the next step's report has ``stop`` set on every rank."""
        self._backward.stop = True

    def request_checkpoint(self) -> None:
        """Asks all ranks to save a checkpoint: one report has ``checkpoint`` set, on every rank."""
        self._backward.checkpoint = True

    def register_comm_hook(self, state: Any, hook: CommHook) -> None:
        """Use it instead of DDP's method of this name, before the first backward: DDP takes one hook only.

        Args:
            state: passed to the hook.
            hook: called as ``hook(state, bucket)``, for each bucket of local gradients.

        Raises:
            GuardError: the model is not in DDP, or the hook's second argument has another name.
        """
        if self._parts.local is None:
            give_hook(self._ddp, state, hook)
        else:
            self._parts.local.register_comm_hook(state, hook)

    @raises_rank_lost
    def backward(self, loss: Tensor, *, weight: float = 1.0) -> None:
        """Runs ``loss.backward()``, and notes the loss for ``step``, which gathers it from all ranks.

        Args:
            loss: 0-dim, the mean over this rank's (micro-)batch. Call once for each micro-batch; of several,
                one that is not finite is dropped, and the mean is that of the others.
            weight: what the loss is multiplied with for backward, but not for the record: 1 / k for each of k
                micro-batches.
        """
        self._backward.run(loss, weight)

    @raises_rank_lost
    def observe_loss(self, loss: Tensor) -> None:
        """The half of ``backward`` that is the guard's, for a loop that runs the other half itself.

        Call it right before the loss is differentiated, once for each micro-batch, on every rank.

        Args:
            loss: as for ``backward``; not multiplied by the scaler.
        """
        self._backward.observe(loss)

    def _deciding(self) -> Settings:
        """What must be equal on all ranks, in words, for the error of ranks that differ."""
        counts = {"step": self._pipeline.step, "attempt": self.attempts, "dropped": self._agreement.forgotten}
        counts |= {f"ladder {k}": v for k, v in self._parts.decider.ladder.state_dict().items()}
        return {**self._parts.settings.known(), **{k: str(v) for k, v in counts.items()}}

    @raises_rank_lost
    def step(
        self, closure: SampleClosure | None = None, *, samples: Samples | None = None, settle: bool = True
    ) -> StepReport:
        """Observes the gradients, agrees with the other ranks, decides, acts and records.

        Args:
            closure: computes the same batch again: returns its loss, or calls ``backward`` for each of
                several micro-batches and returns None. Used where a step looks bad, to distinguish a hardware
                fault from bad data. Give it on every rank or on none. A deferred guard uses it in attempts
                that the host decides: a first bad batch is skipped.
            samples: the ids of this rank's samples, integers. At an incident that is the batch's, the bad
                ones are found and named: ``closure(ids)`` then computes these samples alone, as it computes
                the whole batch without an argument; it runs no ``loss.backward()`` of its own.
            settle: False where the loop advances the schedule itself: then call ``settle`` after that.

        Returns:
            What was done; from a deferred guard, what was done in the step before.

        Raises:
            GuardHalt: on all ranks, when the budget is spent; the last healthy state has been restored.
            RankDivergence: on all ranks, when their decision states differ, or their gradients did.
            GuardError: if ``backward`` was not called.
        """
        self._wrapped.check_step(closure)
        again = None if closure is None else partial(self._backward.again, closure)
        if again is not None and not self._state.checks.pending:
            again()  # as torch.optim has it: the closure is all there is
        self._parts.search.begin(closure, samples, self._backward.again)
        try:
            run = partial(self._own_loss.around, partial(self._pipeline.run, again, settle=settle))
            report = self._attention.around(run, self.attempts)
        finally:
            self._state.checks.after_step()
        self._state.outside.watch()
        if report.action != "rolled_back":  # a deferred guard may have dropped the row with the batch
            self._backward.checkpoint = False
        return report

    def expect_change(self, reason: str, steps: int = 50) -> None:
        """Announces a change on purpose, on every rank: levels are relearned in the next ``steps`` attempts.

        Meanwhile only the non-finite and the overwhelming count.

        Args:
            reason: what changes, for the journal.
            steps: attempts until the new levels are known; call it before the batch on which it shows.

        Raises:
            GuardError: ``steps`` is no number from 1 on, or there is no reason.
        """
        check_change(reason, steps)
        self._parts.decider.expect_change(self._pipeline.step, steps)
        self._parts.recorder.change(reason, step=self.steps, attempt=self.attempts, steps=steps)

    @raises_rank_lost
    def adopt_state(self) -> None:
        """Makes the present weights and buffers the healthy state: no rollback goes beyond it.

        Call it on every rank after changing them (best weights loaded, a codebook restarted). A step in
        flight is judged first: the next ``step`` or ``flush`` reports it. Raises as ``step`` does.
        """
        if self._pipeline.in_flight:
            with kept_weights(self._model, self._parts.observer.parameters):
                self._pipeline.judge_late()
        self.expect_change("state adopted")
        self._state.start(self._pipeline.step)
        self._state.outside.watch()

    def settle(self) -> None:
        """Ends an applied step: updates the health of the snapshots, and takes one when due.

        Only after ``step(settle=False)``, once everything that the snapshot must hold has advanced.
        """
        self._pipeline.settle()

    def snapshot(self) -> None:
        """Takes a snapshot of the present state in memory, out of turn.

        Call it where a checkpoint is written: a run that is resumed from the checkpoint can then roll back to
        the same step as the run that was never interrupted.
        """
        self._state.take_snapshot(self._pipeline.step)

    @raises_rank_lost
    def flush(self) -> StepReport | None:
        """Waits for the step that a deferred guard has not reported yet; None where there is none.

        Call it on every rank after the last step. Raises as ``step`` does.
        """
        return self._pipeline.flush()

    def state_dict(self) -> dict[str, Any]:
        """All that the guard remembers, a step in flight included; save the model's, the optimizer's and the
        scheduler's state beside it."""
        pipeline, parts = self._pipeline, self._parts
        return {
            "step": pipeline.step,
            "attempt": pipeline.attempt,
            "late": pipeline.late(),
            "last_local": float(pipeline.last_local),
            "noise_scale": pipeline.noise.state_dict(),
            "judge": parts.decider.state_dict(),
            "actor": self._state.state_dict(),
            "ledger": parts.recorder.state_dict(),
            "metrics": None if self.metrics is None else self.metrics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes. Load all else before, random number generators too: that becomes the first snapshot."""
        check_saved(state)
        pipeline, parts = make_pipeline(self._parts), self._parts
        pipeline.step, pipeline.attempt = int(state["step"]), int(state["attempt"])
        pipeline.last_local = float(state["last_local"])
        pipeline.noise.load_state_dict(state["noise_scale"])
        self._pipeline = pipeline
        parts.decider.load_state_dict(state["judge"])
        parts.recorder.load_state_dict(state["ledger"])
        if self.metrics is not None and state["metrics"] is not None:
            self.metrics.load_state_dict(state["metrics"])
        elif state["metrics"] is not None:
            self.totals.load_state_dict(state["metrics"]["totals"])
        self._state.load_state_dict(state["actor"], pipeline.step)
        parts.repairs.returned(pipeline.step)
        resolve_saved(pipeline, parts, state)

    def _before_first_backward(self, model: nn.Module) -> None:
        """Until the first backward, each forward checks whether weights were loaded after construction."""

        def refresh(_: nn.Module) -> None:
            if self._backward.started:
                handle.remove()
            else:
                self._state.refresh()

        handle = model.register_forward_pre_hook(ForwardHook(refresh))
