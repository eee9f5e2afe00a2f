"""report.png: the main chart with words of its own, in the colours of the page."""

import io
import math

import pytest
from PIL import Image

from jobs.report import write_report
from jobs.report.colors import LIGHT
from jobs.report.data import read_run
from jobs.report.picture import caption, draw
from jobs.run_dir.jsonl import write_json_atomic
from tests.jobs.report.report_fixture import (
    nan_incident,
    result,
    rollback_incident,
    rows,
    write_job,
    write_rows,
)


def picture(run):
    return Image.open(io.BytesIO(draw(run))).convert("RGB")


def has_color(image, name):
    wanted = tuple(bytes.fromhex(LIGHT[name].removeprefix("#")))
    return any(color == wanted for _, color in image.getcolors(1 << 24))


@pytest.fixture(scope="module")
def job_dir(tmp_path_factory):
    job_dir = write_job(tmp_path_factory.mktemp("runs") / "fashion")
    write_report(job_dir)
    return job_dir


def test_the_picture_is_beside_the_page(job_dir):
    with Image.open(job_dir / "report.png") as image:
        assert image.format == "PNG"
        assert image.size[0] == 1760
    assert (job_dir / "report.png").stat().st_size < 500_000
    assert (job_dir / "report.html").exists()


def test_the_picture_is_drawn_in_the_colours_of_the_page(job_dir):
    image = picture(read_run(job_dir))
    assert image.getpixel((0, 0)) == tuple(bytes.fromhex(LIGHT["card"][1:]))
    for name in ("ink", "loss", "norm", "clip", "rate", "score", "danger"):
        assert has_color(image, name), name


def test_the_same_files_give_the_same_picture(job_dir):
    assert draw(read_run(job_dir)) == draw(read_run(job_dir))


def test_the_caption_names_the_outcome_and_the_most_severe_incidents(job_dir, tmp_path):
    assert caption(read_run(job_dir))[-2:] == [
        "1  Non-finite loss at step 69: Step skipped",
        "2  Loss spike at step 151: Recovered",
    ]
    many = [nan_incident(i) if i != 20 else rollback_incident(i) for i in range(1, 41)]
    write_rows(tmp_path / "incidents.jsonl", many)
    shown = caption(read_run(tmp_path))
    assert len([line for line in shown if ": " in line and line[0].isdigit()]) == 3
    assert any(line.startswith("20  Loss spike") for line in shown)


def test_any_folder_has_a_picture(tmp_path):
    assert picture(read_run(tmp_path)).size[0] == 1760


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, 0.0, None, "text"])
def test_no_value_breaks_the_picture(tmp_path, value):
    fields = ("loss", "grad_norm", "clip_threshold", "lr", "rolled_back_to")
    write_rows(tmp_path / "metrics.jsonl", [{**row, **dict.fromkeys(fields, value)} for row in rows(20)])
    write_rows(
        tmp_path / "incidents.jsonl", [{**dict.fromkeys(rollback_incident(1), value), "type": "incident"}]
    )
    write_json_atomic(tmp_path / "result.json", dict.fromkeys(result("x", 1), value))
    assert picture(read_run(tmp_path)).size[0] == 1760


def test_a_name_of_any_letters_can_be_drawn(tmp_path):
    write_json_atomic(tmp_path / "result.json", result("层 $x$ \ud800\x00\x1b {}" * 9, 9))
    assert picture(read_run(tmp_path)).size[0] == 1760
