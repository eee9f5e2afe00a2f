"""What a user would write without GradGuard: Ray Train, DDP, ``clip_grad_norm_``; no checkpoint, no metric.

    python tests/benchmarks/raw_loop.py SPEC OUT

Trains the model, the batches and the schedule of a spec and writes the time of every step to OUT (JSON).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from jobs.data.cursor import DataCursor, shard
from jobs.spec.job_spec import JobSpec
from jobs.training.optim import build_optimizer, build_schedule
from jobs.workloads import load_workload

MAX_NORM = 1.0


def loop(config: dict[str, Any]) -> None:
    """Runs on every worker."""
    spec = JobSpec.from_dict(config["spec"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(spec.seed)
    workload = load_workload(spec)
    total = spec.total_steps(workload.n_train)
    cursor = DataCursor(workload.n_train, spec.data.batch_size, spec.seed)
    model = prepare_model(workload.build_model(), parallel_strategy_kwargs={"gradient_as_bucket_view": True})
    optimizer = build_optimizer(spec.optimizer, model.parameters())
    schedule = build_schedule(spec.schedule, optimizer, total)
    ended = []
    for _ in range(total):
        batch = cursor.next_batch()
        ids = shard(batch.ids, rank, world_size)
        optimizer.zero_grad()
        loss = workload.loss(model, workload.train_batch(ids, batch.epoch, get_device()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        ended.append(time.time())
    if rank == 0:
        Path(config["out"]).write_text(json.dumps(ended))


def main() -> None:
    """Trains on an embedded Ray."""
    spec, out = JobSpec.load(Path(sys.argv[1])), Path(sys.argv[2]).absolute()
    ray.init()
    TorchTrainer(
        loop,
        train_loop_config={"spec": spec.model_dump(mode="json"), "out": str(out)},
        scaling_config=ScalingConfig(
            num_workers=spec.scale.workers,
            resources_per_worker={"CPU": spec.scale.cpus_per_worker},
            use_gpu=torch.cuda.is_available(),
        ),
        run_config=RunConfig(storage_path=str(out.parent)),
    ).fit()


if __name__ == "__main__":
    main()
