"""The guard in a training loop: observe, agree, decide, act, record."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from prometheus_client import CollectorRegistry
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from guard.act import DATA, Actor, Outcome
from guard.agree import Agreed, Agreement, digest
from guard.clips import ClipConfig, make_clipper
from guard.config import GuardConfig
from guard.decide import Decision, Ladder
from guard.detect import SpikeDetector, Verdict
from guard.errors import GuardError, GuardHalt
from guard.ledger import Evidence, Ledger
from guard.local_norms import CommHook, LocalNorms, find_ddp, give_hook, local_norms
from guard.lost import names_the_lost, report_failure
from guard.metrics import GuardMetrics
from guard.noise_scale import NoiseEstimate, NoiseScale
from guard.observe import Observation, Observer, parameter_names
from guard.record import Incident, Journal
from guard.report import StepReport
from guard.snapshot import Stateful

_OK = Verdict("ok", "loss", 0.0, None)


class GradientGuard:
    """Stands where ``clip_grad_norm_`` and ``optimizer.step`` stood, and survives what they do not.

    Args:
        model: the module, or its DDP wrapper. Buffers are protected on a skip.
        optimizer: any ``torch.optim`` optimizer.
        config: what to watch and how far to go.
        scheduler: stepped by the guard, once for each applied step.
        scaler: a ``GradScaler``, if the loss is scaled.
        state: what else a rollback rewinds, by name. ``data`` is the data cursor: rewound only when
            ``recovery.data`` is ``replay``; its ``last_ids``, if there, name the samples of an incident.
        metrics: a ``GuardMetrics``, or a Prometheus registry to put a new one on.
        journal: a ``Journal`` or the path of one; written on rank 0.
        process_group: the ranks that train together; default: the default group, if there is one.
        job: the name in incidents and metrics.

    Every rank must construct the guard and call ``backward`` and ``step`` alike.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: GuardConfig | None = None,
        *,
        scheduler: Any | None = None,
        scaler: torch.amp.GradScaler | None = None,
        state: Mapping[str, Stateful] | None = None,
        metrics: GuardMetrics | CollectorRegistry | None = None,
        journal: Journal | str | Path | None = None,
        process_group: dist.ProcessGroup | None = None,
        job: str = "",
    ) -> None:
        self.config = config or GuardConfig()
        _check_states(scheduler, state or {})
        self._observer = Observer(parameter_names(model))
        if not self._observer.parameters:
            raise GuardError("the model has no parameter that takes gradients: nothing to guard")
        self._agreement = Agreement(process_group, self._observer.parameters[0].device)
        self._detector = SpikeDetector(self.config.detect)
        clip = self.config.clip if self.config.mode != "off" else ClipConfig(kind="off")
        self._clipper = make_clipper(clip, self._observer.parameters, optimizer)
        self._ladder = Ladder(self.config.budget, self.config.on_suspect)
        self._data = (state or {}).get(DATA)
        self._actor = Actor(
            model,
            optimizer,
            self.config,
            observer=self._observer,
            scheduler=scheduler,
            scaler=scaler,
            states={"guard.detector": self._detector, "guard.clip": self._clipper, **(state or {})},
        )
        self.metrics = _as_metrics(metrics, job)
        shadow = self.config.mode == "shadow"
        self._ledger = Ledger(job, self._observer.names, self.metrics, self._journal(journal), shadow)
        self._local, self._ddp = self._local_norms(model), find_ddp(model)
        self._last_local = math.nan
        self._last_norm = math.nan
        self._noise = NoiseScale()
        self._step = 0
        self._attempt = 0
        self._stop = False
        self._unsettled: bool | None = None
        self._seconds = 0.0
        self._layer_norms = np.zeros(len(self._observer.names))
        self._actor.start(self._step)
        self._begun = False
        self._before_first_backward(model)

    @property
    def steps(self) -> int:
        """Optimizer steps applied in the history that stands."""
        return self._step

    @property
    def attempts(self) -> int:
        """Calls of ``step`` so far."""
        return self._attempt

    @property
    def layer_norms(self) -> dict[str, float]:
        """The gradient norm of every parameter in the last step, before clipping."""
        return dict(zip(self._observer.names, self._layer_norms.tolist(), strict=True))

    @property
    def noise_scale(self) -> NoiseEstimate | None:
        """The gradient noise scale, a hint on batch size; None until known (it needs two ranks)."""
        return self._noise.estimate(len(self._samples()) or None)

    def report_failure(self, error: BaseException) -> None:
        """Tells the other ranks why this one fails: theirs is a ``RankLost`` that names it."""
        report_failure(error)

    def request_stop(self) -> None:
        """Asks all ranks to stop: the next step's report has ``stop`` set on every rank."""
        self._stop = True

    def register_comm_hook(self, state: Any, hook: CommHook) -> None:
        """Instead of DDP's method of this name, before the first backward: DDP takes one hook only.

        Args:
            state: passed to the hook.
            hook: called as ``hook(state, bucket)``, for each bucket of local gradients.

        Raises:
            GuardError: the model is not in DDP, or the hook's second argument has another name.
        """
        if self._local is None:
            give_hook(self._ddp, state, hook)
        else:
            self._local.register_comm_hook(state, hook)

    @names_the_lost
    def backward(self, loss: Tensor) -> None:
        """Runs ``loss.backward()`` and, while it runs, tells the other ranks this rank's loss.

        Args:
            loss: 0-dim, the mean over this rank's (micro-)batch. Call once for each micro-batch.
        """
        self.observe_loss(loss)
        self._actor.scaler.scale(loss).backward()

    @names_the_lost
    def observe_loss(self, loss: Tensor) -> None:
        """The half of ``backward`` that is the guard's, for a loop that runs the other half itself.

        Call it right before the loss is differentiated, once for each micro-batch, on every rank.

        Args:
            loss: as for ``backward``; not multiplied by the scaler.
        """
        started = time.perf_counter()
        self._begun = True
        self._agreement.send(
            loss,
            stop=self._stop,
            local_norm=self._last_local,
            grad_norm=self._last_norm,
            digest=self._digest("step"),
        )
        if self._local is not None:
            self._local.arm(self._wants_local(), self._actor.scaler.factor())
        self._seconds += time.perf_counter() - started

    @names_the_lost
    def step(self, *, settle: bool = True) -> StepReport:
        """Observes the gradients, agrees with the other ranks, decides, acts and records.

        Args:
            settle: False where the loop advances the schedule itself: then call ``settle`` after that.

        Raises:
            GuardHalt: on all ranks, when the budget is spent; the last healthy state has been restored.
            RankDivergence: on all ranks, when their decision states differ, or their gradients did.
            GuardError: if ``backward`` was not called.
        """
        started = time.perf_counter()
        agreed = self._agreement.receive()
        self._noise.complete(agreed.local_norms.tolist())
        overflow = self._actor.scaler.unscale()
        seen = self._observer.observe()
        self._attempt += 1
        self._layer_norms, self._last_norm = seen.layer_norms, seen.grad_norm
        handled = overflow and math.isfinite(agreed.loss)
        evidence = self._decide(agreed, seen, handled)
        self._noise.begin(seen.grad_norm, accepted=evidence.verdict.kind == "ok" and not handled)
        local_norms = self._evidence_norms(evidence.verdict)
        samples = [] if evidence.verdict.kind == "ok" else self._samples()
        outcome = self._actor.overflow(self._step) if handled else self._act(evidence)
        incident = self._record(evidence, outcome, local_norms, samples)
        if settle:
            self.settle()
        report = self._report(started, evidence, outcome, incident, overflow=handled)
        if evidence.decision.rung == "halt" and incident is not None and self.config.mode == "exact":
            raise GuardHalt(f"step {evidence.step}: {evidence.decision.reason}", incident)
        return report

    def settle(self) -> None:
        """Ends an applied step: judges the snapshots by it, and takes one when due.

        Only after ``step(settle=False)``, once everything that the snapshot must hold has advanced.
        """
        clean, self._unsettled = self._unsettled, None
        if clean is not None:
            self._actor.settle(self._step, clean=clean)

    def _decide(self, agreed: Agreed, seen: Observation, overflow: bool) -> Evidence:
        verdict, decision = _OK, Decision("apply", "ok")
        if self.config.mode != "off" and not overflow:
            verdict = self._detector.observe(agreed.loss, seen.grad_norm)
            can_roll_back = self._actor.can_roll_back()
            decision = self._ladder.decide(verdict, attempt=self._attempt, can_roll_back=can_roll_back)
        typical = self._detector.typical("grad_norm")
        return Evidence(
            attempt=self._attempt,
            step=self._step,
            agreed=agreed,
            grad_norm=seen.grad_norm,
            layer_norms=seen.layer_norms,
            verdict=verdict,
            decision=decision,
            clip=self._clipper.plan(
                seen,
                typical=typical,
                suspect=decision.rung == "clip",
                accepted=decision.rung == "apply" and not overflow,
            ),
            learning_rate=self._actor.learning_rate,
        )

    def _act(self, evidence: Evidence) -> Outcome:
        if self.config.mode != "exact":
            return self._actor.apply(self._step, lambda: None)
        rung = evidence.decision.rung
        if rung == "skip":
            return self._actor.skip(self._step)
        if rung == "rollback":
            return self._actor.roll_back(self._step)
        if rung == "halt":
            return self._halt()
        return self._actor.apply(self._step, lambda: self._clipper.clip_(evidence.clip))

    def _halt(self) -> Outcome:
        if not self._actor.can_roll_back():
            return self._actor.skip(self._step)
        target = self._actor.rewind()
        return Outcome("rolled_back", target.step, target.step, self._step - target.step)

    def _record(
        self, evidence: Evidence, outcome: Outcome, local_norms: Any, samples: list[int]
    ) -> Incident | None:
        self._step = outcome.step
        begins = self._ledger.note(evidence)
        clean = evidence.verdict.kind == "ok"
        if outcome.action in ("applied", "clipped"):
            if clean:
                self._ledger.clean(evidence, self._step)
            self._unsettled = clean
        if not begins:
            return None
        return self._ledger.incident(
            evidence, outcome, local_norms=local_norms, samples=samples, recovery=self._recovery(outcome)
        )

    def _report(
        self,
        started: float,
        evidence: Evidence,
        outcome: Outcome,
        incident: Incident | None,
        *,
        overflow: bool,
    ) -> StepReport:
        seconds = self._seconds + time.perf_counter() - started - outcome.optimizer_seconds
        self._seconds = 0.0
        report = StepReport(
            step=self._step,
            attempt=self._attempt,
            action=outcome.action,
            loss=evidence.agreed.loss,
            grad_norm=evidence.grad_norm,
            clip_coef=outcome.clip_coef,
            clip_threshold=evidence.clip.limit,
            verdict=evidence.verdict,
            learning_rate=evidence.learning_rate,
            guard_seconds=seconds,
            rolled_back_to=outcome.rolled_back_to,
            incident=incident,
            stop=evidence.agreed.stop,
            overflow=overflow,
            local_norms=None if self._local is None else evidence.agreed.local_norms.tolist(),
            recovery=self._actor.recovery.strengths(),
        )
        if self._local is not None:
            self._last_local = self._local.take()
        estimate = self._noise.estimate()
        if self.metrics is not None and estimate is not None:
            self.metrics.noise_scale(estimate.ratio)
        self._ledger.step(report, self.layer_norms if self.metrics is not None else None)
        return report

    def state_dict(self) -> dict[str, Any]:
        """All that the guard remembers; the model's and the optimizer's state are saved beside it."""
        return {
            "step": self._step,
            "attempt": self._attempt,
            "last_local": self._last_local,
            "noise_scale": self._noise.state_dict(),
            "detector": self._detector.state_dict(),
            "clip": self._clipper.state_dict(),
            "ladder": self._ladder.state_dict(),
            "recovery": self._actor.recovery.state_dict(),
            "ledger": self._ledger.state_dict(),
            "metrics": None if self.metrics is None else self.metrics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes. Load all else before, random number generators too: it becomes the first snapshot."""
        self._step, self._attempt = int(state["step"]), int(state["attempt"])
        self._last_local, self._last_norm = float(state["last_local"]), math.nan
        if "noise_scale" in state:
            self._noise.load_state_dict(state["noise_scale"])
        self._detector.load_state_dict(state["detector"])
        self._clipper.load_state_dict(state["clip"])
        self._ladder.load_state_dict(state["ladder"])
        self._actor.recovery.load_state_dict(state["recovery"])
        self._ledger.load_state_dict(state["ledger"])
        if self.metrics is not None and state["metrics"] is not None:
            self.metrics.load_state_dict(state["metrics"])
        self._actor.start(self._step)

    def _before_first_backward(self, model: nn.Module) -> None:
        """Weights may be loaded after the guard was made: until the first backward each forward looks."""

        def refresh(*_: Any) -> None:  # a function, since a copy of the model must not copy the guard
            if self._begun:
                handle.remove()
            else:
                self._actor.refresh()

        handle = model.register_forward_pre_hook(refresh)

    def _digest(self, phase: Literal["step", "evidence"]) -> int:
        return digest(phase, self._step, self._attempt, self._ladder.state_dict(), self.config.mode)

    def _journal(self, journal: Journal | str | Path | None) -> Journal | None:
        if journal is None or self._agreement.rank != 0:
            return None
        return journal if isinstance(journal, Journal) else Journal(journal)

    def _local_norms(self, model: nn.Module) -> LocalNorms | None:
        if self._observer.shards is not None:
            return None  # FSDP2 reduces a gradient before it becomes that of a parameter
        if self.config.local_norm == "off" or self.config.mode == "off" or self._agreement.world_size == 1:
            return None
        return local_norms(self._observer.parameters, model, self.config.local_norm_by)

    def _wants_local(self) -> bool:
        every = 1 if self.config.local_norm == "always" else int(self.config.local_norm)
        return (self._attempt + 1) % every == 0

    def _evidence_norms(self, verdict: Verdict) -> Any:
        """Local norms of this very step, gathered only when the agreed verdict asks: all ranks come here."""
        if self._local is None or verdict.kind == "ok":
            return np.full(self._agreement.world_size, np.nan)
        return self._agreement.collect(self._local.take(), digest=self._digest("evidence"))

    def _samples(self) -> list[int]:
        return [int(i) for i in getattr(self._data, "last_ids", ())]

    def _recovery(self, outcome: Outcome) -> dict[str, Any] | None:
        if outcome.action != "rolled_back":
            return None
        cooldown = self.config.recovery.cooldown_steps
        return {
            **self._actor.recovery.strengths(),
            "until_step": outcome.step + cooldown,
            "data": self.config.recovery.data,
        }


def _check_states(scheduler: Any, states: Mapping[str, Stateful]) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        raise GuardError(
            "ReduceLROnPlateau needs a metric at each step, which the guard does not have: "
            'step it yourself and pass it as state={"plateau": scheduler}'
        )
    for name, stateful in states.items():
        if not (hasattr(stateful, "state_dict") and hasattr(stateful, "load_state_dict")):
            kind = type(stateful).__name__
            raise GuardError(f"state[{name!r}] is a {kind}: give it state_dict and load_state_dict")


def _as_metrics(metrics: GuardMetrics | CollectorRegistry | None, job: str) -> GuardMetrics | None:
    if isinstance(metrics, CollectorRegistry):
        created = GuardMetrics(job=job)
        created.register(metrics)
        return created
    return metrics
