"""A job folder as a real run would leave it: two ranks, a NaN on rank 1, an explosion and its repair."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.rows import JsonlWriter
from jobs.run_dir.jsonl import write_json_atomic

LAYERS = [
    "conv1.weight",
    "bn1.weight",
    *(
        f"layer{stage}.{block}.{part}.weight"
        for stage in (1, 2, 3, 4)
        for block in (0, 1)
        for part in ("conv1", "conv2")
    ),
    "fc.weight",
    "fc.bias",
]
SPEC = """\
name: fashion
seed: 0
model: {name: resnet18, stem: small}
data: {dataset: fashion-mnist, batch_size: 128, augment: standard}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.0005}
schedule: {name: cosine, warmup_steps: 10}
train: {epochs: 2, eval_every_epochs: 1}
scale: {workers: 2, device: cpu}
"""
START = 1764072000.0
NAN_AT, BOOM_AT, TARGET, UNTIL = 70, 150, 125, 200


def write_job(job_dir: Path, *, steps: int = 240, name: str = "fashion") -> Path:
    """A succeeded run of `steps` steps with both incidents."""
    job_dir.mkdir(parents=True, exist_ok=True)
    (job_dir / "spec.yaml").write_text(SPEC)
    write_rows(job_dir / "metrics.jsonl", rows(steps))
    write_rows(job_dir / "incidents.jsonl", [*incidents(name)])
    write_json_atomic(job_dir / "result.json", result(name, steps))
    return job_dir


def write_rows(path: Path, items: Any) -> None:
    with JsonlWriter(path) as writer:
        for item in items:
            writer.write(item)


def rows(steps: int) -> Iterator[dict[str, Any]]:
    """The metrics: loss falls, the NaN costs a step, the explosion three attempts and a rollback."""
    random_, step, attempt, boomed = random.Random(0), 0, 0, 0
    while step < steps:
        attempt += 1
        row = row_at(random_, attempt, step + 1)
        if attempt == NAN_AT:
            row |= {"loss": math.nan, "grad_norm": math.nan, "local_norms": [1.1, math.nan], "step": step}
            row |= {"action": "skipped", "verdict": "nonfinite", "layers": dict.fromkeys(LAYERS, math.nan)}
        elif step + 1 >= BOOM_AT and boomed < 3:
            boomed += 1
            row |= explosion(row, boomed, step + 1)
        step = row["step"]
        yield row
        if step in (steps // 2, steps) and row["action"] in ("applied", "clipped"):
            yield evaluation(attempt, step, steps)


def row_at(random_: random.Random, attempt: int, step: int) -> dict[str, Any]:
    loss = (0.35 + 2.0 * math.exp(-step / 45)) * random_.lognormvariate(0, 0.06)
    norm = (0.7 + 1.6 * math.exp(-step / 30)) * random_.lognormvariate(0, 0.25)
    clean = not TARGET < step <= UNTIL or attempt < BOOM_AT
    scale = 1.0 if clean else 0.5 + 0.5 * (step - TARGET) / (UNTIL - TARGET)
    local = [norm * random_.lognormvariate(0.1, 0.1) for _ in range(2)]
    return {
        "time": START + 0.21 * attempt,
        "attempt": attempt,
        "step": step,
        "action": "clipped" if norm > 1.6 else "applied",
        "loss": loss,
        "grad_norm": norm,
        "clip_coef": min(1.0, 1.6 / norm),
        "clip_threshold": 1.6 + 0.8 * math.exp(-step / 40),
        "verdict": "ok",
        "signal": "loss",
        "score": 0.3,
        "lr": 0.1 * min(1.0, step / 10) * (0.55 + 0.45 * math.cos(math.pi * step / 260)) * scale,
        "step_seconds": 0.21,
        "guard_seconds": 0.0025,
        "rolled_back_to": None,
        "local_norms": local,
        "layers": layer_norms(random_, norm) if attempt % 5 == 0 else None,
        "regularization": {
            "lr_scale": scale,
            "weight_decay_scale": 1.0 if clean else 2.0,
            "anchor_l2": 0.0 if clean else 0.01,
            "l1": 0.0,
        },
    }


def layer_norms(random_: random.Random, norm: float) -> dict[str, float]:
    return {
        layer: norm * 0.9 ** (index / 2) * random_.lognormvariate(-1.2, 0.35)
        for index, layer in enumerate(LAYERS)
    }


def explosion(row: dict[str, Any], boomed: int, step: int) -> dict[str, Any]:
    """Three attempts: suspect and applied, suspect and applied, spike and rolled back."""
    grown = 1.9 * 2.2**boomed
    values = {
        name: norm * (grown**2 if "layer4.1" in name else grown)
        for name, norm in layer_norms(random.Random(boomed), 1.0).items()
    }
    changed = {
        "loss": row["loss"] * grown,
        "grad_norm": row["grad_norm"] * grown**2,
        "local_norms": [1.1, row["grad_norm"] * 2 * grown**2],
        "layers": values,
        "verdict": "suspect" if boomed < 3 else "spike",
        "score": 11.0 * boomed,
    }
    if boomed == 3:
        changed |= {"action": "rolled_back", "rolled_back_to": TARGET, "step": TARGET}
    return changed


def evaluation(attempt: int, step: int, steps: int) -> dict[str, Any]:
    accuracy = 0.842 if step < steps else 0.881
    metrics = {
        "test_accuracy": accuracy,
        "test_loss": 0.44 if step < steps else 0.336,
        "epoch": 1 if step < steps else 2,
    }
    return {"time": START + 0.21 * attempt, "attempt": attempt, "step": step, "eval": metrics}


def incidents(name: str) -> Iterator[dict[str, Any]]:
    yield nan_incident(1, name)
    yield rollback_incident(2, name)
    yield {
        "type": "outcome",
        "incident": 2,
        "outcome": "recovered",
        "step": 177,
        "steps": 52,
        "time": START + 50,
    }


def nan_incident(number: int, name: str = "fashion") -> dict[str, Any]:
    return incident_row(
        number,
        name,
        attempt=NAN_AT,
        step=NAN_AT - 1,
        verdict="nonfinite",
        value=math.nan,
        score=math.inf,
        action="skipped",
        layers=[{"name": layer, "norm": math.nan, "share": None, "growth": None} for layer in LAYERS[:8]],
        ranks=[
            {"rank": 1, "loss": math.nan, "local_norm": math.nan, "nonfinite": True, "share": None},
            {"rank": 0, "loss": 0.71, "local_norm": 1.1, "nonfinite": False, "share": None},
        ],
    )


def rollback_incident(number: int, name: str = "fashion") -> dict[str, Any]:
    return incident_row(
        number,
        name,
        attempt=153,
        step=151,
        verdict="spike",
        value=7.05,
        score=33.0,
        baseline=0.41,
        action="rolled_back",
        rolled_back_to=TARGET,
        steps_lost=26,
        layers=[
            {"name": "layer4.1.conv2.weight", "norm": 88.0, "share": 0.71, "growth": 35.2},
            {"name": "layer4.1.conv1.weight", "norm": 51.0, "share": 0.24, "growth": 29.9},
            {"name": "fc.weight", "norm": 12.0, "share": 0.013, "growth": 8.3},
            {"name": "conv1.weight", "norm": 9.0, "share": 0.0075, "growth": None},
        ],
        ranks=[
            {"rank": 1, "loss": 13.7, "local_norm": 182.0, "nonfinite": False, "share": 0.97},
            {"rank": 0, "loss": 0.42, "local_norm": 1.1, "nonfinite": False, "share": 0.03},
        ],
        recovery={
            "lr_scale": 0.5,
            "weight_decay_scale": 2.0,
            "anchor_l2": 0.01,
            "l1": 0.0,
            "until_step": UNTIL,
            "data": "advance",
        },
    )


def incident_row(number: int, name: str, *, attempt: int, step: int, **fields: Any) -> dict[str, Any]:
    clean = {"signal": "loss", "baseline": 0.41, "rolled_back_to": None, "steps_lost": 0, "recovery": None}
    return {
        "type": "incident",
        "id": number,
        "job": name,
        "time": START + 0.21 * attempt,
        "attempt": attempt,
        "step": step,
        **clean,
        "window": window(attempt, step, fields.get("value", 1.0)),
        "samples": list(range(1000, 1064)),
        "seconds": 0.021,
        **fields,
    }


def window(attempt: int, step: int, value: float) -> list[dict[str, Any]]:
    random_ = random.Random(attempt)
    before = [
        {
            "attempt": attempt - 15 + i,
            "step": step - 15 + i,
            "loss": random_.gauss(0.42, 0.03),
            "grad_norm": random_.gauss(0.9, 0.15),
        }
        for i in range(15)
    ]
    return [*before, {"attempt": attempt, "step": step, "loss": value, "grad_norm": value * 13}]


def result(name: str, steps: int, **fields: Any) -> dict[str, Any]:
    return {
        "status": "succeeded",
        "job": name,
        "steps": steps,
        "attempts": steps + 30,
        "epochs": 2,
        "metrics": {"test_accuracy": 0.881, "test_loss": 0.336},
        "anomalies": 4,
        "skips": 1,
        "rollbacks": 1,
        "clips": 18,
        "steps_lost": 26,
        "guard_share": 0.0119,
        "seconds": 181.2,
        "incidents": 2,
        "checkpoint": f"checkpoints/step-{steps:08d}",
        "report": "report.html",
        "error": None,
        "resume": None,
        "versions": {"gradguard": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "python": "3.11.7"},
        "world_size": 2,
        **fields,
    }
