"""Two ranks under each framework's own DDP: NaN on one rank, and both skip the same step."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import problem
import pytest
from torch import nn

from tests.guard.integrations.problem import BATCHES
from tests.guard.loops import differences
from tests.guard.ranks import on_ranks

pytestmark = pytest.mark.slow
STEPS = BATCHES // 2
BAD_STEP = 10


def as_torchrun(rank: int, world_size: int) -> None:
    """What torchrun sets for a process; the frameworks find the process group made."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"})
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|accelerate|typing_extensions)\b")


def outcome(guard: Any, watch: Any, model: nn.Module, schedule: Any) -> dict[str, Any]:
    return {
        "actions": watch.actions,
        "culprits": [
            [(row["rank"], row["nonfinite"]) for row in incident.ranks] for incident in watch.incidents
        ],
        "steps": guard.steps,
        "schedule": schedule.last_epoch,
        "parameters": {name: value.detach().clone() for name, value in model.named_parameters()},
        "loss": problem.loss_of(model),
    }


def lightning_rank(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    as_torchrun(rank, world_size)
    import test_lightning as framework

    guard = framework.callback()
    watch = framework.Watch(guard)
    data = framework.loader(bad_batch=BAD_STEP if rank == 1 else None, batches=STEPS)
    options = {"strategy": "ddp", "devices": world_size, "use_distributed_sampler": False, "max_epochs": 1}
    trainer, module = framework.fit(guard, watch, data=data, **options)
    return outcome(guard.guard, watch, module.net, trainer.lr_scheduler_configs[0].scheduler)


def transformers_rank(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    as_torchrun(rank, world_size)
    import test_transformers as framework

    watch = framework.Watch()
    data = framework.rows(bad_batch=BAD_STEP * world_size + 1)  # batches go to the ranks in turn
    options = {"max_steps": STEPS, "ddp_backend": "gloo", "lr_scheduler_type": "constant"}
    trainer = framework.guarded_trainer(folder, data, watch=watch, **options)
    framework.run(trainer)
    return outcome(trainer.guard, watch, trainer.model.net, trainer.lr_scheduler)


@pytest.mark.parametrize(
    ("framework", "work"), [("lightning", lightning_rank), ("transformers", transformers_rank)]
)
def test_nan_on_one_rank_skips_the_step_on_both(framework: str, work: Any, tmp_path: Path) -> None:
    pytest.importorskip(framework, reason=f"needs the extra: pip install gradguard[{framework}]")
    first, second = on_ranks(2, work, tmp_path)
    assert first["actions"] == ["applied"] * BAD_STEP + ["skipped"] + ["applied"] * (STEPS - BAD_STEP - 1)
    assert first["culprits"] == [[(1, True), (0, False)]]
    assert first["steps"] == first["schedule"] == STEPS - 1
    assert first["loss"] < 0.5 * problem.loss_of(problem.network())
    ours, theirs = ({k: v for k, v in run.items() if k != "loss"} for run in (first, second))
    assert not differences(ours, theirs)
