"""The errors of a wrong spec: all of them, once, each with its place and what to write instead."""

import pickle
import textwrap
from pathlib import Path

import pytest

from jobs.spec.job_spec import JobSpec, SpecError

WRONG = """
    seed: "0"
    model: {name: resnet81}
    data:
      batch_size: true
      dwnload: true
    optimizer:
      name: sgdd
      lr: -1e-3
    lr: 0.1
    train: {epochs: 2.0}
    guard:
      clip:
        max_nrom: 1
      local_norm: none
    faults:
    - {kind: nan_los, step: 60}
    - {kind: nan_loss}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "wrong.yaml"
    path.write_text(textwrap.dedent(text).lstrip())
    return path


def error_of(path: Path) -> SpecError:
    with pytest.raises(SpecError) as caught:
        JobSpec.load(path)
    return caught.value


def line_of(error: SpecError, field: str) -> str:
    (line,) = [line for line in str(error).splitlines() if f": {field}" in line]
    return line


def test_all_problems_are_reported_at_once_one_line_each(tmp_path: Path):
    error = error_of(write(tmp_path, WRONG))
    assert {problem.path for problem in error.problems} == {
        *("seed", "model.name", "data.batch_size", "data.dwnload", "optimizer.name", "optimizer.lr", "lr"),
        *("train.epochs", "guard.clip.max_nrom", "guard.local_norm", "faults[0].kind", "faults[1].step"),
    }
    assert len(str(error).splitlines()) == len(error.problems)


@pytest.mark.parametrize(
    ("field", "line", "parts"),
    [
        ("seed", 1, ['"0"', "valid integer", "without quotes"]),
        ("model.name", 2, ["resnet81", 'did you mean "resnet18"?']),
        ("data.batch_size", 4, ["true", "valid integer"]),
        ("data.dwnload", 5, ["unknown field", "train_limit", 'did you mean "download"?']),
        ("optimizer.name", 7, ["sgdd", "one of sgd, adam, adamw", 'did you mean "sgd"?']),
        ("optimizer.lr", 8, ["-0.001", "greater than 0"]),
        ("lr", 9, ["unknown field", 'did you mean "optimizer.lr"?']),
        ("train.epochs", 10, ["2.0", "valid integer", "write 2"]),
        ("guard.clip.max_nrom", 13, ["unknown field", "max_norm", 'did you mean "max_norm"?']),
        ("guard.local_norm", 14, ["none", "off", "always", "valid integer"]),
        ("faults[0].kind", 16, ["nan_los", 'did you mean "nan_loss"?']),
        ("faults[1].step", 17, ["is required"]),
    ],
)
def test_a_line_names_the_place_the_value_what_is_allowed_and_what_was_meant(
    tmp_path: Path, field: str, line: int, parts: list[str]
):
    path = write(tmp_path, WRONG)
    said = line_of(error_of(path), field)
    assert said.startswith(f"{path}:{line}: {field}")
    for part in parts:
        assert part in said


def test_a_problem_is_found_beside_others_that_stop_its_neighbours(tmp_path: Path):
    error = error_of(write(tmp_path, "scale: {workers: 3, device: tpu}\ntrain: {max_steps: 0, epochs: x}\n"))
    assert [p.path for p in error.problems] == ["scale.device", "train.max_steps", "train.epochs"]


def test_a_value_in_place_of_a_section_is_refused_with_the_right_form(tmp_path: Path):
    error = error_of(write(tmp_path, "guard: exact\nfaults: none\n"))
    assert "guard" in str(error)
    assert "must be a section of fields" in str(error).splitlines()[0]
    assert "pydantic" not in str(error).lower()


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("$HOME/runs", "variables are not replaced"),
        ("/data/${USER}", "variables are not replaced"),
        ("a\tb", "must be printable"),
        ("a/" + "é" * 200, "at most 255 bytes"),
        ("a/" * 1000, "at most 1000 characters"),
    ],
)
def test_a_folder_that_nobody_can_have_meant_is_refused(storage: str, said: str):
    with pytest.raises(SpecError, match=said):
        JobSpec.from_dict({"storage": storage})


def test_a_secret_in_the_wrong_section_is_not_printed():
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"optimizer": {"api_key": "hunter2hunter2"}, "model": {"name": "hunter3"}})
    assert "hunter2" not in str(caught.value)
    assert "hunter3" in str(caught.value)


def test_what_json_cannot_hold_is_named():
    with pytest.raises(SpecError, match=r"options\.x = .*\(U\+D800\): delete it"):
        JobSpec.from_dict({"workload": "my:Own", "options": {"x": "a\ud800"}})
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    with pytest.raises(SpecError, match="nested too deeply to be a spec"):
        JobSpec.from_dict({"workload": "my:Own", "options": deep})


def test_a_long_value_is_cut(tmp_path: Path):
    error = error_of(write(tmp_path, f"workload: {'x' * 500}\n"))
    assert "..." in str(error)
    assert len(str(error)) < 300


def test_words_for_truth_get_the_word_that_counts(tmp_path: Path):
    error = error_of(write(tmp_path, "data: {download: yes}\n"))
    assert str(error).endswith("write true")


def test_an_error_without_a_file_begins_with_the_field():
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"sead": 1})
    assert str(caught.value).startswith("sead = 1: unknown field")
    assert str(caught.value).endswith('did you mean "seed"?')


def test_an_error_survives_the_way_between_processes(tmp_path: Path):
    error = error_of(write(tmp_path, WRONG))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
