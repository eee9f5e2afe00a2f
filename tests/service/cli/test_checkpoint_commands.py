"""``gradguard checkpoints``: lists, verifies, compares and exports, and changes nothing."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from jobs.checkpoints import Checkpoints
from jobs.errors import JobError
from service.cli.app import app
from tests.jobs.checkpoints.checkpoint_fixture import parts, proven, train


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "digits"
    state = parts()
    checkpoints = Checkpoints(folder / "checkpoints", state, describe=lambda: (0, {"test_accuracy": 0.875}))
    train(state, 2)
    proven(checkpoints, 10)
    train(state, 2)
    proven(checkpoints, 20)
    with torch.no_grad():
        state["model"][3].bias[0] = float("nan")
    checkpoints.save(30)
    checkpoints.finish()
    return folder


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["checkpoints", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def refused(*arguments: object) -> str:
    with pytest.raises(JobError) as error:
        CliRunner().invoke(app, ["checkpoints", *map(str, arguments)], catch_exceptions=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_list_shows_what_is_good_and_what_is_not_yet(job: Path) -> None:
    lines = run(job).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["10", "good"], ["20", "good"], ["30", "candidate"]]
    assert "test_accuracy 0.875" in lines[1]
    rows = json.loads(run(job, "--json"))["checkpoints"]
    assert [(row["step"], row["state"], row["problem"]) for row in rows] == [
        (10, "good", None),
        (20, "good", None),
        (30, "candidate", None),
    ]
    assert rows[0]["bytes"] > 1000
    assert run(job / "checkpoints") == run(job)


def test_verify_finds_what_a_listing_cannot(job: Path, tmp_path: Path) -> None:
    assert "step 30: the weight 3.bias has NaN in it" in run(job, "--verify", code=1)
    shutil.copytree(job, tmp_path / "healthy")
    shutil.rmtree(tmp_path / "healthy" / "checkpoints" / "step-00000030")
    assert "2 verified: every byte is as it was written" in run(tmp_path / "healthy", "--verify")
    path = job / "checkpoints" / "step-00000020" / "state.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"1", b"2", 1))
    try:
        assert "damaged" not in run(job)
        output = run(job, "--verify", code=1)
        rows = json.loads(run(job, "--verify", "--json", code=1))["checkpoints"]
        assert "is damaged" in refused(job, "--export", 20, "--to", "model.pt")
    finally:
        path.write_bytes(whole)
    assert "step 20: state.json does not match its checksum" in output
    assert [row["state"] for row in rows] == ["good", "damaged", "damaged"]


def test_verify_names_the_folders_that_a_resume_does_not_take_for_checkpoints(
    job: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(job, copied)
    checkpoints = copied / "checkpoints"
    (checkpoints / "step-00000030").rename(checkpoints / "step-30")
    (checkpoints / "step-00000020" / "manifest.json").unlink()
    shutil.copytree(checkpoints / "step-00000010", checkpoints / "step-10")  # a copy of one that is there
    (checkpoints / "step-by-step").mkdir()
    output = run(copied, "--verify", code=1)
    assert "step 30: is in the folder step-30, where no resume finds it: rename that to" in output
    assert "step 20: has no manifest.json: it cannot be resumed from" in output
    assert "step 10:" not in output


def test_a_manifest_that_cannot_be_read_is_listed_as_damaged(job: Path) -> None:
    path = job / "checkpoints" / "step-00000020" / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    try:
        output = run(job, code=1)
    finally:
        path.write_bytes(whole)
    assert "step 20: manifest.json cannot be read" in output


def test_compare_names_the_tensors_that_differ_and_by_how_much(job: Path) -> None:
    found = json.loads(run(job, "--compare", 20, 30, "--json"))["differences"]
    assert [d["name"] for d in found] == ["model.3.bias"]
    assert (found[0]["what"], found[0]["largest"], found[0]["nonfinite"]) == ("values", 0.0, [0, 1])
    moved = {d["name"] for d in json.loads(run(job, "--compare", 10, 20, "--json"))["differences"]}
    assert {"model.0.weight", "model.1.running_mean", "optimizer.state.0.exp_avg"} <= moved
    shown = run(job, "--compare", 10, 20)
    assert "model.0.weight" in shown
    assert "tensors differ between steps 10 and 20" in shown
    assert "0 of" in run(job, "--compare", 10, 10)


def test_the_model_is_exported_for_others(job: Path, tmp_path: Path) -> None:
    safe, plain = tmp_path / "model.safetensors", tmp_path / "model.pt"
    said = run(job, "--export", 20, "--to", safe)
    assert "tensors of step 20" in said
    assert f"load_file({str(safe)!r})" in said or f"jobs.load_model({str(safe)!r})" in said
    assert f"load it with torch.load({str(plain)!r}, weights_only" in run(job, "--export", 20, "--to", plain)
    for weights in (load_file(safe), torch.load(plain, weights_only=True)):
        fresh = parts()["model"]
        fresh.load_state_dict(weights)
        assert int(fresh[1].num_batches_tracked) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model.safetensors"]


def test_what_cannot_be_done_is_one_line_that_helps(job: Path, tmp_path: Path) -> None:
    assert "there are: 10, 20, 30" in refused(job, "--compare", 10, 11)
    assert "belong together" in refused(job, "--export", 10)
    assert "end its name with .safetensors" in refused(job, "--export", 10, "--to", tmp_path / "m.bin")
    pytest.importorskip("onnxscript")
    assert "step 10 does not say how its model is built" in refused(
        job, "--export", 10, "--to", tmp_path / "m.onnx"
    )
    assert "there is no folder" in refused(tmp_path / "missing")
    for suffix in ("pt", "safetensors"):
        assert "cannot write" in refused(job, "--export", 10, "--to", tmp_path / "no" / f"m.{suffix}")
    assert "no checkpoints in" in run(tmp_path)
    assert "cannot store checkpoints at nosuch://bucket/run" in refused("nosuch://bucket/run")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_an_export_that_the_disk_has_no_room_for_is_one_line_and_leaves_nothing(
    job: Path, tmp_path: Path, suffix: str
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        said = refused(job, "--export", 10, "--to", tmp_path / f"m.{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in said
    assert "enforce fail" not in said
    assert not list(tmp_path.iterdir())
