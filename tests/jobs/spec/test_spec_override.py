"""Overrides from the command line mean what the same field in the file would mean."""

from pathlib import Path

import pytest

from jobs.spec.job_spec import JobSpec, SpecError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("seed: 1\nfaults:\n- {kind: nan_loss, step: 3}\n")
    return path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=5", {"seed": 5}),
        ("optimizer.lr=1e-3", {"optimizer": {"lr": 1e-3}}),
        ("guard.clip.max_norm=0.5", {"guard": {"clip": {"max_norm": 0.5}}}),
        ("guard.mode=off", {"guard": {"mode": "off"}}),
        ("data.download=true", {"data": {"download": True}}),
        ("data.root=", {"data": {"root": None}}),
        ("data.root=/a=b", {"data": {"root": "/a=b"}}),
        ("faults[0].step=9", {"faults": [{"kind": "nan_loss", "step": 9}]}),
        ("faults.0.step=9", {"faults": [{"kind": "nan_loss", "step": 9}]}),
        ("faults=[]", {"faults": []}),
        ("guard.clip={kind: norm, max_norm: 2}", {"guard": {"clip": {"kind": "norm", "max_norm": 2.0}}}),
    ],
)
def test_an_override_equals_the_same_field_in_the_file(path: Path, override: str, expected: dict):
    base = {"name": "job", "seed": 1, "faults": [{"kind": "nan_loss", "step": 3}]}
    assert JobSpec.load(path, [override]) == JobSpec.from_dict({**base, **expected})


def test_the_last_override_of_a_field_counts(path: Path):
    assert JobSpec.load(path, ["seed=2", "seed=3"]).seed == 3


def test_options_of_ones_own_workload_may_have_any_depth(path: Path):
    spec = JobSpec.load(path, ["workload=my.lab:Gpt", "options.layers.width=64", "options.3=x"])
    assert spec.options == {"layers": {"width": 64}, "3": "x"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("guard.clip.max_nrom=1", "unknown field (allowed: kind, max_norm, norm_type, max_value, "),
        ("guard.clip.max_nrom=1", 'did you mean "max_norm"?'),
        ("gaurd.clip.max_norm=1", 'did you mean "guard"?'),
        ("lr=1", 'did you mean "optimizer.lr"?'),
        ("seed.x=1", '"seed" is a single value, not a section'),
        ("model.name.x=1", '"model.name" is a single value, not a section'),
        ("seed", "has the form field=value"),
        ("=1", "has the form field=value"),
        ("data..root=1", "has the form field=value"),
        ("", "has the form field=value"),
        ("faults[1].step=1", '"faults" is a list of 1'),
        ("faults.step=1", '"faults" is a list of 1'),
        ("data.batch_size=[", "the value is not valid YAML"),
        ("data.batch_size=x", "must be a valid integer"),
        ("optimizer.name=sdg", 'did you mean "sgd"?'),
        ("guard=1", "must be a section of fields"),
    ],
)
def test_a_wrong_override_is_one_line_that_quotes_it(path: Path, override: str, said: str):
    with pytest.raises(SpecError) as caught:
        JobSpec.load(path, [override])
    assert str(caught.value).startswith(f"--set {override}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_problems_of_overrides_and_of_the_file_are_reported_together(path: Path):
    path.write_text("sead: 1\n")
    with pytest.raises(SpecError) as caught:
        JobSpec.load(path, ["nothing.here=1", "train.epochs=-1"])
    assert [problem.path for problem in caught.value.problems] == ["nothing", "train.epochs", "sead"]
