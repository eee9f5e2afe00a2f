"""What people do on the page all day, in a real Chromium: sort, compare, filter a log, replay one, upload."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from service.reconcile.log_spool import log_path
from tests.browser import CHROMIUM, NO_CHROMIUM, keep
from tests.service.api.api_fixture import Api
from tests.service.cli.test_replay_command import write_log
from tests.service.page.test_page_charts import picture, values
from tests.service.page.test_page_routes import VALID
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


def test_the_table_is_sorted_and_two_jobs_are_compared(page: Any) -> None:
    page.goto("/")
    page.locator("tr.job", has_text="88.1 %").wait_for()
    page.get_by_role("button", name="Accuracy").click()
    names = page.locator("tr.job a.name")
    assert names.all_inner_texts()[:2] == ["done", "fashion-0001"]
    page.get_by_role("button", name="Accuracy").click()
    assert names.all_inner_texts()[:2] == ["fashion-0001", "done"], "what is unknown stays last"
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Accuracy")
    assert "sort=Accuracy&order=up" in page.url
    button = page.get_by_role("button", name="Compare")
    for job in ("evil", "done", "fashion-0001"):
        page.get_by_label(f"Choose {job} to compare").check()
    assert not page.get_by_label("Choose evil to compare").is_checked(), "a third one replaces the first"
    button.click()
    page.wait_for_url("**/compare?a=done&b=fashion-0001")
    chart = page.locator("figure.panel").first
    chart.locator("canvas").wait_for()
    until(lambda: set(values(chart)) == {"step", "done", "fashion-0001"} and values(chart)["done"] != "–")
    page.get_by_role("region", name="Figures of both jobs").get_by_text("step 240").first.wait_for()
    page.locator("figure.panel", has_text="Test accuracy").locator("canvas").wait_for()
    keep(page, "page-compare")


def test_axis_and_smoothing_apply_to_all_charts_and_are_in_the_address(page: Any) -> None:
    page.goto("/jobs/done")
    loss = page.locator("figure.panel").first
    loss.locator("canvas").wait_for()
    before = picture(loss)
    page.get_by_label("X axis").select_option("Step")
    until(lambda: "step" in values(loss))
    assert values(loss)["step"].startswith("240, attempt ")
    assert loss.locator(".rolled-back").count() == 0, "what was rolled back is no part of the history"
    page.get_by_label("Smoothing").fill("0.9")
    until(lambda: "loss, smoothed" in values(loss))
    until(lambda: page.url.endswith("?x=step&smooth=0.9"))
    assert picture(loss) != before
    page.reload()
    until(lambda: loss.locator("canvas").count() and "loss, smoothed" in values(loss))
    page.get_by_label("X axis").select_option("Time")
    until(lambda: "time" in values(loss))
    page.locator("figure.panel", has_text="Test loss").locator("canvas").wait_for()


def test_a_log_is_searched_and_its_machine_lines_are_folded(page: Any, api: Api) -> None:
    lines = [
        *(f"status phase=training step={i}/100 loss=1.0" for i in range(30)),
        "12:00:01 info    step 5: continuing from the checkpoint of step 5",
        "12:00:02 warning step 6: stopping",
        "ValueError: no such file",
    ]
    log_path(api.root, "done").write_text("\n".join(lines) + "\n")
    page.goto("/jobs/done")
    log = page.get_by_role("region", name="Output of the job")
    log.get_by_text("30 lines for machines: step=29/100").wait_for()
    assert not log.get_by_text("step=3/100").is_visible()
    page.get_by_label("Level").select_option("Errors")
    assert log.inner_text().strip() == "ValueError: no such file"
    page.get_by_label("Level").select_option("All")
    page.get_by_label("Search").fill("CHECKPOINT")
    assert log.inner_text().strip() == lines[30]
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the log").click()
    assert Path(saved.value.path()).read_text() == log_path(api.root, "done").read_text()


def test_a_dropped_log_shows_what_the_guard_would_have_done(page: Any, tmp_path: Path) -> None:
    page.goto("/replay")
    page.get_by_label("Drop a log here").set_input_files(write_log(tmp_path / "log.csv"))
    page.locator("canvas").nth(1).wait_for()
    table = page.get_by_role("region", name="Alarms, by step").inner_text()
    assert "roll back" in table
    assert "nonfinite" in table
    assert page.locator("a.mark").first.get_attribute("href") == "#alarm-1"
    keep(page, "page-replay")


def test_a_folder_is_uploaded_with_the_job(page: Any, api: Api, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "work.pyc").write_bytes(b"x")
    (folder / "work.py").write_text("print('größe')\n" * 200)
    page.goto("/submit")
    page.get_by_label("Working directory, a folder").set_input_files(folder)
    page.get_by_text("Uploaded 1 file").wait_for()
    page.get_by_label("Spec, YAML").fill(VALID)
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url("**/jobs/digits-*")
    job = api.context.store.get(page.url.rpartition("/")[2])
    content = api.context.packages.content(job.working_dir or "")
    with zipfile.ZipFile(io.BytesIO(content or b"")) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["work.py"]
        assert archive.read("work.py") == (folder / "work.py").read_bytes()
