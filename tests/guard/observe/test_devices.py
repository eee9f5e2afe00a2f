"""What a device has no kernel or dtype for is not asked of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from guard import GradientGuard, GuardConfig, GuardError
from guard.act.buffers import Buffers
from guard.act.fused import FusedStep
from guard.agree.agreement import WIDTH, _Slot
from guard.arguments import check_deferred
from guard.observe.norms import square_norms, square_pieces
from guard.observe.watched import parameter_names


def test_mps_is_asked_for_no_float64() -> None:
    with FakeTensorMode():
        gradients = [torch.empty(3, device="mps"), torch.empty(3, dtype=torch.float16, device="mps")]
        squares, owners = square_pieces(gradients)
        assert (squares.dtype, squares.device.type, owners) == (torch.float32, "mps", [0, 1])
        assert _Slot(WIDTH, 2, torch.device("mps")).row.dtype is torch.float32


def test_a_model_on_two_devices_is_measured_on_the_first() -> None:
    with FakeTensorMode():
        gradients = [torch.empty(3, device="cuda:0"), torch.empty(3, device="cuda:1")]
        squares, _ = square_pieces(gradients)
        assert (squares.shape, squares.device) == ((2,), torch.device("cuda:0"))


def test_deferred_steps_of_a_device_without_cuda_are_refused() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=True)
    config = GuardConfig(mode="deferred")
    fused = FusedStep(optimizer, scaled=False)
    check_deferred(config, fused, torch.device("cuda"))
    with pytest.raises(GuardError, match="mps: set mode to exact"):
        check_deferred(config, fused, torch.device("mps"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    """2,049 ones: a sum in half precision ends at 2,048 or below. Mixed with float32 it is the same."""
    half = torch.ones(2049, dtype=dtype)
    assert square_norms([half, torch.full((4,), 2.0)]).tolist() == pytest.approx([2049.0, 16.0])
    assert math.isnan(square_norms([half * torch.nan])[0])


def test_declared_parts_are_checked_when_the_guard_is_made() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(GuardError, match="no process group"):
        GradientGuard(model, optimizer, shards={"weight": None})  # type: ignore[dict-item]
    with pytest.raises(GuardError, match="mode deferred has no shards"):
        GradientGuard(model, optimizer, {"mode": "deferred"}, shards={"weight": None})  # type: ignore[dict-item]


def test_a_declaration_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(GuardError, match="matches no parameter"):
            GradientGuard(model, optimizer, shards={"experts.*": dist.group.WORLD})  # type: ignore[dict-item]
    finally:
        dist.destroy_process_group()


def test_a_model_without_weights_yet_is_refused() -> None:
    model = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(GuardError, match="to_empty"):
        GradientGuard(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_wrappers_of_submodules_leave_no_trace_in_names() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = torch.nn.Sequential(checkpoint_wrapper(torch.nn.BatchNorm1d(2)))
    assert list(parameter_names(model)) == ["0.weight", "0.bias"]
    assert Buffers(model).names == ["0.running_mean", "0.running_var", "0.num_batches_tracked"]
