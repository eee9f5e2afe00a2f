"""The benchmark's bad samples are found, one of each model."""

import pytest

from tests.benchmarks.samples.cases import Kind, trial


@pytest.mark.parametrize("kind", ["label", "garbage"])
def test_the_bad_sample_is_ranked_first(kind: Kind) -> None:
    assert trial(kind, 0).first
