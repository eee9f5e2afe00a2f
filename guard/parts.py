"""The parts that carry out a step: made by ``GradientGuard``, used by its pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from guard.act.accumulation import GradAccumulation
from guard.act.training_state import TrainingState
from guard.agree.agreement import Agreement
from guard.agree.settings import RankSettings
from guard.config import GuardConfig
from guard.decide.bad_samples import SampleSearch
from guard.decide.decider import Decider
from guard.decide.recompute import BatchReplayer
from guard.observe.local_norms import LocalNorms
from guard.observe.observer import Observer
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
