"""The random kills that the chaos benchmark deals."""

from __future__ import annotations

from tests.integration.harness.chaos import random_kills


def test_the_kills_follow_from_the_seed() -> None:
    assert random_kills(20, seed=4) == random_kills(20, seed=4)
    assert random_kills(20, seed=4) != random_kills(20, seed=5)
