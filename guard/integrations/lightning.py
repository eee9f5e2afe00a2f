"""The guard as a callback of Lightning's ``Trainer``.

A callback cannot veto a step: Lightning runs forward, backward and ``optimizer.step`` inside one call of
its precision plugin. For the length of a fit this callback therefore replaces that one method of the
plugin: it runs the closure (forward and backward), then the hooks, then the guard instead of the optimizer.
In the same way the schedules do not advance on a step that was not applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from torch import Tensor
from torch.optim import Optimizer

from guard import GradientGuard, GuardConfig, GuardError, StepReport
from guard.integrations.session import GuardOptions, GuardSession
from guard.integrations.torchvision_compat import ensure_torchvision

ensure_torchvision()

from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy  # noqa: E402


class GradientGuardCallback(Callback):
    """Guards a fit: ``Trainer(callbacks=[GradientGuardCallback(GuardConfig(), journal="incidents.jsonl")])``.

    Automatic optimization on one device or DDP, in any precision; ``gradient_clip_val`` stays unset, because
    the guard clips. Skips, rollbacks and the gradient norm are logged as ``guard/...``; the guard's state is
    part of Lightning's checkpoints. ``trainer.global_step`` counts attempts, ``callback.guard.steps`` the
    steps applied. ``fit`` raises ``GuardHalt`` when the budget is spent.

    Args:
        config: what to watch and what to do; ``recovery.data`` must be ``advance``.
        options: ``state``, ``data``, ``ema``, ``metrics``, ``journal`` and ``job``, as for ``GradientGuard``.
            ``data`` is never rolled back here; its ``last_ids`` name the samples of an incident.
    """

    def __init__(self, config: GuardConfig | None = None, **options: Unpack[GuardOptions]) -> None:
        self._session = GuardSession(config, **options)
        self._stepped = False
        self._restore: list[Callable[[], None]] = []

    @property
    def guard(self) -> GradientGuard | None:
        """The guard of the present or last fit; None before the first."""
        return self._session.guard

    @property
    def report(self) -> StepReport | None:
        """What the last optimizer step did."""
        return self._session.report

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what cannot be guarded, before the first batch."""
        _check(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Everything has been restored: the present state is the first snapshot."""
        self.teardown()
        self._session.begin(
            trainer.strategy.model,
            trainer.optimizers[0],
            schedules=[config.scheduler for config in trainer.lr_scheduler_configs],
            scaler=_scaler(trainer),
        )
        self._take_over_step(trainer.strategy.precision_plugin)
        self._take_over_schedules(trainer.fit_loop.epoch_loop)

    def on_before_backward(self, trainer: Trainer, _: LightningModule, loss: Tensor) -> None:
        """Sends the ranks the loss that ``training_step`` returned: Lightning has divided and scaled it."""
        scaler = _scaler(trainer)
        scale = 1.0 if scaler is None else scaler.get_scale()
        self._session.observe(loss.detach() * (trainer.accumulate_grad_batches / scale))

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """The schedules have advanced."""
        if not self._stepped:
            return
        self._stepped = False
        self._session.settle()
        report = self._session.report
        if report is None:
            return
        self.log_dict({f"guard/{name}": value for name, value in self._session.counts().items()})
        self.log_dict({"guard/grad_norm": report.grad_norm, "guard/clip_coef": report.clip_coef})
        if report.stop:
            trainer.should_stop = True

    def teardown(self, *_: Any, **__: Any) -> None:
        """Restores the methods that were replaced."""
        while self._restore:
            self._restore.pop()()

    on_exception = teardown

    def state_dict(self) -> dict[str, Any]:
        """The guard's state, for Lightning's checkpoint."""
        return self._session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a checkpoint when the fit starts."""
        self._session.load_state_dict(state_dict)

    def _take_over_step(self, plugin: Any) -> None:
        def optimizer_step(
            optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **_: Any
        ) -> Any:
            loss = closure()
            if loss is not None and getattr(plugin, "scaler", None) is not None:
                plugin.scaler.unscale_(optimizer)
            plugin._after_closure(model, optimizer)  # hooks that may read the gradients
            self._session.step()
            self._stepped = True
            return loss

        plugin.optimizer_step = optimizer_step
        self._restore.append(lambda: delattr(plugin, "optimizer_step"))

    def _take_over_schedules(self, loop: Any) -> None:
        advance = loop.update_lr_schedulers

        def update_lr_schedulers(interval: str, update_plateau_schedulers: bool) -> None:
            if interval != "step" or update_plateau_schedulers or self._session.applied:
                advance(interval, update_plateau_schedulers)

        loop.update_lr_schedulers = update_lr_schedulers
        self._restore.append(lambda: delattr(loop, "update_lr_schedulers"))


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.strategy.precision_plugin, "scaler", None)


def _check(trainer: Trainer, pl_module: LightningModule) -> None:
    strategy = trainer.strategy
    if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
        raise GuardError(
            f"{len(trainer.optimizers)} optimizers, automatic_optimization is "
            f"{pl_module.automatic_optimization}: the callback guards one optimizer under automatic "
            "optimization; elsewhere use guard.GradientGuard in training_step"
        )
    if trainer.gradient_clip_val:
        raise GuardError(
            f"gradient_clip_val is {trainer.gradient_clip_val}, but the guard clips: leave it unset and give "
            f"GuardConfig(clip=ClipConfig(max_norm={trainer.gradient_clip_val}))"
        )
    if type(pl_module).configure_gradient_clipping is not LightningModule.configure_gradient_clipping:
        raise GuardError("configure_gradient_clipping is overridden, but the guard clips: remove it")
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or strategy.handles_gradient_accumulation:
        raise GuardError(
            f"{type(strategy).__name__} does not leave whole gradients on each rank: use one device or ddp"
        )
