"""The state of the generators is exact, though NumPy's is read only where it has drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from guard.act import rng


@pytest.fixture(autouse=True)
def numpys_own() -> Iterator[None]:
    before, generator = np.random.get_state(), np.random.get_bit_generator()  # type: ignore[attr-defined]
    yield
    np.random.set_bit_generator(generator)  # type: ignore[attr-defined]
    np.random.set_state(before)


DRAWS: dict[str, Callable[[], Any]] = {
    "uniform": np.random.rand,
    "one of two normal numbers": np.random.normal,
    "the other of two normal numbers": lambda: [np.random.normal(), rng.capture(), np.random.normal()],
    "integers": lambda: np.random.randint(7, size=1000),
    "a new seed": lambda: np.random.seed(3),
    "another place": lambda: np.random.set_state(np.random.RandomState(5).get_state()),
    "nothing": lambda: None,
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_captured_is_restored_after_any_draw(name: str) -> None:
    rng.capture()
    DRAWS[name]()
    state = rng.capture(quick=True)
    expected = np.random.normal(size=3).tolist(), np.random.rand(700).tolist()
    DRAWS[name]()
    rng.restore(state)
    assert rng.equal(rng.capture(), state)
    assert (np.random.normal(size=3).tolist(), np.random.rand(700).tolist()) == expected


def test_the_second_normal_number_that_is_kept_is_part_of_the_state() -> None:
    np.random.seed(0)
    np.random.normal()
    kept = rng.capture()
    np.random.normal()  # draws nothing: it was kept
    assert not rng.equal(rng.capture(), kept)


def test_captures_do_not_share_what_a_later_one_changes() -> None:
    np.random.seed(0)
    first = rng.capture()
    words = first["numpy"][1].clone()
    np.random.rand(1000)
    rng.capture()
    assert torch.equal(first["numpy"][1], words)
    assert not rng.equal(first, rng.capture())


def test_a_state_that_was_set_and_differs_in_the_kept_number_alone_is_read_where_it_is_saved() -> None:
    np.random.seed(0)
    np.random.normal()
    before = np.random.get_state()
    np.random.normal()
    rng.capture()
    np.random.set_state(before)
    assert rng.capture()["numpy"][3] == 1
