"""The parts that carry out a step, made for a ``GradientGuard`` and used by its pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from guard.act.accumulation import GradAccumulation
from guard.act.rollback import NamesOnly
from guard.act.snapshot import Stateful
from guard.act.training_state import TrainingState
from guard.agree.agreement import Agreement
from guard.agree.settings import RankSettings
from guard.config import GuardConfig
from guard.decide.bad_samples import SampleSearch
from guard.decide.decider import Decider
from guard.decide.recompute import BatchReplayer
from guard.observe.local_norms import LocalNorms, local_norms
from guard.observe.observer import Observer
from guard.observe.sharded_norms import sharded_norms
from guard.record.journal import Journal
from guard.record.metrics import GuardMetrics
from guard.record.recorder import Recorder
from guard.repairs import Repairs


@dataclass(frozen=True, slots=True)
class StepParts:
    """The parts that carry out the five verbs; ``last_ids`` of the cursor ``data`` name the samples."""

    config: GuardConfig
    observer: Observer
    agreement: Agreement
    decider: Decider
    state: TrainingState
    recorder: Recorder
    accumulation: GradAccumulation
    replayer: BatchReplayer
    local: LocalNorms | None
    data: Any
    device: torch.device
    settings: RankSettings
    search: SampleSearch
    repairs: Repairs


def make_parts(
    model: nn.Module,
    optimizer: Optimizer,
    config: GuardConfig,
    *,
    observer: Observer,
    agreement: Agreement,
    settings: RankSettings,
    scheduler: Any | None,
    scaler: torch.amp.GradScaler | None,
    states: Mapping[str, Stateful],
    data: Stateful | None,
    ema: Stateful | None,
    metrics: GuardMetrics | None,
    journal: Journal | None,
    process_group: dist.ProcessGroup | None,
    job: str,
    by_host: Callable[[], bool],
) -> StepParts:
    """Makes the parts, of arguments of ``GradientGuard`` that have been checked.

    Args:
        by_host: whether the host decides the coming attempt.
    """
    decider = Decider(config, observer.names, observer.parameters, optimizer, observer.shards)
    state = TrainingState(
        model,
        optimizer,
        config,
        observer=observer,
        scheduler=scheduler,
        scaler=scaler,
        states={"guard.detector": decider.detector, "guard.clip": decider.clipper, **states},
        data=data,
        ema=ema,
    )
    decider.new_level.only_statistics = state.only_statistics
    rewinds = data is not None and not isinstance(data, NamesOnly)
    decider.rate.follow(state.oldest_step, replays=rewinds)
    state.keep_oldest(decider.rate.needs_start)
    replays = rewinds or config.recovery.data == "replay"
    repairs = Repairs(
        model, optimizer, observer, state, config, process_group, agreement.exchange, replays=replays
    )
    replayer = BatchReplayer(model)
    local = "off" not in (config.local_norm, config.mode) and agreement.world_size > 1
    norms = local_norms if observer.shards is None else sharded_norms
    return StepParts(
        config=config,
        observer=observer,
        agreement=agreement,
        decider=decider,
        state=state,
        recorder=Recorder(job, observer.names, metrics, journal, config),
        accumulation=GradAccumulation(model, observer.parameters, active=by_host),
        replayer=replayer,
        local=norms(observer.parameters, model, config.local_norm_by) if local else None,
        data=data,
        device=observer.parameters[0].device,
        settings=settings,
        search=SampleSearch(model, observer, agreement, replayer, state.shield, data),
        repairs=repairs,
    )
