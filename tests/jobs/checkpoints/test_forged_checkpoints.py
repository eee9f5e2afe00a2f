"""A checkpoint that a faulty writer or an attacker left, its checksums right, harms no other one."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.checkpoints import CheckpointManager, DamagedCheckpoint
from jobs.checkpoints.export import export_model
from jobs.checkpoints.listing import manifests
from jobs.checkpoints.load import read, verify
from jobs.checkpoints.manifest import STATE, _digest, parse
from jobs.data.errors import DataError
from jobs.init.weights import read_weights
from jobs.run_dir.storage import DAMAGED, MANIFEST, LocalStorage
from tests.jobs.checkpoints.checkpoint_fixture import Messages, forge, parts, proven, train

SEEDS = 140
STRANGE: list[Any] = [
    *(None, True, -1, 10**20, 10**400, 1e300, "inf", "nan", "", "x" * 10_000, [], {}, [[]], {"t": "no"}),
    {"d": [["a", {"t": "../manifest"}]]},
    {"d": [["a"]]},
]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Weights]]:
    folder, weights, state = tmp_path_factory.mktemp("written"), {}, parts()
    manager = CheckpointManager(folder, state, spec={"name": "x"})
    for step in (10, 20):
        train(state, 2)
        proven(manager, step)
        weights[step] = {k: v.clone() for k, v in state["model"].state_dict().items()}
    return folder, weights


@pytest.fixture
def folder(written: tuple[Path, dict[int, Weights]], tmp_path: Path) -> Path:
    shutil.copytree(written[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON document can be changed."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def change(document: Any, dice: random.Random) -> None:
    """One value is deleted, or becomes something else."""
    *above, key = dice.choice(list(places(document)))
    for step in above:
        document = document[step]
    if dice.random() < 0.3:
        del document[key]
    else:
        document[key] = dice.choice(STRANGE)


@pytest.mark.parametrize("file", [STATE, MANIFEST])
def test_a_changed_value_is_refused_or_harmless(
    written: tuple[Path, dict[int, Weights]], tmp_path: Path, file: str
) -> None:
    for seed in range(SEEDS):
        dice, folder = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(written[0], folder)
        newest = folder / "step-00000020"
        document = json.loads((newest / file).read_bytes())
        document.pop("checksum", None)
        change(document, dice)
        if file == STATE:
            (newest / STATE).write_text(json.dumps(document))
            forge(newest)
        else:
            text = json.dumps({**document, "checksum": _digest(document)}, indent=1) + "\n"
            (newest / MANIFEST).write_text(text)
        state = parts()
        found = CheckpointManager(folder, state, notify=Messages()).load_latest()
        assert found in (10, 20), seed
        for name, value in state["model"].state_dict().items():
            assert torch.equal(value, written[1][found][name]), (seed, name)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a":' * 200_000, '{"step": ' + "9" * 5000 + "}", "NaN", ""]
)
def test_a_manifest_that_no_parser_likes_is_refused_in_one_line(content: str) -> None:
    with pytest.raises(DamagedCheckpoint) as refused:
        parse(content.encode())
    assert "\n" not in str(refused.value)


def a_fifo(folder: Path) -> None:
    (folder / "step-00000020" / MANIFEST).unlink()
    os.mkfifo(folder / "step-00000020" / MANIFEST)


def a_fifo_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder / "step-00000020")
    os.mkfifo(folder / "step-00000020")


def a_folder(folder: Path) -> None:
    (folder / "step-00000020" / MANIFEST).unlink()
    (folder / "step-00000020" / MANIFEST).mkdir()


def a_link_to_nothing(folder: Path) -> None:
    shutil.rmtree(folder / "step-00000020")
    (folder / "step-00000020").symlink_to("nowhere")


def a_link_to_itself(folder: Path) -> None:
    shutil.rmtree(folder / "step-00000020")
    (folder / "step-00000020").symlink_to("step-00000020")


def a_link_to_the_other(folder: Path) -> None:
    shutil.rmtree(folder / "step-00000020")
    (folder / "step-00000020").symlink_to("step-00000010")


def another_name_for_it(folder: Path) -> None:
    (folder / "step-00000020").rename(folder / "step-000000020")


def parts_that_were_left_out(folder: Path) -> None:
    state = json.loads((folder / "step-00000020" / STATE).read_bytes())
    state["parts"].pop("model")
    (folder / "step-00000020" / STATE).write_text(json.dumps(state))
    forge(folder / "step-00000020")


@pytest.mark.parametrize(
    "harm",
    [
        a_fifo,
        a_fifo_in_its_place,
        a_folder,
        a_link_to_nothing,
        a_link_to_itself,
        a_link_to_the_other,
        another_name_for_it,
        parts_that_were_left_out,
    ],
    ids=lambda harm: harm.__name__,
)
def test_the_one_before_it_is_used_and_stays_whole(folder: Path, harm: Callable[[Path], None]) -> None:
    before = {file.name: file.read_bytes() for file in (folder / "step-00000010").iterdir()}
    harm(folder)
    for _ in range(2):
        assert CheckpointManager(folder, parts(), notify=Messages()).load_latest() == 10
        assert {file.name: file.read_bytes() for file in (folder / "step-00000010").iterdir()} == before


def test_steps_beyond_eight_digits_come_last(folder: Path) -> None:
    """Listed by number: by name they would come first."""
    (folder / "step-00000020").rename(folder / "step-100000000")
    forge(folder / "step-100000000", step=100_000_000)
    assert LocalStorage(folder).names() == ["step-00000010", "step-100000000"]
    assert CheckpointManager(folder, parts()).load_latest() == 100_000_000


@pytest.mark.parametrize(("number", "found"), [("nan", "NaN"), ("-inf", "infinity")])
def test_weights_that_are_not_finite_are_neither_resumed_from_nor_exported(
    tmp_path: Path, number: str, found: str
) -> None:
    state = parts()
    manager = CheckpointManager(tmp_path, state)
    proven(manager, 10)
    with torch.no_grad():
        state["model"][0].weight[0, 0] = float(number)
    proven(manager, 20)
    says = f"the weight 0.weight has {found} in it"
    for read_it in (verify, lambda *place: export_model(read(*place), tmp_path / "model.pt")):
        with pytest.raises(DamagedCheckpoint, match=says):
            read_it(LocalStorage(tmp_path), "step-00000020")
    with pytest.raises(DataError, match=says):
        read_weights(tmp_path / "step-00000020")
    messages = Messages()
    assert CheckpointManager(tmp_path, parts(), notify=messages).load_latest() == 10
    assert says in messages[0]


def test_a_buffer_may_be_infinite_as_a_mask_is(tmp_path: Path) -> None:
    state = parts()
    state["model"].register_buffer("mask", torch.full((2, 2), float("-inf")))
    proven(CheckpointManager(tmp_path, state), 10)
    verify(LocalStorage(tmp_path), "step-00000010")
    assert CheckpointManager(tmp_path, state).load_latest() == 10


def test_verify_loads_what_a_resume_needs(folder: Path) -> None:
    storage = LocalStorage(folder)
    verify(storage, "step-00000020")
    parts_that_were_left_out(folder)
    with pytest.raises(DamagedCheckpoint, match=f"{STATE} has no part model"):
        verify(storage, "step-00000020")


def test_what_was_set_aside_is_listed_as_such(folder: Path) -> None:
    storage = LocalStorage(folder)
    storage.set_aside("step-00000020")
    assert storage.aside() == ["step-00000020"]
    assert (folder / "step-00000020" / DAMAGED).exists()
    assert [manifest.step for manifest in manifests(storage)[0]] == [10]
