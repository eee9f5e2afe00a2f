"""Hugging Face's ``Trainer``, guarded.

A ``TrainerCallback`` cannot veto a step, so this is a subclass. For the length of a training it replaces
three methods of the trainer's accelerator: ``backward`` (which sends the ranks the loss), ``clip_grad_norm_``
(the guard clips) and the prepared optimizer's ``step``. A step that is not applied sets the optimizer's
``step_was_skipped``, and ``Trainer`` then does not advance its schedule.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

from guard import ClipConfig, GradientGuard, GuardConfig, GuardMetrics, Journal, StepReport
from guard.act.snapshot import Stateful
from guard.errors import GuardError, GuardHalt
from guard.integrations.session import GuardSession
from guard.integrations.torchvision_compat import ensure_torchvision

ensure_torchvision()

from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments  # noqa: E402
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint  # noqa: E402

STATE_NAME = "gradguard.pt"
WHOLE_GRADIENTS = ("NO", "MULTI_CPU", "MULTI_GPU")


class GuardedTrainer(Trainer):
    """A ``Trainer`` with a gradient guard: ``GuardedTrainer(model, args, ..., guard_config=GuardConfig())``.

    Takes all arguments of ``Trainer``. To guard another trainer, inherit from both:
    ``class GuardedSFTTrainer(GuardedTrainer, SFTTrainer)``. One device or DDP.

    The guard clips: to ``args.max_grad_norm``, or as ``guard_config.clip`` says if that is given. Skips and
    rollbacks are logged as ``guard_...``; the guard's state is in each checkpoint as ``gradguard.pt``.
    ``state.global_step`` counts attempts, ``trainer.guard.steps`` the steps applied. When the budget is
    spent, training ends as after the last step, and then ``train`` raises ``GuardHalt``.

    Args:
        guard_config: what to watch and what to do; ``recovery.data`` must be ``advance``.
        guard_state: what else a rollback restores, by name.
        guard_data: the data cursor, whose ``last_ids`` name the samples of an incident.
        guard_ema: averaged weights, see ``GradientGuard``.
        metrics: a ``GuardMetrics``, or a Prometheus registry to put a new one on.
        journal: a ``Journal`` or the path of one; written on rank 0.
        job: the name in incidents and metrics.
    """

    def __init__(
        self,
        *args: Any,
        guard_config: GuardConfig | None = None,
        guard_state: Mapping[str, Stateful] | None = None,
        guard_data: Stateful | None = None,
        guard_ema: Stateful | None = None,
        metrics: GuardMetrics | CollectorRegistry | None = None,
        journal: Journal | str | Path | None = None,
        job: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        config = _with_limit(guard_config or GuardConfig(), self.args.max_grad_norm)
        session = GuardSession(
            config,
            state=guard_state,
            data=guard_data,
            ema=guard_ema,
            metrics=metrics,
            journal=journal,
            job=job,
        )
        self._gradguard = _AcceleratorHooks(self, session)
        self.add_callback(self._gradguard)

    @property
    def guard(self) -> GradientGuard | None:
        """The guard of the present or last training; None before the first."""
        return self._gradguard.session.guard

    @property
    def report(self) -> StepReport | None:
        """What the last optimizer step did."""
        return self._gradguard.session.report

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trains as ``Trainer.train`` does.

        Raises:
            GuardHalt: after everything that ends a training; the last healthy state has been restored.
        """
        hooks = self._gradguard
        hooks.halt = None
        hooks.session.load_state_dict(_saved(resume_from_checkpoint, self.args.output_dir))
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            hooks.release()
        if hooks.halt is not None:
            raise hooks.halt
        return output

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """As in ``Trainer``; before the first one, when everything has been restored, the guard is made."""
        self._gradguard.begin(model)
        return super().training_step(model, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the guard's counts to what is logged of the training."""
        if "loss" in logs:
            counts = self._gradguard.session.counts()
            logs.update({f"guard_{name}": value for name, value in counts.items()})
        super().log(logs, *args, **kwargs)


class _AcceleratorHooks(TrainerCallback):
    """Replaces the accelerator's methods while a training runs."""

    def __init__(self, trainer: GuardedTrainer, session: GuardSession) -> None:
        self.session = session
        self.halt: GuardHalt | None = None
        self._trainer = trainer
        self._grad_norm = torch.zeros(())
        self._restore: list[Callable[[], None]] = []

    def begin(self, model: nn.Module) -> None:
        """Creates the guard and replaces the methods, once."""
        if self._restore:
            return
        trainer = self._trainer
        accelerator, optimizer = trainer.accelerator, trainer.optimizer
        _check(accelerator.distributed_type, str(trainer.args.optim))
        schedules = [trainer.lr_scheduler]
        self.session.begin(model, optimizer.optimizer, schedules=schedules, scaler=accelerator.scaler)
        self._replace(accelerator, "backward", self._backward(accelerator.backward))
        self._replace(accelerator, "clip_grad_norm_", self._skip_clipping)
        self._replace(optimizer, "step", self._step(optimizer))

    def release(self) -> None:
        """Restores the accelerator's own methods; the next step creates a new guard."""
        while self._restore:
            self._restore.pop()()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Also for a training that is restarted with a smaller batch."""
        self.release()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.session.settle()
        report = self.session.report
        if self.halt is not None or (report is not None and report.stop):
            self._trainer.control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Puts the guard's state into the checkpoint."""
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if args.should_save and not args.save_only_model and folder.is_dir():
            unfinished = folder / f"{STATE_NAME}.part"
            torch.save(self.session.state_dict(), unfinished)
            unfinished.replace(folder / STATE_NAME)

    def _backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        def observed(loss: Tensor, **kwargs: Any) -> None:
            # Each micro-batch brings its share of the step's loss; the guard takes the mean of what it sees.
            self.session.observe(loss.detach() * self._trainer.current_gradient_accumulation_steps)
            backward(loss, **kwargs)

        return observed

    def _skip_clipping(self, *_: Any, **__: Any) -> Tensor:
        self._trainer.accelerator.unscale_gradients()
        return self._grad_norm  # logged only after the step, which fills it in

    def _step(self, optimizer: Any) -> Callable[..., None]:
        def step(*_: Any, **__: Any) -> None:
            try:
                self.session.step()
            except GuardHalt as halt:
                self.halt = halt
            optimizer._is_overflow = not self.session.applied
            optimizer._opt_called = True
            if self.session.report is not None:
                self._grad_norm.fill_(self.session.report.grad_norm)

        # The mark, like ``_opt_called``, is that of a schedule: without it, it warns that steps go uncounted.
        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
        return step

    def _replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        own = vars(owner).get(name)
        setattr(owner, name, method)
        self._restore.append(lambda: delattr(owner, name) if own is None else setattr(owner, name, own))


def _check(distributed_type: Any, optim: str) -> None:
    if distributed_type.name not in WHOLE_GRADIENTS:
        raise GuardError(
            f"{distributed_type} does not leave whole gradients on each rank: use one device or DDP"
        )
    if "lomo" in optim or "layerwise" in optim:
        raise GuardError(f"optim={optim} updates the weights during backward: choose another one")


def _with_limit(config: GuardConfig, max_norm: float | None) -> GuardConfig:
    if "clip" in config.model_fields_set or not max_norm:
        return config
    return config.model_copy(update={"clip": ClipConfig(max_norm=max_norm)})


def _saved(resume: str | os.PathLike[str] | bool | None, output_dir: str) -> dict[str, Any]:
    """The guard's state in the checkpoint that ``resume`` selects; empty if there is none."""
    folder = get_last_checkpoint(output_dir) if resume is True else resume
    path = Path(folder, STATE_NAME) if folder else None
    if path is None or not path.exists():
        return {}
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
