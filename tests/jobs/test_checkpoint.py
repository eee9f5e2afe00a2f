"""Checkpoints: whole or not there, loaded without running anything, and the run continues identically."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.checkpoint import Checkpoints, newest_step


def parts() -> dict[str, Any]:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return {"model": model, "optimizer": optimizer}


def train(parts: dict[str, Any], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        batch = torch.randn(8, 4) + random.random() + float(np.random.rand())
        loss = parts["model"](batch).square().mean()
        parts["optimizer"].zero_grad()
        loss.backward()
        parts["optimizer"].step()
        losses.append(loss.item())
    return losses


def test_a_loaded_run_continues_bit_identically(tmp_path: Path) -> None:
    whole = parts()
    train(whole, 5)
    assert Checkpoints(tmp_path, whole).save(5) is None
    expected = train(whole, 5)

    resumed = parts()
    assert Checkpoints(tmp_path, resumed).load_latest() == 5
    assert train(resumed, 5) == expected
    for name, tensor in whole["model"].state_dict().items():
        assert torch.equal(tensor, resumed["model"].state_dict()[name])


def test_without_a_checkpoint_nothing_is_loaded(tmp_path: Path) -> None:
    fresh = parts()
    before = {k: v.clone() for k, v in fresh["model"].state_dict().items()}
    assert Checkpoints(tmp_path, fresh).load_latest() is None
    assert all(torch.equal(before[k], v) for k, v in fresh["model"].state_dict().items())


def test_a_half_written_checkpoint_is_never_taken_for_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, parts())
    checkpoints.save(10)
    for leftover in (tmp_path / ".step-00000020.tmp", tmp_path / "step-00000030"):
        leftover.mkdir()
    (tmp_path / ".step-00000020.tmp" / "state.pt").write_bytes(b"half")
    assert newest_step(tmp_path) == 10
    assert checkpoints.load_latest() == 10


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, parts(), keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]
    assert checkpoints.latest() == f"{tmp_path.name}/step-00000030"


def test_what_a_rollback_undid_is_forgotten_and_written_again(tmp_path: Path) -> None:
    state = parts()
    checkpoints = Checkpoints(tmp_path, state)
    for step in (10, 20):
        checkpoints.save(step)
    checkpoints.forget_after(10)
    assert newest_step(tmp_path) == 10
    with torch.no_grad():
        state["model"].bias.fill_(7.0)
    checkpoints.save(10)
    fresh = parts()
    Checkpoints(tmp_path, fresh).load_latest()
    assert torch.equal(fresh["model"].bias, torch.full((2,), 7.0))


def test_a_disk_that_refuses_is_reported_and_not_raised(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "Not a directory" in str(Checkpoints(blocked, parts()).save(1))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    folder = tmp_path / "step-00000001"
    folder.mkdir()
    torch.save({"step": 1, "parts": Trap(), "generators": []}, folder / "state.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        Checkpoints(tmp_path, parts()).load_latest()
    assert not (tmp_path / "executed").exists()
