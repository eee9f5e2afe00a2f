"""The rules of the checkpoints, without a disk: health, retention, what is stored how, who writes what."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from jobs.checkpoints.errors import DamagedCheckpoint, UnsupportedState, reason
from jobs.checkpoints.health import Candidates
from jobs.checkpoints.lifecycle import Policy, retired
from jobs.checkpoints.manifest import FORMAT, Manifest, parse
from jobs.checkpoints.spec_match import check_spec
from jobs.checkpoints.stager import balance
from jobs.checkpoints.state import Tensors, put_together, take_apart
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec


def manifest(step: int, health: Any = "good", **metrics: float) -> Manifest:
    return Manifest(
        format=FORMAT,
        step=step,
        attempt=step,
        health=health,
        created=0.0,
        world_size=1,
        files={},
        metrics=metrics,
        versions={},
        spec={},
    )


def test_a_candidate_is_good_after_the_clean_steps_that_follow_it() -> None:
    candidates = Candidates(2)
    candidates.saved(10)
    assert candidates.clean_step() == []
    candidates.saved(11)
    assert candidates.clean_step() == [10]
    assert candidates.clean_step() == [11]
    assert candidates.clean_step() == []


def test_an_anomaly_deletes_all_candidates_and_trust_needs_as_many_clean_steps_as_promotion() -> None:
    candidates = Candidates(2)
    assert candidates.is_trusted
    candidates.saved(10)
    assert candidates.mark_suspect() == [10]
    assert not candidates.is_trusted
    candidates.clean_step()
    assert candidates.flush() == []
    candidates.clean_step()
    candidates.saved(13)
    assert candidates.flush() == [13]


def test_a_state_that_was_returned_to_is_trusted() -> None:
    candidates = Candidates(3)
    candidates.saved(5)
    candidates.mark_suspect()
    candidates.reset()
    assert candidates.is_trusted
    assert candidates.clean_step() == []


def test_the_newest_and_the_best_stay_and_candidates_are_untouched() -> None:
    kept = [manifest(1, loss=0.1), manifest(2, loss=0.3), manifest(3, loss=0.2), manifest(4, "candidate")]
    assert retired(kept, Policy(keep=1, best=None)) == [1, 2]
    assert retired(kept, Policy(keep=1, best="min:loss")) == [2]
    assert retired(kept, Policy(keep=1, best="max:loss")) == [1]
    assert retired(kept, Policy(keep=1, best="max:accuracy")) == [1, 2]


def test_the_last_good_one_is_never_deleted() -> None:
    candidates = [manifest(step, "candidate") for step in range(10, 20)]
    assert retired([manifest(1), *candidates], Policy(keep=1, best=None)) == []
    assert retired([manifest(1, loss=math.nan)], Policy(keep=0, best="min:loss")) == []


def test_every_state_comes_back_as_it_was() -> None:
    state = {
        "weight": torch.randn(3, 2),
        "nested": {"weight": torch.arange(4, dtype=torch.uint8), 7: (1, [2.5, None, True], "text")},
        "nested.weight": torch.tensor(2.0),
        "scalars": [np.float32(0.1), np.int64(3), -math.inf, math.nan, 2**70, 1e-300],
        "array": np.arange(6, dtype=np.int64).reshape(2, 3),
        "ordered": OrderedDict(a=1),
        "empty": {},
    }
    tensors: Tensors = {}
    back = put_together(take_apart(state, "part", tensors), tensors)
    assert len(tensors) == 4
    assert torch.equal(back["weight"], state["weight"])
    assert torch.equal(back["nested"]["weight"], state["nested"]["weight"])
    assert back["nested"][7] == state["nested"][7]
    assert back["nested.weight"].item() == 2.0
    assert back["scalars"][:3] == [pytest.approx(0.1), 3, -math.inf]
    assert math.isnan(back["scalars"][3])
    assert back["scalars"][4:] == [2**70, 1e-300]
    assert np.array_equal(back["array"], state["array"])
    assert (back["ordered"], back["empty"]) == ({"a": 1}, {})


@pytest.mark.parametrize("odd", [object(), {1.5: 0}, {"set"}, b"bytes", print])
def test_what_would_need_a_pickle_is_refused_when_it_is_saved(odd: object) -> None:
    with pytest.raises(UnsupportedState, match=r"part\.deep"):
        take_apart({"deep": odd}, "part", {})


@pytest.mark.parametrize("tree", [{"t": "missing"}, {"x": 1}, {"d": [1]}, {"l": 5}, {"t": "a", "l": []}, {}])
def test_a_state_of_an_unknown_form_is_damage(tree: Any) -> None:
    with pytest.raises(DamagedCheckpoint):
        put_together(tree, {})


def test_ranks_share_the_bytes_evenly_and_agree_without_communication() -> None:
    sizes = {f"w{i}": (i % 7 + 1) * 1000 for i in range(50)}
    owners = balance(sizes, 4)
    assert owners == balance(dict(reversed(sizes.items())), 4)
    loads = [sum(sizes[n] for n, rank in owners.items() if rank == r) for r in range(4)]
    assert max(loads) - min(loads) <= 7000
    assert owners.keys() == sizes.keys()


def test_a_manifest_reads_back_as_it_was_written() -> None:
    written = manifest(3, loss=0.25)
    assert parse(written.render()) == written
    promoted = written.model_copy(update={"health": "candidate"})
    assert parse(promoted.render()).health == "candidate"
    assert promoted.render() != written.render()


def test_a_reason_is_one_line_that_helps() -> None:
    assert reason(OSError(28, "No space left on device")) == "No space left on device; is the disk full?"
    assert reason(OSError(30, "Read-only file system")) == "Read-only file system"
    assert reason(ValueError("first\nsecond")) == "ValueError: first"
    assert reason(ValueError()) == "ValueError: ValueError"


def test_a_field_that_is_newer_than_the_checkpoint_counts_as_left_at_its_default() -> None:
    now = JobSpec.from_dict({"name": "x", "train": {"max_steps": 9}}).model_dump(mode="json")
    saved = copy.deepcopy(now)
    del saved["regularize"], saved["preflight"], saved["data"]["augment"], saved["model"]["init"]
    del saved["guard"]["clip"]["kind"]
    saved["train"] = {"steps": 9}  # a section that may differ, as another version wrote it
    check_spec(saved, now, 10)

    now["regularize"]["l2"] = 0.5
    now["guard"]["clip"]["kind"] = "off"
    with pytest.raises(SpecError) as caught:
        check_spec(saved, now, 10)
    assert {problem.path for problem in caught.value.problems} == {"regularize.l2", "guard.clip.kind"}
    assert "the checkpoint of step 10 was made with 0.0: write 0.0 to continue it" in str(caught.value)


def test_a_field_that_there_is_no_more_is_named_and_hides_no_other() -> None:
    now = JobSpec.from_dict({"name": "x"}).model_dump(mode="json")
    saved = copy.deepcopy(now)
    saved["optimizer"]["warp"] = 3
    del saved["optimizer"]["momentum"]
    with pytest.raises(SpecError) as caught:
        check_spec(saved, now, 10)
    assert [problem.path for problem in caught.value.problems] == ["optimizer.warp"]
    assert "was made with 3: this version has no such field" in str(caught.value)


def test_a_language_job_is_filled_with_the_defaults_of_its_kind() -> None:
    now = JobSpec.from_dict({"name": "x", "workload": "language"}).model_dump(mode="json")
    saved = copy.deepcopy(now)
    del saved["optimizer"]["betas"], saved["model"]["init"]
    check_spec(saved, now, 10)
