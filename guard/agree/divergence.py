"""Ranks that would not act alike stop together, before a step is applied; the error names the difference."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from guard.agree.rank_failure import default_store
from guard.agree.settings import Settings
from guard.errors import RankDivergence
from guard.types import Floats

Describe = Callable[[], Settings]
TOLERANCE = 1e-3
"""Relative: norms of the same gradients differ by rounding in float32, gradients not reduced by far more."""
WAIT_S = 5.0
"""How long a rank waits for what another one writes: all of them find the difference in the same gather."""
MOST_NAMED = 3
MOST_RANKS = 8
"""Ranks that an error names."""
_ABSENT = "absent"


def check_digests(digests: Floats, describe: Describe, group: Any) -> None:
    """Raises RankDivergence where a rank's digest is not that of most ranks; in a tie, of rank 0.

    Args:
        digests: one a rank, float64 [ranks].
        describe: what the digest is of, as text by name.
        group: the process group.
    """
    if (digests == digests[0]).all():
        return
    values, counts = np.unique(digests, return_counts=True)
    first = digests[0]
    common = first if counts[values == first][0] == counts.max() else values[counts.argmax()]
    odd = np.flatnonzero(digests != common).tolist()
    found = _differences(describe(), odd, digests == common, group, f"{common:.0f}-{digests[odd[0]]:.0f}")
    stages = " (stages of a pipeline on different ranks are not supported)" if _ABSENT in found else ""
    raise RankDivergence(
        f"the decision state of {_ranks(odd)} differs from that of the other ranks"
        f"{found and ': ' + found}: give all ranks the same configuration, model{stages}, optimizer and "
        "version, and resume all of them from the same checkpoint"
    )


def check_norms(norms: Floats, layers: Describe, group: Any) -> None:
    """Raises RankDivergence where a rank's norm is not that of most ranks; O(ranks).

    Args:
        norms: of the gradient after the all-reduce, float64 [ranks].
        layers: the norm of each parameter, as text by name.
        group: the process group.
    """
    if (norms == norms[0]).all():
        return
    alike = _alike(norms, norms[0])
    if 2 * alike.sum() < len(norms):
        alike = _alike(norms, np.sort(norms)[len(norms) // 2])
    odd = np.flatnonzero(~alike).tolist()
    if not odd:
        return
    found = _differences(layers(), odd, alike, group, "norms")
    seen = ", ".join(f"{norms[rank]:.6g}" for rank in odd[:MOST_RANKS])
    raise RankDivergence(
        f"the gradients of {_ranks(odd)} differ from those of the other ranks after the all-reduce (global "
        f"norm {seen}, elsewhere {norms[alike.argmax()]:.6g}{found and '; ' + found}): wrap the model in "
        "DistributedDataParallel and synchronize the last micro-batch; declare parameters of which each rank "
        "holds its own part, such as experts: GradientGuard(shards={'*.experts.*': group}); or pass "
        "process_group= with the ranks that hold the same parameters"
    )


def same_squares(squares: Floats) -> bool:
    """Whether these squared norms, one a rank, are of the same gradients."""
    norms = np.sqrt(squares)
    return bool(_alike(norms, norms[0]).all())


def _differences(mine: Settings, odd: list[int], alike: NDArray[np.bool_], group: Any, topic: str) -> str:
    """Where the first of the odd ranks differs from a rank that stands for the others.

    No collective: each rank leaves what it has in the default store, so that none hangs here.

    Args:
        mine: of this rank.
        odd: the ranks that differ, in the group.
        alike: the ranks that do not.
        topic: names the question, once in a run.

    Returns:
        ``clip.max_norm is 1.0 on rank 0 and 0.1 on rank 1``; empty where it cannot be known.
    """
    pair = (int(alike.argmax()), odd[0])
    try:
        store, rank = default_store(), dist.get_rank(group)
        keys = [f"gradguard/differs/{topic}/{dist.get_global_rank(_group(group), place)}" for place in pair]
        if rank in pair:
            store.set(keys[pair.index(rank)], zlib.compress(json.dumps(dict(mine)).encode()))
        store.wait(keys, timedelta(seconds=WAIT_S))
        here, there = (json.loads(zlib.decompress(store.get(key))) for key in keys)
    except (RuntimeError, ValueError):
        return ""
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    found = [
        f"{name} is {here.get(name, _ABSENT)} on rank {pair[0]} and {there.get(name, _ABSENT)} on rank "
        f"{pair[1]}"
        for name in names[:MOST_NAMED]
    ]
    more = len(names) - len(found)
    return ", ".join(found) + (f", and {more} more" if more else "")


def _group(group: Any) -> Any:
    return dist.group.WORLD if group is None else group


def _alike(norms: Floats, norm: float) -> NDArray[np.bool_]:
    return np.isclose(norms, norm, rtol=TOLERANCE, atol=0.0, equal_nan=True)


def _ranks(odd: list[int]) -> str:
    more = f" and {len(odd) - MOST_RANKS} more" if len(odd) > MOST_RANKS else ""
    return f"rank {', '.join(map(str, odd[:MOST_RANKS]))}{more}"
