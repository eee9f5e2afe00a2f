"""The order of a stream: near in the files, shuffled in windows, the same for every world size."""

import numpy as np
import pytest

from jobs.data import DataCursor, shard
from jobs.data.streams.order import StreamOrder, default_lanes

SIZES = [7, 0, 12, 30, 5, 16, 1, 24, 9, 21, 40, 3, 18, 25, 14, 11]
TOTAL = sum(SIZES)
BLOCK_OF = np.repeat(np.arange(len(SIZES)), SIZES)


def cursor(*, batch_size: int = 8, lanes: int = 4, shuffle_rows: int = 24, seed: int = 3) -> DataCursor:
    order = StreamOrder(SIZES, batch_size, seed, lanes=lanes, shuffle_rows=shuffle_rows)
    return DataCursor(TOTAL, batch_size, seed, order=order)


def ids_of(walked: DataCursor, batches: int) -> list[list[int]]:
    return [walked.next_batch().ids.tolist() for _ in range(batches)]


@pytest.mark.parametrize("lanes", [1, 2, 8])
@pytest.mark.parametrize("shuffle_rows", [1, 8, 50, 10_000])
def test_an_epoch_shows_every_row_at_most_once_and_drops_less_than_a_batch(
    lanes: int, shuffle_rows: int
) -> None:
    walked = cursor(lanes=lanes, shuffle_rows=shuffle_rows)
    for _ in range(3):
        ids = [sample for batch in ids_of(walked, walked.batches_per_epoch) for sample in batch]
        assert len(set(ids)) == len(ids) == TOTAL // 8 * 8
        assert set(ids) <= set(range(TOTAL))
    assert walked.epoch == 3


def test_order_depends_on_seed_and_epoch_alone() -> None:
    epoch = cursor().batches_per_epoch
    first = ids_of(cursor(), 2 * epoch)
    assert first == ids_of(cursor(), 2 * epoch)
    assert first[:epoch] != first[epoch:]
    assert first != ids_of(cursor(seed=4), 2 * epoch)


@pytest.mark.parametrize("stopped_after", [0, 1, 5, 28, 29, 30])
def test_a_cursor_that_is_resumed_or_rolled_back_continues_identically(stopped_after: int) -> None:
    expected = ids_of(cursor(), 70)
    stopped = cursor()
    ids_of(stopped, stopped_after)
    saved = stopped.state_dict()
    resumed = cursor()
    resumed.load_state_dict(saved)
    assert ids_of(resumed, 70 - stopped_after) == expected[stopped_after:]
    stopped.next_batch()
    stopped.load_state_dict(saved)  # as a rollback does
    assert ids_of(stopped, 70 - stopped_after) == expected[stopped_after:]


def test_what_is_read_ahead_is_what_comes() -> None:
    walked = cursor()
    ids_of(walked, 3)
    ahead = walked.upcoming()
    next(ahead)
    planned = [next(ahead).ids.tolist() for _ in range(60)]
    assert planned == ids_of(walked, 60)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_no_block_is_read_by_two_ranks_but_those_cut_by_a_lane(world_size: int) -> None:
    walked, read = cursor(), [set[int]() for _ in range(world_size)]
    for _ in range(walked.batches_per_epoch):
        ids = walked.next_batch().ids
        for rank in range(world_size):
            read[rank].update(BLOCK_OF[shard(ids, rank, world_size)].tolist())
    assert sum(map(len, read)) <= np.count_nonzero(SIZES) + world_size - 1


def test_a_block_is_needed_for_a_short_time() -> None:
    walked, lanes = cursor(shuffle_rows=8), [dict[int, list[int]]() for _ in range(4)]
    for batch in range(walked.batches_per_epoch):
        ids = walked.next_batch().ids
        for lane in range(4):
            for block in BLOCK_OF[shard(ids, lane, 4)].tolist():
                lanes[lane].setdefault(block, []).append(batch)
    for blocks in lanes:
        for block, batches in blocks.items():
            assert batches[-1] - batches[0] <= SIZES[block] // 2 + 1, "a batch takes two rows of a lane"


def test_rows_of_a_window_are_shuffled_and_stay_in_it() -> None:
    stored = StreamOrder([100], 10, 0, lanes=1, shuffle_rows=20)
    windows = [np.concatenate([stored(0, 2 * n), stored(0, 2 * n + 1)]) for n in range(5)]
    for number, window in enumerate(windows):
        assert sorted(window) == list(range(20 * number, 20 * number + 20))
        assert sorted(window) != window.tolist()


@pytest.mark.parametrize(("batch_size", "lanes"), [(1, 1), (6, 2), (12, 4), (128, 8), (100, 4)])
def test_lanes_divide_the_batch_by_default(batch_size: int, lanes: int) -> None:
    assert default_lanes(batch_size) == lanes
