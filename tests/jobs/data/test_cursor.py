"""The order of the data: the same for every world size, and resumable at any batch."""

import json

import numpy as np
import pytest

from jobs.data import DataCursor, DataError, shard


def walked(cursor: DataCursor, batches: int) -> list[tuple[int, int, list[int], bool]]:
    taken = (cursor.next_batch() for _ in range(batches))
    return [(batch.epoch, batch.index, batch.ids.tolist(), batch.ends_epoch) for batch in taken]


@pytest.mark.parametrize(("n_samples", "batch_size"), [(100, 10), (103, 10), (10, 10), (7, 1)])
def test_an_epoch_shows_every_sample_at_most_once_and_drops_less_than_a_batch(
    n_samples: int, batch_size: int
):
    cursor = DataCursor(n_samples, batch_size, seed=3)
    for epoch in range(3):
        batches = walked(cursor, cursor.batches_per_epoch)
        ids = [sample for _, _, ids, _ in batches for sample in ids]
        assert len(set(ids)) == len(ids) == n_samples // batch_size * batch_size
        assert set(ids) <= set(range(n_samples))
        assert [(e, i) for e, i, _, _ in batches] == [(epoch, i) for i in range(len(batches))]
        assert [ends for *_, ends in batches] == [False] * (len(batches) - 1) + [True]


def test_the_left_over_samples_differ_from_epoch_to_epoch():
    cursor = DataCursor(10, 9)
    dropped = [set(range(10)) - set(ids) for _, _, ids, _ in walked(cursor, 20)]
    assert len(set.union(*dropped)) > 1


def test_order_depends_on_seed_and_epoch_alone():
    def first_epochs(seed: int) -> list[list[int]]:
        return [ids for _, _, ids, _ in walked(DataCursor(50, 50, seed), 2)]

    assert first_epochs(1) == first_epochs(1)
    assert first_epochs(1)[0] != first_epochs(1)[1]
    assert first_epochs(1)[0] != first_epochs(2)[0]
    assert first_epochs(0)[1] != first_epochs(1)[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_shares_of_all_ranks_are_the_global_batch_in_order(world_size: int):
    reference = DataCursor(40, 8, seed=5)
    cursors = [DataCursor(40, 8, seed=5) for _ in range(world_size)]
    for _ in range(12):
        shares = [shard(cursor.next_batch().ids, rank, world_size) for rank, cursor in enumerate(cursors)]
        assert {len(share) for share in shares} == {8 // world_size}
        assert np.concatenate(shares).tolist() == reference.next_batch().ids.tolist()


@pytest.mark.parametrize("stopped_after", range(12))
def test_a_resumed_cursor_continues_identically(stopped_after: int):
    whole = DataCursor(23, 5, seed=9)
    expected = walked(whole, 20)
    stopped = DataCursor(23, 5, seed=9)
    walked(stopped, stopped_after)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = DataCursor(23, 5, seed=9)
    walked(resumed, 3)  # what it did before must not matter
    resumed.load_state_dict(state)
    assert walked(resumed, 20 - stopped_after) == expected[stopped_after:]
    assert resumed.state_dict() == whole.state_dict()


def test_the_state_is_a_few_integers_however_large_the_data():
    cursor = DataCursor(10_000, 100)
    cursor.next_batch()
    assert all(type(value) is int for value in cursor.state_dict().values())
    assert cursor.state_dict()["index"] == 1


def test_a_cursor_can_be_rolled_back_while_it_runs():
    cursor = DataCursor(20, 5)
    walked(cursor, 3)
    state = cursor.state_dict()
    once = walked(cursor, 6)
    cursor.load_state_dict(state)
    assert walked(cursor, 6) == once


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (DataCursor(21, 5, 1), "n_samples"),
        (DataCursor(20, 4, 1), "batch_size"),
        (DataCursor(20, 5, 2), "seed"),
    ],
)
def test_a_position_in_other_data_is_refused_by_the_field_that_differs(other: DataCursor, field: str):
    with pytest.raises(DataError, match=f"has {field} "):
        DataCursor(20, 5, 1).load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 4}, "outside"),
        ({"epoch": -1}, "outside the data"),
        ({"index": None}, "lacks index"),
    ],
)
def test_a_damaged_position_is_refused(change: dict, message: str):
    cursor = DataCursor(20, 5, 1)
    state = {key: value for key, value in {**cursor.state_dict(), **change}.items() if value is not None}
    with pytest.raises(DataError, match=message):
        cursor.load_state_dict(state)
    assert cursor.state_dict() == DataCursor(20, 5, 1).state_dict()


def test_counts_of_batches_and_steps():
    cursor = DataCursor(103, 10)
    assert cursor.batches_per_epoch == 10
    walked(cursor, 10)
    assert (cursor.epoch, cursor.index) == (1, 0)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_does_not_fit_is_refused(batch_size: int):
    with pytest.raises(DataError, match=r"set data\.batch_size to 1\.\.10"):
        DataCursor(10, batch_size)


def test_a_batch_cannot_be_changed_by_who_gets_it():
    batch = DataCursor(10, 5).next_batch()
    with pytest.raises(ValueError, match="read-only"):
        batch.ids[0] = 0


def test_unequal_shares_and_ranks_that_do_not_exist_are_refused():
    ids = np.arange(10)
    with pytest.raises(DataError, match="multiple of 3"):
        shard(ids, 0, 3)
    with pytest.raises(DataError, match="rank 2 does not exist"):
        shard(ids, 2, 2)
