"""A job starts from the weights of a file, a Hugging Face folder, or another job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jobs.checkpoints import CheckpointManager, Policy
from jobs.data.errors import DataError
from jobs.init import build_initialized
from jobs.init.weights import load_weights
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload


def net(outputs: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs))


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_file_and_a_folder_in_parts_give_the_same_weights(tmp_path: Path) -> None:
    trained, state = net(seed=1), net(seed=1).state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    folder = tmp_path / "hub"
    folder.mkdir()
    names = sorted(state)
    for part, some in enumerate((names[:3], names[3:]), start=1):
        save_file({name: state[name] for name in some}, folder / f"model-0000{part}-of-00002.safetensors")
    for path in (tmp_path / "whole.safetensors", folder):
        model = net(seed=2)
        assert load_weights(model, path) == []
        assert equal(model, trained)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_names_of_a_wrapped_model_are_unwrapped(wrapper: str, tmp_path: Path) -> None:
    trained, model = net(seed=1), net(seed=2)
    state = {f"{wrapper}{name}": tensor for name, tensor in trained.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    assert load_weights(model, tmp_path / "w.safetensors") == []
    assert equal(model, trained)


def test_a_part_that_the_index_lists_must_be_there(tmp_path: Path) -> None:
    trained, state = net(seed=1), net(seed=1).state_dict()
    parts = {name: f"part-{at % 2}.safetensors" for at, name in enumerate(state)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    for file in set(parts.values()):
        save_file({name: state[name] for name in state if parts[name] == file}, tmp_path / file)
    for path in (tmp_path, index):
        model = net(seed=2)
        load_weights(model, path)
        assert equal(model, trained)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(
        DataError,
        match=r"^model\.weights: \S+/part-1\.safetensors is not there",
    ):
        load_weights(net(), tmp_path)


def test_a_pickle_and_quantized_weights_are_refused(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"^model\.weights: \S+w\.pt may be a pickle, .*save_file"):
        load_weights(net(), tmp_path / "w.pt")
    state = net().state_dict()
    save_file(state | {"0.weight": state["0.weight"].to(torch.int8)}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"0\.weight is int8"):
        load_weights(net(), tmp_path / "w.safetensors")


def test_the_newest_good_checkpoint_of_a_job_is_taken(tmp_path: Path) -> None:
    model = net(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager = CheckpointManager(
        tmp_path / "job" / "checkpoints",
        {"model": model, "optimizer": optimizer},
        policy=Policy(clean_steps=0),
        spec={},
        data={},
        describe=lambda: (1, {}),
    )
    manager.save(1, closing=True)
    for path in (tmp_path / "job", tmp_path / "job" / "checkpoints" / "step-00000001"):
        other = net(seed=2)
        load_weights(other, path)
        assert equal(other, model)


def test_what_does_not_fit_is_refused_or_left_as_it_is(tmp_path: Path) -> None:
    save_file(net(outputs=5, seed=1).state_dict(), tmp_path / "w.safetensors")
    model, before = net(seed=2), net(seed=2)
    with pytest.raises(DataError, match=r"2.weight is \[5, 8\] instead of \[3, 8\].*weights_strict: false"):
        load_weights(model, tmp_path / "w.safetensors")
    assert equal(model, before)
    assert load_weights(model, tmp_path / "w.safetensors", strict=False) == ["2.weight", "2.bias"]
    assert torch.equal(model[0].weight, net(seed=1)[0].weight)
    assert torch.equal(model[2].weight, before[2].weight)


@pytest.mark.parametrize("name", ["none.safetensors", "empty", "damaged.safetensors", "other.safetensors"])
def test_what_are_no_weights_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.safetensors").write_bytes(b"not a file of tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError) as caught:
        load_weights(net(), tmp_path / name, strict=False)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_job_starts_from_them(tmp_path: Path) -> None:
    fields = {"data": {"dataset": "digits"}, "model": {"name": "shufflenet_v2_x0_5"}}
    first = JobSpec.from_dict({**fields, "seed": 1})
    trained = build_initialized(first, load_workload(first))
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    model = {**fields["model"], "weights": str(tmp_path / "w.safetensors")}
    second = JobSpec.from_dict({**fields, "seed": 2, "model": model})
    assert equal(build_initialized(second, load_workload(second)), trained)
