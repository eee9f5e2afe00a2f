"""``gradguard check``: a verdict on a spec's network as table, JSON and drawing; nothing is trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from jobs.cluster.session import PACKAGE_ROOT
from jobs.data.errors import DataError
from jobs.data.to_folder import main as to_folder
from jobs.errors import JobError
from jobs.spec.errors import SpecError
from service.cli.app import app, main

SPEC: dict[str, Any] = {
    "name": "checked",
    "storage": "runs",
    "scale": {"device": "cpu"},
    "model": {"name": "resnet18", "stem": "tiny"},
    "data": {"dataset": "digits", "batch_size": 16},
}
EXPLODING = {"name": "squeezenet1_1", "init": {"scheme": "kaiming", "gain": 10.0}}


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checked.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


def exploding(folder: Path) -> Path:
    path = folder / "exploding.yaml"
    data = {**SPEC["data"], "image_size": 64}
    path.write_text(yaml.safe_dump({**SPEC, "model": EXPLODING, "data": data}))
    return path


def check(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_a_tracker_whose_package_is_not_here_is_said_once_and_is_no_error(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # as where it is not installed
    tracked = [{"kind": "csv"}, {"kind": "trackio"}, {"kind": "trackio", "project": "other"}]
    spec.write_text(yaml.safe_dump({**SPEC, "track": tracked}))
    result = check(spec, "--no-preflight")
    assert result.stderr == (
        'track: trackio is not installed here: pip install "gradguard[trackio]"; '
        "a tracker that fails does not stop the job\n"
    )
    spec.write_text(yaml.safe_dump({**SPEC, "track": tracked[:1]}))
    assert check(spec, "--no-preflight").stderr == ""


def test_a_healthy_network_is_fine_layer_by_layer_and_nothing_is_written(spec: Path) -> None:
    output = check(spec).output
    assert "checked.yaml is valid: job checked" in output
    assert "pre-flight: fine" in output
    assert len(output.splitlines()) == 1, "all is well"
    assert "; 10 classes, 1437 samples; " in output
    assert "layer4.1.conv2" not in output, "the table is for a network that is not fine, or on request"
    assert "layer4.1.conv2" in check(spec, "--layers").output
    assert [path.name for path in spec.parent.iterdir()] == [spec.name]


def test_json_has_the_verdict_and_the_layers_and_nothing_else(spec: Path) -> None:
    document = json.loads(check(spec, "--json").output)
    assert (document["job"], document["lr_range"]) == ("checked", None)
    flight = document["preflight"]
    assert (flight["verdict"], flight["layer"], flight["suggestion"]) == ("fine", None, "")
    assert flight["loss"] == pytest.approx(2.3, abs=1.0)
    names = [layer["name"] for layer in flight["layers"]]
    assert names[0] == "conv1"
    assert names[-1] == "fc"
    assert {"mean", "std", "grad_norm", "dead_share", "growth"} <= set(flight["layers"][0])


def test_the_spec_is_shown_as_yaml_or_as_json_with_the_same_fields(spec: Path) -> None:
    shown = check(spec, "--show").stdout
    assert json.loads(check(spec, "--show", "--json").stdout) == yaml.safe_load(shown)
    shown_again = spec.with_name("again.yaml")
    shown_again.write_text(shown)
    assert check(shown_again, "--show").stdout == shown, "what is shown is a spec"


def test_what_a_workload_prints_is_not_part_of_the_json(tmp_path: Path) -> None:
    lines = ["import torch", "print('imported')", "class Chatty:", "    n_train = 16"]
    members = {
        "__init__(self, spec)": "print('made')",
        "build_model(self)": "return torch.nn.Linear(4, 2)",
        "train_batch(self, ids, epoch, device)": "return torch.arange(4.0 * len(ids)).view(-1, 4) / 32",
        "loss(self, model, batch)": "print('loss'); return model(batch).mean()",
        "evaluate(self, model, rank, world_size, device)": "return {}",
        "metrics(self, sums)": "return {}",
    }
    lines += [f"    def {signature}: {body}" for signature, body in members.items()]
    (tmp_path / "chatty_workload.py").write_text("\n".join(lines))
    spec = tmp_path / "own.yaml"
    spec.write_text("{workload: chatty_workload:Chatty, data: {batch_size: 8}, scale: {device: cpu}}")
    result = check(spec, "--json")
    assert json.loads(result.stdout)["preflight"]["verdict"] == "fine"
    assert "imported\nmade\n" in result.stderr


def test_a_network_that_explodes_is_named_with_its_layer_and_its_cure(spec: Path) -> None:
    path = exploding(spec.parent)
    output = check(path, code=1).output
    assert "pre-flight: exploding at layer " in output
    assert "model.init" in output
    flight = json.loads(check(path, "--json", code=1).output)["preflight"]
    assert flight["verdict"] == "exploding"
    assert flight["layer"] in [layer["name"] for layer in flight["layers"]]
    assert "valid" in check(path, "--no-preflight").output
    assert "valid" in check(path, "--set", "preflight=off").output


@pytest.mark.slow
def test_the_learning_rate_range_is_found_and_drawn(spec: Path) -> None:
    plots = [spec.parent / name for name in ("layers.svg", "range.png")]
    check(spec, "--plot", plots[0])
    ranged = check(spec, "--json", "--lr-range", "--plot", plots[1])
    assert ranged.stderr.startswith("learning rate: 40 steps with 16 samples, about ")
    document = json.loads(ranged.stdout)
    found = document["lr_range"]
    assert found["rates"] == sorted(found["rates"])
    assert len(found["rates"]) == len(found["losses"])
    assert found["rates"][0] < found["suggested"] < 1.0
    assert found["suggested"] < found["largest"]
    assert plots[0].read_bytes().lstrip().startswith(b"<?xml")
    assert plots[1].read_bytes().startswith(b"\x89PNG")
    advice = check(spec, "--lr-range").output
    assert f"try optimizer.lr={found['suggested']:.2g}" in advice


def test_a_drawing_that_cannot_be_made_is_one_line(spec: Path) -> None:
    for name, said in (("plot.xyz", "plot.xyz"), ("missing/plot.svg", "No such file")):
        with pytest.raises(JobError, match=said) as caught:
            check(spec, "--plot", spec.parent / name)
        assert "\n" not in str(caught.value)


def test_a_bad_spec_is_named_before_anything_is_built(spec: Path) -> None:
    with pytest.raises(SpecError, match=r'model\.name = "resnet19".*did you mean "resnet18"'):
        check(spec, "--set", "model.name=resnet19")
    assert "gain" in check(exploding(spec.parent), "--show").output


EXAMPLES = PACKAGE_ROOT / "jobs" / "examples"
ON_A_CPU = ("fashion.yaml", "gpt-cpu.yaml", "resnet50-imagefolder-cpu.yaml", "own_workload/spec.yaml")
LARGE = ("gpt-1.5b-8gpu.yaml", "gpt-1.5b-64gpu.yaml", "gpt-7b-8gpu.yaml", "gpt-7b-64gpu.yaml")
ON_GPUS = ("resnet50-imagefolder-8gpu.yaml", "gpt-124m-8gpu.yaml", *LARGE)


def test_every_example_is_checked_here() -> None:
    found = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.yaml")}
    assert found == {*ON_A_CPU, *ON_GPUS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_A_CPU)
def test_an_example_for_a_cpu_begins_in_good_health(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str((EXAMPLES / name).parent))
    if "imagefolder" in name:
        assert to_folder(["digits", "images", "--limit", "400"]) == 0
    output = check(EXAMPLES / name).output
    assert "is valid: job " in output
    assert "pre-flight: fine" in output


@pytest.mark.parametrize("name", ON_GPUS)
def test_an_example_for_gpus_is_valid_without_them(name: str) -> None:
    assert "is valid: job " in check(EXAMPLES / name, "--no-preflight").output


def test_the_memory_of_a_job_on_gpus_is_estimated_and_compared_with_those_that_are_here() -> None:
    lines = check(EXAMPLES / "gpt-7b-8gpu.yaml", "--no-preflight").output.splitlines()
    assert lines[1].startswith("memory of each worker: ")
    assert all(part in lines[1] for part in ("weights", "gradients", "moments", "activations", "GPU"))
    memory = json.loads(check(EXAMPLES / "gpt-7b-8gpu.yaml", "--no-preflight", "--json").output)["memory"]
    assert memory["total"] > memory["weights"] + memory["moments"]
    assert len(check(EXAMPLES / "gpt-cpu.yaml", "--no-preflight").output.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50-imagefolder-8gpu.yaml", "data.root = /nowhere: there is no such folder: set data.root to"),
        ("gpt-124m-8gpu.yaml", "data.path: there is no file or folder /nowhere: name one"),
    ],
)
def test_missing_data_is_one_line_that_names_what_to_do(name: str, said: str) -> None:
    field = said.split(" = ")[0].split(":")[0]
    with pytest.raises(DataError) as caught:
        check(EXAMPLES / name, "--set", f"{field}=/nowhere")
    assert said in str(caught.value)
    assert str(caught.value).endswith("check --no-preflight checks the spec alone")
    assert "\n" not in str(caught.value)


def test_the_data_are_described_and_drawn(spec: Path) -> None:
    picture = spec.parent / "samples.png"
    output = check(spec, "--picture", picture).output
    assert "data: 10 classes, 1437 samples: " in output
    assert "data: batch[0]: 16x1x8x8 float32, " in output
    assert picture.read_bytes().startswith(b"\x89PNG")
    data = json.loads(check(spec, "--json").output)["data"]
    assert [tensor["shape"] for tensor in data["tensors"]] == [[16, 1, 8, 8], [16]]
    assert data["problems"] == []


def test_classes_of_any_name_are_drawn(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("$x_{$", "z\udcff"):
        folder = spec.parent / "pictures" / kind
        folder.mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(f"{folder}/{number}.png")
    fields = {"dataset": "imagefolder", "root": "pictures", "batch_size": 8, "image_size": 8}
    spec.write_text(yaml.safe_dump({**SPEC, "data": fields}))
    monkeypatch.setattr(sys, "argv", ["gradguard", "check", str(spec), "--picture", "samples.png"])
    with pytest.raises(SystemExit):
        main()
    assert (spec.parent / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_details_are_printed_on_request_and_a_strong_imbalance_always(spec: Path) -> None:
    lines = check(spec, "--details").output.splitlines()
    assert lines[0].endswith("checked.yaml is valid: job checked, files in runs/checked")
    assert lines[1].startswith("data: 10 classes, 1437 samples: ")
    assert lines[-1].startswith("pre-flight: fine")
    for name, count in (("cat", 90), ("dog", 5)):
        folder = spec.parent / "data" / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((32, 32), 50).convert("RGB").save(folder / f"{number}.png")
    data = {"dataset": "imagefolder", "root": str(spec.parent / "data"), "batch_size": 64, "image_size": 32}
    spec.write_text(yaml.safe_dump({**SPEC, "data": data}))
    (line,) = check(spec).output.splitlines()
    assert "; 2 classes, 85 samples; a model that always answers cat is right in " in line


def test_images_of_one_colour_are_not_called_fine(spec: Path) -> None:
    for name, shade in (("cat", 0), ("dog", 200)):
        folder = spec.parent / "data" / name
        folder.mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (32, 32), (shade, shade, shade)).save(folder / f"{number}.png")
    data = {"dataset": "imagefolder", "root": str(spec.parent / "data"), "batch_size": 16, "image_size": 32}
    spec.write_text(yaml.safe_dump({**SPEC, "data": data}))
    last = check(spec, code=1).output.strip().splitlines()[-1]
    assert last.startswith("pre-flight: the data cannot be right: batch[0]: every sample is constant")
    assert "fine" not in last
