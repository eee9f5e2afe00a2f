"""Under each layout a job trains, evaluates, skips, rolls back, saves and continues as with DDP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.checkpoints.export import export_model
from jobs.checkpoints.listing import checkpoint_folder
from jobs.checkpoints.load import read
from jobs.models.exported import load_model
from jobs.run_dir.open_storage import open_storage
from jobs.spec.job_spec import JobSpec
from tests.guard.loops import differences
from tests.guard.ranks import on_ranks
from tests.jobs.layout.layout_fixture import Training, begin, spec_of

pytestmark = pytest.mark.slow
BEFORE, AFTER = 5, 2
LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp2": {"kind": "fsdp2"},
    "fsdp2, recomputed": {
        "kind": "fsdp2",
        "activation_checkpointing": "selective",
        "reshard_after_forward": False,
    },
    "fsdp2, offloaded": {"kind": "fsdp2", "cpu_offload": True, "activation_checkpointing": "block"},
    "hsdp": {"kind": "hsdp"},
    "tensor": {"tensor": 4},
    "ddp x tensor": {"tensor": 2},
    "fsdp2 x tensor": {"kind": "fsdp2", "tensor": 2},
}
MICRO = {"fsdp2, recomputed": 2}
FAULTY = ("fsdp2", "hsdp", "fsdp2 x tensor")
"""The layouts under which a NaN and bad batches come; the guard's own tests have all of them."""


def train(training: Training, folder: Path) -> dict[str, Any]:
    """Six steps, a checkpoint, three more; then what a bad batch and a rollback leave."""
    first = {name: value.clone() for name, value in training.whole().items()}
    before = training.losses(BEFORE)
    sums = training.evaluated()
    training.keep(folder)
    after = training.losses(AFTER)
    return {"first": first, "before": before, "sums": sums, "after": after}


def faults(training: Training) -> dict[str, Any]:
    """A NaN on one rank, then four bad batches in a row."""
    state = training.held()
    one = training.step(lambda: training.world.data_rank == training.world.data_size - 1)
    skip = differences(state, training.held())
    snapshot: list[Any] = []
    while training.stepper.guard.steps % 4 or not snapshot:
        training.step()
        snapshot = training.held() if training.stepper.guard.steps % 4 == 0 else []
    reports = [training.step() for _ in range(2)]
    for _ in range(4):
        reports.append(training.step(lambda: True))
        if reports[-1].action == "rolled_back":
            break
    back = differences(snapshot, training.held())
    return {
        "skip": (one.action, one.verdict.kind, skip),
        "rollback": (reports[-1].action, reports[-1].step % 4, back),
        "next": training.step().action,
    }


def images(folder: Path, parallel: dict[str, Any]) -> dict[str, Any]:
    """A ResNet: the buffers of BatchNorm are not divided."""
    document = {
        "model": {"name": "resnet18", "stem": "tiny"},
        "data": {"dataset": "digits", "batch_size": 16, "test_limit": 9},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"max_steps": 40},
        "scale": {"workers": 2},
        "storage": str(folder),
    }
    training = begin(JobSpec.from_dict({**document, "parallel": parallel}))
    losses, sums = training.losses(3), training.evaluated()
    state = training.held()
    bad = training.step(lambda: training.world.rank == 1)
    skip = bad.action, differences(state, training.held())
    return {"losses": losses, "sums": sums, "skip": skip, "next": training.losses(1)}


def replicated(_: int, __: int, folder: Path) -> dict[str, Any]:
    training = begin(spec_of(folder))
    return {**train(training, folder / "ddp"), "images": images(folder / "images", {})}


def divided(_: int, __: int, folder: Path) -> dict[str, Any]:
    found = {}
    for name, parallel in LAYOUTS.items():
        place = folder / name
        spec = spec_of(place, parallel, {"micro_batches": MICRO.get(name, 1)})
        training = begin(spec)
        found[name] = train(training, place)
        if name in FAULTY:
            found[name] |= faults(training)
        continued = begin(spec)
        found[name]["resumed"] = continued.resume(place), continued.losses(AFTER)
        other = begin(spec)
        found[name]["from ddp"] = other.resume(folder.parent / "two" / "ddp"), other.losses(AFTER)
    half = begin(spec_of(folder / "half", {"kind": "fsdp2"}, {"precision": "bf16"}))
    found["bf16"] = {
        "before": half.losses(BEFORE),
        "types": {str(p.dtype) for p in half.model.bare.parameters()},
    }
    return found


