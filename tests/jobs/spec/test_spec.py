"""What a valid spec means: defaults, round trips, and what the sections demand of each other."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from jobs.spec.job_spec import JobSpec, SpecError, slug
from jobs.spec.schema import section_of
from jobs.spec.sections import ScaleSpec
from jobs.spec.yaml_text import load_yaml

FULL = {
    "name": "full",
    "seed": 7,
    "storage": "/data/runs",
    "scale": {"workers": 2, "device": "cpu", "cpus_per_worker": 2, "max_failures": 0, "timeout_s": 5},
    "model": {"name": "resnet50", "stem": "tiny"},
    "data": {"dataset": "digits", "batch_size": 64, "train_limit": 640, "augment": "standard"},
    "optimizer": {"name": "adamw", "lr": 1e-5, "betas": [0.8, 0.95]},
    "schedule": {"name": "linear", "warmup_steps": 3},
    "train": {"max_steps": 30, "checkpoint_every_steps": 10},
    "guard": {"mode": "off", "clip": {"max_norm": 0.5}},
    "faults": [{"kind": "nan_loss", "step": 12, "rank": 1}],
    "metrics": {"port": 0},
}


def problems(data: dict) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict(data)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def only_problem(data: dict) -> tuple[str, str]:
    found = problems(data)
    assert len(found) == 1, found
    return found[0]


def test_an_empty_spec_is_a_complete_job():
    spec = JobSpec.from_dict({})
    assert (spec.name, spec.workload, spec.scale.workers) == ("job", "vision", 1)
    assert (spec.train.epochs, spec.train.max_steps) == (2, None)
    assert spec.guard.mode == "auto"


@pytest.mark.parametrize("data", [{}, FULL], ids=["defaults", "full"])
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_written_spec_loads_as_the_same_spec(data: dict, suffix: str, tmp_path: Path):
    spec = JobSpec.from_dict(data)
    path = tmp_path / f"elsewhere{suffix}"
    path.write_text(spec.to_yaml() if suffix == ".yaml" else spec.model_dump_json())
    assert JobSpec.load(path) == spec
    assert JobSpec.load(path).to_yaml() == spec.to_yaml()


def test_the_schema_accepts_what_the_model_accepts_and_describes_every_field():
    schema = JobSpec.model_json_schema()
    jsonschema.validate(FULL, schema)
    own = (section for section in sections(JobSpec) if section.__module__.startswith("jobs."))
    for section in own:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no docstring"


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [section_of(field.annotation) for field in model.model_fields.values()]
    return [model, *(deeper for section in inner if section for deeper in sections(section))]


def test_a_spec_cannot_be_changed():
    spec = JobSpec.from_dict({})
    with pytest.raises(ValidationError):
        spec.data.batch_size = 1


@pytest.mark.parametrize(
    ("name", "lr", "momentum", "weight_decay"),
    [("sgd", 0.05, 0.9, 5e-4), ("adam", 1e-3, 0.0, 0.0), ("adamw", 1e-3, 0.0, 0.01)],
)
def test_the_optimizer_defaults_by_its_name(name: str, lr: float, momentum: float, weight_decay: float):
    optimizer = JobSpec.from_dict({"optimizer": {"name": name}}).optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (lr, momentum, weight_decay)
    assert JobSpec.from_dict({"optimizer": {"name": name, "lr": 0.5}}).optimizer.lr == 0.5


def test_steps_alone_set_aside_the_default_epochs():
    assert JobSpec.from_dict({"train": {"max_steps": 5}}).train.epochs is None
    assert JobSpec.from_dict({"train": {"max_steps": 5, "epochs": 3}}).train.epochs == 3


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        ({"scale": {"workers": 3}}, "data.batch_size", "must be a multiple of scale.workers = 3"),
        ({"train": {"epochs": None}}, "train.epochs", "training would never end"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "optimizer.momentum", "is for sgd"),
        ({"optimizer": {"name": "adamw", "nesterov": True}}, "optimizer.nesterov", "is for sgd"),
        ({"optimizer": {"betas": [0.5, 0.9]}}, "optimizer.betas", "is for adam"),
        ({"optimizer": {"momentum": 0, "nesterov": True}}, "optimizer.nesterov", "needs momentum"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr", "must be a finite number"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr", "must be a finite number"),
        (
            {"schedule": {"warmup_steps": 9}, "train": {"max_steps": 9}},
            "train.max_steps",
            "more than schedule",
        ),
        ({"faults": [{"kind": "nan_loss", "step": 1, "rank": 1}]}, "faults[0].rank", "no such rank"),
        (
            {"faults": [{"kind": "nan_loss", "step": 9}], "train": {"max_steps": 9}},
            "faults[0].step",
            "never fires",
        ),
        ({"options": {"depth": 3}}, "options", "is for your own workload"),
        ({"workload": "a.b:"}, "workload", "is not an import path"),
        ({"storage": "s3://bucket/runs"}, "storage", "is a URL"),
        ({"seed": -1}, "seed", "must be greater than or equal to 0"),
        ({"guard": {"clip": {"kind": "norm"}}}, "guard.clip", "max_norm is not set"),
    ],
)
def test_a_contradiction_is_named_with_its_field(data: dict, path: str, message: str):
    found_path, found_message = only_problem(data)
    assert found_path == path
    assert message in found_message


def test_every_fault_is_checked():
    data = {
        "scale": {"workers": 2},
        "faults": [{"kind": "nan_loss", "step": 1, "rank": r} for r in (1, 2, 3)],
    }
    assert [path for path, _ in problems(data)] == ["faults[1].rank", "faults[2].rank"]


def test_a_workload_of_ones_own_may_name_models_and_options_as_it_likes():
    spec = JobSpec.from_dict(
        {"workload": "my.lab:Gpt", "model": {"name": "gpt-30m"}, "options": {"width": 64}}
    )
    assert (spec.model.name, spec.options) == ("gpt-30m", {"width": 64})


@pytest.mark.parametrize("name", ["Fashion", "", ".hidden", "../up", "a b", "x" * 64, "a\n"])
def test_a_name_that_is_no_label_or_folder_is_refused(name: str):
    assert only_problem({"name": name})[0] == "name"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fashion", "fashion"),
        ("My Run (2)", "my-run-2"),
        ("..x..", "x"),
        ("ÄÖ", "job"),
        ("", "job"),
        ("a" * 99, "a" * 63),
    ],
)
def test_any_text_makes_a_valid_name(text: str, name: str):
    assert slug(text) == name
    assert JobSpec.from_dict({"name": slug(text)}).name == name


def test_the_name_comes_from_the_file_unless_it_is_given(tmp_path: Path):
    path = tmp_path / "Fashion MNIST.yaml"
    path.write_text("seed: 1\n")
    assert JobSpec.load(path).name == "fashion-mnist"
    assert JobSpec.load(path, ["name=other"]).name == "other"


def test_folders_are_under_storage_and_can_be_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    spec = JobSpec.from_dict({"name": "a", "storage": "runs", "data": {"root": "sets"}})
    assert spec.job_dir == Path("runs/a")
    absolute = spec.absolute()
    assert absolute.job_dir == tmp_path / "runs" / "a"
    assert absolute.data.root == str(tmp_path / "sets")
    assert absolute.absolute() == absolute
    assert JobSpec.from_dict({"storage": "~/runs"}).job_dir == Path.home() / "runs" / "job"


def test_the_run_ends_with_the_epochs_or_the_steps_whichever_comes_first():
    def total(**train: int | None) -> int:
        return JobSpec.from_dict({"data": {"batch_size": 10}, "train": train}).total_steps(n_train=105)

    assert total(epochs=3) == 30
    assert total(max_steps=1000) == 1000
    assert total(epochs=3, max_steps=1000) == 30
    assert total(epochs=3, max_steps=7) == 7


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"data": {"batch_size": 200}}, "data.batch_size"),
        ({"schedule": {"warmup_steps": 2}}, "schedule.warmup_steps"),
    ],
)
def test_a_run_that_does_not_fit_the_data_is_refused(data: dict, path: str):
    spec = JobSpec.from_dict({"data": {"batch_size": 100}, **data})
    with pytest.raises(SpecError) as caught:
        spec.total_steps(n_train=150)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_a_spec_read_from_json_text_equals_the_one_from_python():
    assert JobSpec.from_dict(json.loads(json.dumps(FULL))) == JobSpec.from_dict(FULL)


@pytest.mark.parametrize("word", ["1e3", "off", "2024-01-01", "true", "007", "1_0", "~", "no", "12:30", ".5"])
def test_a_word_that_looks_like_something_else_survives_being_written(word: str):
    spec = JobSpec.from_dict({"workload": "my.lab:Gpt", "options": {"word": word}})
    assert load_yaml(spec.to_yaml())[1]["options"]["word"] == word
    assert yaml.safe_load(spec.to_yaml())["options"]["word"] == word


@pytest.mark.parametrize(
    "other",
    [
        {"train": {"ema_decay": 0.99}},
        {"train": {"precision": "fp16"}},
        {"regularize": {"l1": 0.1}},
        {"guard": {"clip": {"kind": "agc"}}},
        {"guard": {"on_suspect": "clip"}},
    ],
)
def test_what_must_know_each_step_at_once_cannot_be_deferred(other: dict[str, Any]) -> None:
    guard = {**other.get("guard", {}), "mode": "deferred"}
    with pytest.raises(SpecError, match=r"guard\.mode.*does not work with"):
        JobSpec.from_dict({"name": "job", **other, "guard": guard})
    assert JobSpec.from_dict({"name": "job", "guard": {"mode": "deferred"}}).guard.mode == "deferred"


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        ({"workers": 1}, "1 worker"),
        ({"workers": 4}, "4 workers"),
        ({"workers": 4, "min_workers": 2}, "2 to 4 workers"),
    ],
)
def test_the_workers_are_counted_in_words(scale: dict[str, int], text: str) -> None:
    assert ScaleSpec(**scale).workers_text == text
