"""The charts of a job in a real Chromium: they grow, show values, zoom, and follow the system's colours."""

from __future__ import annotations

from typing import Any

import pytest

from guard.rows import JsonlWriter
from service.reconcile.log_spool import log_path
from tests.browser import CHROMIUM, NO_CHROMIUM, keep
from tests.jobs.report.report_fixture import NAN_AT
from tests.service.api.api_fixture import Api
from tests.service.page.played_jobs import BEFORE, HISTORY, LAST, change
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


def test_the_charts_of_a_job_grow_while_it_runs(page: Any, api: Api) -> None:
    page.goto("/jobs/fashion-0001")
    loss, norm, rate = (page.locator("figure.panel").nth(i) for i in range(3))
    loss.locator("canvas").wait_for()
    assert values(loss)["attempt"] == f"{BEFORE - 1}, step 161", "the last row where nothing is pointed at"
    assert set(values(norm)) == {"attempt", "norm", "clip threshold"}
    assert set(values(rate)) == {"attempt", "learning rate"}
    shade = loss.locator(".rolled-back").bounding_box()
    assert shade["width"] > 20
    assert page.get_by_role("link", name="Incident 2: Loss spike at step 151").count() == 3
    with JsonlWriter(api.root / "runs" / "fashion-0001" / "metrics.jsonl") as writer:
        for row in HISTORY[BEFORE:]:
            writer.write(row)
    until(lambda: values(loss)["attempt"] == f"{LAST}, step 240")
    assert loss.locator(".rolled-back").bounding_box()["x"] < shade["x"], "it moves with the axis"
    page.get_by_text("step 240 of 240").wait_for()
    log = page.get_by_role("region", name="Output of the job")
    with log_path(api.root, "fashion-0001").open("a") as file:
        file.write("the last line\n")
    until(lambda: log.text_content().endswith("the last line\n"))
    assert log.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") < 24, "it follows"
    keep(page, "page-job")


def test_a_rate_that_is_too_high_is_named_with_its_factor(page: Any, api: Api) -> None:
    page.goto("/jobs/fashion-0001")
    page.locator("figure.panel canvas").first.wait_for()
    shown = {
        "about 30 times too high: try one 0.0333 times as high": {"rate_advice": 1 / 30},
        "the guard multiplies it by 0.111": {"rate_factor": 1 / 9},
    }
    for n, (note, found) in enumerate(shown.items(), start=BEFORE):
        with JsonlWriter(api.root / "runs" / "fashion-0001" / "metrics.jsonl") as writer:
            writer.write(HISTORY[n] | found)
        page.get_by_text(note).wait_for()


def values(chart: Any) -> dict[str, str]:
    """The legend of a chart: what it shows of the attempt that is pointed at, else of the last one."""
    rows = chart.locator(".u-series").all()
    return {row.locator("th").inner_text(): row.locator("td").inner_text() for row in rows}


def point_at(page: Any, chart: Any, share: float) -> None:
    """Move the mouse to a part of the width of a chart."""
    box = chart.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2, steps=4)


def test_pointing_at_a_chart_shows_the_values_of_all_charts_there(page: Any) -> None:
    page.goto("/jobs/done")
    charts = [page.locator("figure.panel").nth(i) for i in range(3)]
    charts[2].locator("canvas").wait_for()
    known = {row["attempt"]: row for row in HISTORY if "action" in row}
    last = values(charts[0])
    point_at(page, charts[0], 0.4)
    attempt, _, step = values(charts[0])["attempt"].partition(", step ")
    row = known[int(attempt)]
    assert row["step"] == int(step)
    assert float(values(charts[0])["loss"]) == pytest.approx(row["loss"], rel=0.01)
    assert float(values(charts[1])["norm"]) == pytest.approx(row["grad_norm"], rel=0.01)
    assert float(values(charts[2])["learning rate"]) == pytest.approx(row["lr"], rel=0.01)
    keep(page, "page-hover")
    page.mouse.move(0, 0)
    until(lambda: values(charts[0]) == last)
    point_at(page, charts[0], (NAN_AT - 1) / (len(known) - 1))
    assert values(charts[0])["loss"] == "NaN", "a gap in the line has a value too"


def test_dragging_zooms_all_charts_and_a_double_click_shows_all_again(page: Any, api: Api) -> None:
    page.goto("/jobs/done")
    charts = [page.locator("figure.panel").nth(i) for i in range(3)]
    charts[2].locator("canvas").wait_for()
    whole = [chart.locator(".chart").get_attribute("aria-label") for chart in charts]
    pictures = [picture(chart) for chart in charts]
    point_at(page, charts[1], 0.5)
    page.mouse.down()
    point_at(page, charts[1], 0.75)
    page.mouse.up()
    until(
        lambda: "; attempts 135 to 200 are shown" in charts[0].locator(".chart").get_attribute("aria-label")
    )
    until(lambda: all(picture(chart) != before for chart, before in zip(charts, pictures, strict=True)))
    first, second = (charts[0].locator(".mark").nth(i) for i in range(2))
    assert not first.is_visible(), "incident 1 is outside"
    assert second.is_visible()
    keep(page, "page-zoom")
    change(api, "done", reason="something new")
    page.locator("#state", has_text="something new").wait_for()
    assert not first.is_visible(), "what arrives leaves the zoom as it is"
    change(api, "done", reason="")
    charts[0].locator(".u-over").dblclick(position={"x": 20, "y": 100})
    until(lambda: [chart.locator(".chart").get_attribute("aria-label") for chart in charts] == whole)
    assert first.is_visible()


def picture(chart: Any) -> str:
    """What a chart has drawn."""
    drawn: str = chart.locator("canvas").evaluate("e => e.toDataURL()")
    return drawn


def test_charts_follow_the_system_into_dark_mode(page: Any) -> None:
    page.goto("/jobs/done")
    chart = page.locator("figure.panel").first
    chart.locator("canvas").wait_for()
    light = picture(chart)
    page.emulate_media(color_scheme="dark")
    until(lambda: picture(chart) != light)
