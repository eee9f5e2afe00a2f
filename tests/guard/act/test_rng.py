"""Random numbers are those of the devices that the model is on, whichever device is the current one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from guard.act import rng
from guard.decide.recompute import BatchReplayer
from tests.guard.simulated_cuda import SimulatedCuda, on_device


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Generator]:
    """Of two CUDA devices, as torch's functions reach them; the first is the current one."""
    made = {"cuda:0": torch.Generator().manual_seed(1), "cuda:1": torch.Generator().manual_seed(2)}

    def of(device: Any) -> torch.Generator:
        return made["cuda:0" if str(device) == "cuda" else str(device)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": of(device).get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": of(device).set_state(state))
    return made


def draws(generators: dict[str, torch.Generator]) -> list[float]:
    return [float(torch.rand((), generator=generator)) for generator in generators.values()]


def test_the_generators_of_all_devices_of_a_model_come_back(generators: dict[str, torch.Generator]) -> None:
    state = rng.capture([torch.device("cuda", 0), torch.device("cuda", 1)])
    first, later = draws(generators), draws(generators)
    rng.restore(state)
    assert draws(generators) == first != later
    assert not rng.equal(state, rng.capture([torch.device("cuda", 0), torch.device("cuda", 1)]))


def test_without_devices_it_is_that_of_the_current_one_as_checkpoints_have_it(
    generators: dict[str, torch.Generator],
) -> None:
    state = rng.capture()
    assert isinstance(state["cuda"], torch.Tensor)
    (first, other), _ = draws(generators), draws(generators)
    rng.restore(state)
    again = draws(generators)
    assert again[0] == first
    assert again[1] != other


def test_a_batch_repeats_on_a_device_that_is_not_the_current_one(
    generators: dict[str, torch.Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rng, "devices_of", lambda _: [torch.device("cuda", 1)])
    model = nn.Linear(2, 2)
    replayer = BatchReplayer(model)
    replayer.arm()
    model(torch.ones(2))
    first = draws(generators)[1]
    replayer.reset()
    assert draws(generators)[1] == first


def test_a_model_is_asked_for_its_devices() -> None:
    with SimulatedCuda():
        model = on_device(nn.Linear(2, 2))
        assert rng.devices_of(model) == [torch.device("cuda", 0)]
    assert rng.devices_of(nn.Linear(2, 2)) == []
