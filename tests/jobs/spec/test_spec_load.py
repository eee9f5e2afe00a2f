"""Reading spec files: the rules of YAML 1.2, and one clear line for whatever cannot be read."""

from pathlib import Path

import pytest

from jobs.spec.job_spec import JobSpec, SpecError
from jobs.spec.load import read_document
from jobs.spec.yaml_text import load_yaml


def failure(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        JobSpec.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(folder: Path, content: str | bytes, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("60_000", 60000),
        ("010", 10),
        ("-7", -7),
        ("true", True),
        ("False", False),
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        (".inf", float("inf")),
        ('"1e-3"', "1e-3"),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
        ("resnet18", "resnet18"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_a_scalar_is_what_it_looks_like(text: str, value: object):
    loaded = load_yaml(text)[1]
    assert loaded == value
    assert type(loaded) is type(value)


def test_a_key_is_the_text_that_is_written():
    text = "1: a\n~: b\n007: c\nx: &x {2: d, no: e}\ny: {<<: *x, 3.0: f}\n"
    x = {"2": "d", "no": "e"}
    assert load_yaml(text)[1] == {"1": "a", "~": "b", "007": "c", "x": x, "y": {**x, "3.0": "f"}}


def test_off_stays_a_word_in_a_spec(tmp_path: Path):
    spec = JobSpec.load(written(tmp_path, "guard: {mode: off, local_norm: off, clip: {kind: off}}"))
    assert (spec.guard.mode, spec.guard.local_norm, spec.guard.clip.kind) == ("off", "off", "off")


def test_anchors_and_merges_work(tmp_path: Path):
    spec = JobSpec.load(written(tmp_path, "data: {<<: {batch_size: 8, train_limit: 80}, batch_size: 16}\n"))
    assert (spec.data.batch_size, spec.data.train_limit) == (16, 80)


def test_a_byte_order_mark_and_empty_sections_do_no_harm(tmp_path: Path):
    spec = JobSpec.load(
        written(tmp_path, b"\xef\xbb\xbfseed: 3\nguard:\n  clip:\n  # max_norm: 1\nfaults: []\n")
    )
    assert spec == JobSpec.from_dict({"name": "job", "seed": 3})


def test_a_json_file_may_be_indented_with_tabs(tmp_path: Path):
    spec = JobSpec.load(written(tmp_path, '{\n\t"seed": 3,\n\t"optimizer": {"lr": 1e-3}\n}', "job.json"))
    assert (spec.seed, spec.optimizer.lr) == (3, 1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("  \n\n", "is empty"),
        ("# nothing\n", "contains nothing but comments"),
        ("- seed: 1\n", "contains a list"),
        ("seed\n", "contains a single value"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not a text file"),
        (b"PK\0\0seed: 1", "is not a text file"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        ("seed: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
        ("seed: \x07\n", "is not valid YAML"),
        ("{" * 3_000, "nested too deeply"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: [" + "1," * 20_001 + "]\n", "more than 20000 values"),
        ("seed: " + "9" * 5000, "is not valid YAML"),
        ("#" * (1 << 17) + "\nseed: 1\n", "a spec has at most"),
    ],
)
def test_what_is_no_spec_is_refused_in_one_line(tmp_path: Path, content: str | bytes, said: str):
    path = written(tmp_path, content)
    line = failure(path)
    assert line.startswith(str(path))
    assert said in line


@pytest.mark.parametrize(
    ("path", "said"),
    [("/dev/zero", "a spec has at most"), ("/dev/null", "is empty"), ("a\0b", "cannot be read")],
)
def test_a_device_without_end_and_a_name_that_cannot_be_are_one_line(path: str, said: str):
    assert said in failure(Path(path))


@pytest.mark.parametrize("data", [None, [], "name: a", JobSpec()])
def test_what_is_no_mapping_is_no_spec(data: object):
    with pytest.raises(SpecError, match=r"^a spec is a mapping of fields, such as \{'seed': 0\}, not "):
        JobSpec.from_dict(data)


def test_a_value_that_contains_itself_is_refused():
    options: dict[str, object] = {}
    options["own"] = options
    with pytest.raises(SpecError, match="nested too deeply"):
        JobSpec.from_dict({"workload": "my:Own", "options": options})


def test_one_override_may_be_given_alone(tmp_path: Path):
    assert JobSpec.load(written(tmp_path, "seed: 1\n"), "seed=2").seed == 2


def test_aliases_that_would_expand_without_end_are_refused(tmp_path: Path):
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    bomb += "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    assert "more than 20000 values" in failure(written(tmp_path, bomb))


def test_a_syntax_error_has_line_and_column(tmp_path: Path):
    path = written(tmp_path, "seed: 1\ndata: {batch_size: 8\ntrain: 2\n")
    assert failure(path).startswith(f"{path}:3:6: is not valid YAML: ")
    path = written(tmp_path, '{"seed": 1,\n "data": }', "job.json")
    assert failure(path).startswith(f"{path}:2:10: is not valid JSON: ")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("job.yaml", "seed: 1\ndata:\n  batch_size: 8\n  batch_size: 16\n", ":4:"),
        ("job.json", '{"data": {"batch_size": 8, "batch_size": 16}}', ":"),
    ],
)
def test_a_key_given_twice_is_an_error(tmp_path: Path, name: str, content: str, line: str):
    path = written(tmp_path, content, name)
    assert failure(path).startswith(f"{path}{line}")
    assert 'the key "batch_size" is given twice' in failure(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    assert failure(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such file"
    assert "is a folder" in failure(tmp_path)
    assert "cannot be read" in failure(written(tmp_path, "seed: 1") / "below.yaml")


def test_every_field_knows_its_line(tmp_path: Path):
    path = written(tmp_path, "seed: 1\nfaults:\n- kind: nan_loss\n  step: 4\n")
    where = read_document(path).where
    assert where["faults[0].step"] == f"{path}:4"
    assert where[""] == str(path)


def test_a_tab_and_a_no_break_space_are_named_with_what_to_write(tmp_path: Path):
    line = failure(written(tmp_path, "data:\n\tbatch_size: 8\n"))
    assert ":2:1: " in line
    assert line.endswith("write spaces instead of the tab")
    line = failure(written(tmp_path, "seed: 7\u00a0\n"))
    assert ":1: seed = " in line
    assert line.endswith("it contains an invisible no-break space (U+00A0): write an ordinary space")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {<<: *a}\n",
        "? [1]\n: 2\n",
        "seed: !mine 3\n",
        "a: @b\n",
        "%YAML 9.9\n---\nseed: 1\n",
        "a: *b\n",
        "name: !!binary aGVsbG8=\n",
        "data: !!set {a}\n",
        "name: !!timestamp 2001-01-01\n",
    ],
)
def test_no_yaml_makes_a_traceback(tmp_path: Path, text: str):
    assert failure(written(tmp_path, text)).startswith(f"{tmp_path / 'job.yaml'}")


def test_errors_come_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = "train: {max_steps: no}\noptimizer:\n  lr: -1\nseed: x\nscale: {workers: 0}\n"
    with pytest.raises(SpecError) as caught:
        JobSpec.load(written(tmp_path, text), ["data.batch_size=-1"])
    paths = [problem.path for problem in caught.value.problems]
    assert paths == ["data.batch_size", "train.max_steps", "optimizer.lr", "seed", "scale.workers"]
