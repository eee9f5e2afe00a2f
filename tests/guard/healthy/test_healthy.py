"""Unruly but healthy trainings, with the guard at its defaults: it stays out of their way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard import GradientGuard
from tests.guard.healthy.further import FURTHER, imbalance
from tests.guard.healthy.spiking import SPIKING
from tests.guard.healthy.trainings import TRAININGS, Update, Wrap

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
OTHER_SEEDS = (10, 11, 12)
MOST_SKIPPED = 0.005
Training = Callable[[int, Wrap], float]


class Spread:
    """The metrics of the plain loop."""

    def __init__(self, training: Training, seeds: tuple[int, ...]) -> None:
        self.metrics = [training(seed, plain) for seed in seeds]

    def holds(self, metrics: list[float]) -> bool:
        """Whether their mean is at most the width of the spread above the plain loop's mean."""
        width = max(self.metrics) - min(self.metrics)
        return mean(metrics) <= mean(self.metrics) + width


def plain(model: nn.Module, optimizer: Optimizer, scheduler: Any = None) -> Update:
    """The update that a loop without a guard makes."""

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()

    return update


class Guarded:
    """The same with a guard of its own for each model; counts what the guards did."""

    def __init__(self) -> None:
        self.actions: Counter[str] = Counter()

    def __call__(self, model: nn.Module, optimizer: Optimizer, scheduler: Any = None) -> Update:
        guard = GradientGuard(model, optimizer, scheduler=scheduler)

        def update(loss: Tensor) -> None:
            optimizer.zero_grad()
            guard.backward(loss)
            self.actions[guard.step().action] += 1

        return update


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_left_alone(training: Training, seeds: tuple[int, ...]) -> None:
    guarded, spread = Guarded(), Spread(training, seeds)
    assert spread.holds([training(seed, guarded) for seed in seeds])
    assert guarded.actions["rolled_back"] == 0
    assert guarded.actions["skipped"] <= MOST_SKIPPED * guarded.actions.total()


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.__name__)
def test_a_healthy_run_is_left_alone(training: Training) -> None:
    assert_left_alone(training, SEEDS)


@pytest.mark.parametrize("training", FURTHER, ids=lambda training: training.__name__)
def test_one_that_had_no_part_in_any_choice_is_left_alone(training: Training) -> None:
    assert_left_alone(training, OTHER_SEEDS)


@pytest.mark.parametrize("seed", [1, 5, 7])
def test_batches_with_a_rare_class_close_to_each_other_roll_nothing_back(seed: int) -> None:
    guarded = Guarded()
    assert imbalance(seed, guarded) <= 1.25 * imbalance(seed, plain)
    assert guarded.actions["rolled_back"] == 0
    assert guarded.actions["skipped"] <= 0.01 * guarded.actions.total()


@pytest.mark.parametrize("training", SPIKING, ids=lambda training: training.__name__)
def test_one_that_spikes_without_a_fault_is_let_through(training: Training) -> None:
    """At most one rollback a run, which shows that the spike comes again."""
    guarded, spread = Guarded(), Spread(training, SEEDS)
    assert spread.holds([training(seed, guarded) for seed in SEEDS])
    assert guarded.actions["rolled_back"] <= len(SEEDS)
    assert guarded.actions["skipped"] <= MOST_SKIPPED * guarded.actions.total()
