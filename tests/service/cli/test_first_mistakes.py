"""A walk through the product by its first mistakes: what each prints is the line in the documents."""

from __future__ import annotations

import io
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs.cluster.session import PACKAGE_ROOT
from jobs.errors import JobError
from service.cli.app import _missing, main
from service.cli.serve import _bound

SPEC = "data: {dataset: digits, batch_size: 16}\nmodel: {name: resnet18, stem: tiny}\nscale: {device: cpu}\n"
OWN = """
import torch
from torch import nn

class Mine:
    n_train = 64
    def __init__(self, spec): self.x = torch.zeros(64, 4)
    def build_model(self): return nn.Linear(4, 2)
    def train_batch(self, ids, epoch, device): return self.x[ids.copy()]
    def loss(self, model, batch): return model(batch).sum().item()
    def evaluate(self, model, rank, world_size, device): return {}
    def metrics(self, sums): return {}
"""
NOBODY = "http://127.0.0.1:9"
MISTAKES: dict[str, str] = {
    "a Ray address without http": "gradguard serve --address 127.0.0.1:8265",
    "a file that does not exist": "gradguard train my-jbo.yaml",
    "a misspelt field": "gradguard check misspelt.yaml",
    "a number in words": "gradguard train my-job.yaml --set train.max_steps=many",
    "a negative number": "gradguard train my-job.yaml --set train.max_steps=-5",
    "a workload that does not exist": "gradguard check my-job.yaml --set workload=visoin",
    "an override without a value": "gradguard train my-job.yaml --set optimizer.lr",
    "text where a number belongs": "gradguard check text.yaml",
    "a tab in the file": "gradguard check tab.yaml",
    "a model that does not exist": "gradguard check my-job.yaml --set model.name=resnet51",
    "a data set that does not exist": "gradguard check my-job.yaml --set data.dataset=imagenet",
    "a batch that the workers cannot share": "gradguard train my-job.yaml --set scale.workers=3",
    "a warm-up longer than the run": (
        "gradguard check my-job.yaml --set train.max_steps=10 --set schedule.warmup_steps=50"
    ),
    "a folder of images one level too high": (
        "gradguard check my-job.yaml --set data.dataset=imagefolder --set data.root=pictures"
    ),
    "an empty folder": (
        "gradguard check my-job.yaml --set data.dataset=imagefolder --set data.root=runs/empty"
    ),
    "a folder that does not exist": (
        "gradguard check my-job.yaml --set data.dataset=imagefolder --set data.root=picture"
    ),
    "a module that is not beside the spec": "gradguard check own.yaml --set workload=mime:Mine",
    "a module that ends the program": "gradguard check own.yaml --set workload=script:Mine",
    "a class that is not in the module": "gradguard check own.yaml --set workload=mine:Mime",
    "a loss that is a number": "gradguard check own.yaml",
    "a job that exists already": "gradguard train done.yaml",
    "no service": f"gradguard status my-job-1a2b3c --address {NOBODY}",
    "an address without http": "gradguard list --address 127.0.0.1:8410",
    "a token that never works": "gradguard tokens create anna --days 0",
    "an id that does not exist": "gradguard status doen --address runs",
    "a field that a notice does not have": "gradguard check notify.yaml",
    "the spec of a job as a sweep": "gradguard sweep my-job.yaml",
    "a folder that is no job": "gradguard report runs",
    "a column that is not in the log": "gradguard replay log.csv --loss train_los",
    "an age without a unit": "gradguard delete --older-than 30 --address runs",
    "nothing to stop": "gradguard stop --address runs",
}


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which somebody has begun."""
    folder = tmp_path_factory.mktemp("beginner")
    texts = {
        "my-job.yaml": SPEC,
        "misspelt.yaml": SPEC + "optimizer: {momentun: 0.9}\n",
        "text.yaml": SPEC + "optimizer: {lr: fast}\n",
        "tab.yaml": SPEC + "optimizer:\n\tlr: 0.1\n",
        "own.yaml": "workload: mine:Mine\ndata: {batch_size: 16}\nscale: {device: cpu}\n",
        "notify.yaml": SPEC + 'notify: [{url: "https://hooks.example/x", text: "{job} at {setp}"}]\n',
        "mine.py": OWN,
        "script.py": "import sys\nsys.exit(3)\n",
        "done.yaml": SPEC,
        "runs/done/spec.yaml": SPEC,
        "runs/done/metrics.jsonl": '{"step": 1}\n',
        "log.csv": "step,train_loss\n" + "".join(f"{i},{1 / (i + 1)}\n" for i in range(50)),
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "runs" / "empty").mkdir()
    for kind in ("cat", "dog"):
        (folder / "pictures" / "animals" / kind).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"pictures/animals/{kind}/{number}.png")
    return folder


def documented(heading: str = "First mistakes") -> dict[str, tuple[str, str]]:
    """The rows of the table below a heading of the documents: a mistake, its command, and the line."""
    text = (PACKAGE_ROOT / "service" / "README.md").read_text()
    section = text.partition(f"# {heading}\n")[2].partition("\n#")[0]
    row = r"^\| ([a-zA-Z][^|]*) \| `(gradguard [^|]*)` \| (`+) ?([^|]*?) ?\3 \|$"
    rows = re.findall(row, section, re.MULTILINE)
    return {mistake: (command, line) for mistake, command, _, line in rows}


def test_the_documents_list_these_mistakes() -> None:
    assert {mistake: command for mistake, (command, _) in documented().items()} == MISTAKES


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_first_mistake_prints_the_documented_line(
    mistake: str, beginner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(beginner)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", shlex.split(MISTAKES[mistake]))
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    (line,) = printed.err.replace(str(beginner), "/home/me").splitlines()
    assert line == documented()[mistake][1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "gradguard trian a.yaml",
            "gradguard: No such command 'trian'. Did you mean 'train'? See gradguard -h",
        ),
        ("gradguard check a.yaml --layer", "gradguard check: No such option: --layer"),
        ("gradguard status", "gradguard status: Missing argument 'job_id'. See gradguard status -h"),
        ("gradguard tokens", "gradguard tokens: Missing command. See gradguard tokens -h"),
        ("gradguard list --limit 0", "gradguard list: Invalid value for '--limit': "),
        ("gradguard replay a.csv --fail-on spik", "gradguard replay: Invalid value for '--fail-on': "),
    ],
)
def test_what_the_command_does_not_know_is_one_line(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit, match="2"):
        main()
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(said)
    assert printed.endswith(" -h")


def test_a_terminal_of_unknown_width_shows_the_answer(
    beginner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(beginner)
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setattr(sys, "argv", ["gradguard", "replay", "log.csv"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "50 rows: 0 alarms" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_the_terminal_cannot_show_is_escaped(
    encoding: str, beginner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = beginner / "é\udcff.yaml"
    spec.write_text(SPEC)
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "argv", ["gradguard", "check", str(spec), "--no-preflight"])
    with pytest.raises(SystemExit, match="0"):
        main()
    shown.flush()
    assert b"\\udcff.yaml is valid" in shown.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_library_that_is_not_installed_is_one_line() -> None:
    missing = _missing(ModuleNotFoundError("No module named 'ray.train'", name="ray.train"))
    assert "the library ray.train is not installed here" in str(missing)
    assert _missing(ModuleNotFoundError("No module named 'jobs.x'", name="jobs.x")) is None
    assert _missing(ImportError("cannot import name 'x'", name="ray")) is None


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobError, match=f"127.0.0.1:{port}: Address already in use; set --port"):
            _bound("127.0.0.1", port)
    _bound("127.0.0.1", port).close()