def on_two(_: int, __: int, folder: Path) -> dict[str, Any]:
    """Checkpoints of four ranks, continued on two."""
    found = {}
    cases: list[tuple[str, dict[str, Any]]] = [("fsdp2", {}), ("fsdp2 x tensor", {"kind": "fsdp2"})]
    for name, parallel in cases:
        training = begin(spec_of(folder / "two", parallel))
        step = training.resume(folder.parent / "four" / name)
        found[name] = step, training.losses(AFTER)
    return {"continued": found, "images": images(folder / "images", {"kind": "fsdp2"})}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    for name in ("two", "four", "again"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def ddp(place: Path) -> dict[str, Any]:
    return on_ranks(2, replicated, place / "two")[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def ranks(place: Path, ddp: dict[str, Any]) -> list[dict[str, Any]]:
    return on_ranks(4, divided, place / "four") if ddp else []


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_first_weights_are_those_of_the_whole_model(
    ranks: list[dict[str, Any]], ddp: dict[str, Any], name: str
) -> None:
    first = ranks[0][name]["first"]
    assert first.keys() == ddp["first"].keys()
    assert all(torch.equal(first[key], value) for key, value in ddp["first"].items())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_losses_follow_those_of_ddp_before_and_after_an_evaluation(
    ranks: list[dict[str, Any]], ddp: dict[str, Any], name: str
) -> None:
    for seen in ranks:
        assert seen[name]["before"] == pytest.approx(ddp["before"], rel=2e-5)
        assert seen[name]["after"] == pytest.approx(ddp["after"], rel=2e-4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_unequal_shares_of_the_test_set_are_evaluated_together(
    ranks: list[dict[str, Any]], ddp: dict[str, Any], name: str
) -> None:
    for seen in ranks:
        assert seen[name]["sums"] == pytest.approx(ddp["sums"], rel=1e-4)
        assert seen[name]["sums"]["tokens"] == 9 * 16


@pytest.mark.parametrize("name", FAULTY)
def test_a_nan_on_one_rank_is_skipped_on_all_and_a_rollback_is_exact(
    ranks: list[dict[str, Any]], name: str
) -> None:
    for seen in ranks:
        assert seen[name]["skip"] == ("skipped", "nonfinite", [])
        assert seen[name]["rollback"] == ("rolled_back", 0, [])
        assert seen[name]["next"] == "applied"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(ranks: list[dict[str, Any]], name: str) -> None:
    for seen in ranks:
        assert seen[name]["resumed"] == (BEFORE, seen[name]["after"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_of_ddp_on_two_continues_on_four(
    ranks: list[dict[str, Any]], ddp: dict[str, Any], name: str
) -> None:
    for seen in ranks:
        step, losses = seen[name]["from ddp"]
        assert step == BEFORE
        assert losses == pytest.approx(ddp["after"], rel=2e-5)


@pytest.fixture(scope="module")
def two(place: Path, ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return on_ranks(2, on_two, place / "again") if ranks else []


def test_checkpoints_of_four_ranks_continue_on_two(two: list[dict[str, Any]], ddp: dict[str, Any]) -> None:
    for seen in two:
        for step, losses in seen["continued"].values():
            assert step == BEFORE
            assert losses == pytest.approx(ddp["after"], rel=2e-4)


def test_a_network_for_images_trains_evaluates_and_skips_as_with_ddp(
    two: list[dict[str, Any]], ddp: dict[str, Any]
) -> None:
    for seen in two:
        for name in ("losses", "sums", "next"):
            assert seen["images"][name] == pytest.approx(ddp["images"][name], rel=1e-3), name
        assert seen["images"]["skip"] == ddp["images"]["skip"] == ("skipped", [])


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_export_is_whole_and_continues_in_one_process(
    place: Path, ranks: list[dict[str, Any]], ddp: dict[str, Any], tmp_path: Path, name: str
) -> None:
    assert ranks
    folder = place / "four" / name
    content = read(open_storage(folder), checkpoint_folder(BEFORE))
    content.manifest.data["model"] = {"vocabulary": 256}
    export_model(content, tmp_path / "model.safetensors")
    exported = load_model(tmp_path / "model.safetensors").state_dict()
    training = begin(spec_of(tmp_path))
    assert training.resume(folder) == BEFORE
    assert all(torch.equal(exported[key], value) for key, value in training.whole().items())
    assert training.losses(AFTER) == pytest.approx(ddp["after"], rel=2e-4)


def test_bf16_keeps_float32_weights_and_follows_float32(
    ranks: list[dict[str, Any]], ddp: dict[str, Any]
) -> None:
    for seen in ranks:
        assert seen["bf16"]["types"] == {"torch.float32"}
        assert seen["bf16"]["before"] == pytest.approx(ddp["before"], rel=0.02)
