"""A small run and its checkpoints, for the tests of jobs/checkpoints."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.checkpoints import CheckpointManager
from jobs.checkpoints.manifest import _digest, digest_of
from jobs.run_dir.storage import MANIFEST


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    return {"model": model, "optimizer": optimizer, "schedule": schedule}


def train(parts: dict[str, Any], steps: int) -> list[float]:
    """Draws from every generator, and moves every part."""
    losses = []
    for _ in range(steps):
        batch = torch.randn(8, 4) + random.random() + float(np.random.rand())
        loss = parts["model"](batch).square().mean()
        parts["optimizer"].zero_grad()
        loss.backward()
        parts["optimizer"].step()
        parts["schedule"].step()
        losses.append(loss.item())
    return losses


class Messages(list[str]):
    """What was shown to the user."""

    def __call__(self, level: str, text: str) -> None:
        self.append(f"{level}: {text}")


def proven(checkpoints: CheckpointManager, *steps: int) -> None:
    """Saves these steps, each followed by enough clean steps."""
    for step in steps:
        checkpoints.save(step)
        checkpoints.clean_step()
        checkpoints.clean_step()
    checkpoints.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def forge(checkpoint: Path, **changes: Any) -> None:
    """A manifest with the right checksums for what lies there now."""
    body = json.loads((checkpoint / MANIFEST).read_bytes())
    body.pop("checksum")
    body["files"] = {}
    for file in sorted(checkpoint.iterdir()):
        if file.name != MANIFEST:
            with file.open("rb") as content:
                body["files"][file.name] = digest_of(content).model_dump()
    body.update(changes)
    text = json.dumps({**body, "checksum": _digest(body)}, indent=1) + "\n"
    (checkpoint / MANIFEST).write_text(text)
