"""The page in a real Chromium, on jobs whose files these tests write. Pictures are kept to look at."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from service.api import Limits
from tests.browser import CHROMIUM, DESK, NO_CHROMIUM, keep
from tests.service.api.api_fixture import Api
from tests.service.page.page_checks import NAMELESS, POOR_CONTRAST, STRUCTURE, TOO_SMALL, TOO_WIDE
from tests.service.page.page_fixture import PHONE, visitor
from tests.service.page.played_jobs import EVIL, change
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


def test_the_list_shows_jobs_with_sparklines_and_filters_them(page: Any) -> None:
    page.goto("/")
    row = page.locator("tr.job", has_text="fashion-0001")
    row.locator("svg.spark path.loss").wait_for()
    assert row.get_by_role("img", name="Loss, recent").is_visible()
    assert row.get_by_role("img", name="Gradient norm, recent").is_visible()
    assert "Waiting for 2 GPUs, 1 free" in page.locator("tr.job", has_text="asks-for-gpus").inner_text()
    assert page.locator("tr.job").count() == 4
    keep(page, "page-list")
    page.get_by_label("Show").select_option("Waiting")
    page.locator("tr.job", has_text="evil").wait_for(state="detached")
    assert page.locator("tr.job a").all_inner_texts() == ["asks-for-gpus"]
    page.get_by_label("Show").select_option("All")
    page.get_by_label("Name contains").fill("fash")
    page.wait_for_url(lambda url: url.endswith("/?name=fash"))
    page.locator("tr.job", has_text="done").wait_for(state="detached")
    assert page.locator("tr.job a").all_inner_texts() == ["fashion-0001"]


def test_an_incident_shows_its_evidence_and_a_mark_leads_to_it(page: Any) -> None:
    page.goto("/jobs/fashion-0001")
    page.get_by_role("link", name="Incident 2: Loss spike at step 151").first.click()
    card = page.locator("#incident-2")
    assert page.url.endswith("#incident-2")
    card.get_by_text("Evidence").click()
    said = card.inner_text()
    assert "Recovered" in said
    assert "rolled back 26 steps to step 125" in said
    assert "7.05" in said
    assert "0.41" in said
    assert "26 steps, 21 ms" in said
    assert "layer4.1.conv2.weight" in card.get_by_role("list", name="Layers, the worst first").inner_text()
    assert "3.5" in card.get_by_role("list", name="Weights that moved, the furthest first").inner_text()
    assert "97 %" in card.get_by_role("list", name="Ranks, the worst first").inner_text()
    assert "1000–1063" in card.locator(".wrap").inner_text()
    page.get_by_text("The steps as a table").click()
    table = page.get_by_role("region", name="The last 40 attempts, the newest first")
    table.wait_for()
    assert table.get_by_role("row").count() == 41


def test_a_change_of_state_is_announced_and_the_buttons_follow_it(page: Any, api: Api) -> None:
    page.goto("/jobs/asks-for-gpus")
    state = page.locator("#state[role=status]")
    page.get_by_text("Waiting for 2 GPUs, 1 free").wait_for()
    assert page.get_by_role("button", name="Resume").count() == 0
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert api.context.store.get("asks-for-gpus").state == "waiting"
    page.get_by_role("button", name="Stop").click()
    keep(page, "page-confirm")
    page.get_by_role("dialog").get_by_role("button", name="Stop the job").click()
    page.get_by_role("button", name="Resume").wait_for()
    assert state.inner_text() == "Stopped: submit asked it to stop"
    assert api.context.store.get("asks-for-gpus").state == "stopped"
    change(api, "asks-for-gpus", state="waiting", reason="waiting for 2 GPUs, 1 free")
    page.get_by_role("button", name="Stop").wait_for()


def test_a_stream_that_ends_is_taken_up_again(page: Any, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.context, "limits", Limits(follow_s=0.2))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/live") else None)
    page.goto("/jobs/done")
    page.locator("canvas").first.wait_for()
    until(lambda: page.evaluate("1") and len(asked) >= 3)
    change(api, "done", reason="all is well")
    page.locator("#state", has_text="Succeeded: all is well").wait_for()
    assert page.locator("article.incident").count() == 2, "what came twice is there once"
    change(api, "done", reason="")


def test_what_a_job_wrote_is_text(page: Any) -> None:
    page.goto("/")
    page.locator("tr.job td", has_text=EVIL).wait_for()
    page.get_by_role("link", name="evil").click()
    page.get_by_role("heading", level=1, name="evil").wait_for()
    page.locator("#state", has_text=f"it said {EVIL}").wait_for()
    page.locator(".log", has_text=EVIL).wait_for()
    page.locator("#incident-1").get_by_text("Evidence").click()
    assert page.locator("#incident-1 .bars .label", has_text=EVIL).count() == 1
    assert page.locator("main img, main script").count() == 0


def test_a_script_cannot_make_html_of_text(browser: Any, url: str) -> None:
    tried = (
        "() => { try { document.body.innerHTML = '<b>x</b>'; return ''; } catch (e) { return e.message; } }"
    )
    with visitor(browser, url, expected="TrustedHTML") as page:
        page.goto("/")
        assert "TrustedHTML" in page.evaluate(tried)


def test_the_form_checks_while_typing_and_submits(page: Any, api: Api) -> None:
    page.goto("/submit")
    spec = page.get_by_label("Spec, YAML")
    page.get_by_label("Start from an example").select_option("fashion")
    page.get_by_text("The spec is valid. It asks for 2 workers, 2 CPUs.").wait_for()
    spec.fill(
        "name: typed\nscale:\n  workers: 1\noptimizer:\n  name: sgd\n  lr: -1\ntrian:\n  max_steps: 5\n"
    )
    fault = page.get_by_role("button", name="Line 6 optimizer.lr")
    fault.wait_for()
    assert 'did you mean "train"' in page.get_by_role("button", name="Line 7 trian").inner_text()
    assert page.locator(".gutter .bad").all_inner_texts() == ["6", "7"]
    assert spec.get_attribute("aria-invalid") == "true"
    keep(page, "page-faults")
    page.get_by_role("button", name="Submit the job").click()
    assert page.evaluate("document.activeElement.innerText").startswith("Line 6"), "the first fault"
    fault.click()
    chosen = (
        "() => { const e = document.activeElement; return e.value.slice(e.selectionStart, e.selectionEnd); }"
    )
    assert page.evaluate(chosen) == "  lr: -1"
    page.keyboard.type("  lr: 0.1")
    fault.wait_for(state="detached")
    spec.fill(spec.input_value().replace("trian", "train"))
    page.get_by_label("Environment").fill("DEPTH=3\nAPI_KEY=hunter2=hunter2")
    page.get_by_label("Priority").fill("4")
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url("**/jobs/typed-*")
    page.locator("#state", has_text="Queued: submitted").wait_for()
    row = api.context.store.get(page.url.rpartition("/")[2])
    assert (row.priority, row.env) == (4, {"DEPTH": "3", "API_KEY": "hunter2=hunter2"})
    assert row.spec is not None
    assert row.spec["optimizer"]["lr"] == 0.1
    page.get_by_role("button", name="Clone").click()
    page.get_by_text("Enter these again, with their values: API_KEY.").wait_for()
    page.get_by_text("The spec is valid. It asks for 1 worker, 1 CPU.").wait_for()
    assert "lr: 0.1" in spec.input_value()
    api.context.store.delete(row.id, lambda _: None)


def test_a_token_is_needed_and_readers_get_no_buttons(browser: Any, url: str, api: Api) -> None:
    with visitor(browser, url) as page:
        page.goto("/jobs/fashion-0001")
        token = page.get_by_label("Token")
        token.fill("two words")
        page.keyboard.press("Enter")
        page.get_by_role("alert").filter(has_text="A token is one word").wait_for()
        keep(page, "page-login")
        token.fill(api.tokens["read"])
        page.keyboard.press("Enter")
        page.locator("canvas").first.wait_for()
        assert page.locator("#who").inner_text().startswith("read (read)")
        buttons = page.get_by_role("group", name="Actions").get_by_role("button")
        assert buttons.all_inner_texts() == ["Save the report"]
        assert not page.get_by_role("link", name="Submit").is_visible()
        with page.expect_download() as saved:
            buttons.first.click()
        assert "<html" in Path(saved.value.path()).read_text()
        assert page.evaluate("document.cookie + JSON.stringify({...localStorage})") == "{}"
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Token").wait_for()
        assert page.evaluate("sessionStorage.length") == 0


def test_everything_can_be_done_with_the_keyboard(page: Any) -> None:
    page.goto("/")
    page.locator("tr.job").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0, "it is seen"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "fashion-0001":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1, name="fashion-0001").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.get_by_role("button", name="Stop").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Stop"
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert page.evaluate("document.activeElement.innerText") == "Stop"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("document.activeElement.className?.baseVal ?? document.activeElement.className")
        )
        if page.evaluate("document.activeElement === document.body"):
            break
    assert {"mark", "log"} <= seen, "marks and the log are reached, and nothing is a trap"
    page.go_back()
    page.get_by_role("heading", level=1, name="Jobs").wait_for()


def test_an_unknown_address_is_reported(browser: Any, url: str, api: Api) -> None:
    with visitor(browser, url, token=api.tokens["read"], expected="404") as page:
        page.goto("/jobs/none")
        page.locator("#state", has_text="There is no job none").wait_for()
    with visitor(browser, url, token="gg_00000000_guess", expected="401") as page:
        page.goto("/")
        page.get_by_role("alert").filter(has_text="the token is invalid").wait_for()


READY = {
    "/": "tr.job svg.spark path",
    "/jobs/fashion-0001": "#incident-2",
    "/jobs/evil": "#incident-1",
    "/submit": "#example option:nth-child(3)",
    "/compare?a=done&b=fashion-0001": "canvas",
    "/replay": "#log-file",
}


def name_of(place: str) -> str:
    return place.partition("?")[0].strip("/").replace("/", "-") or "list"


@pytest.mark.parametrize("place", READY)
def test_a_phone_does_not_scroll_sideways(browser: Any, url: str, api: Api, place: str) -> None:
    with visitor(browser, url, token=api.tokens["submit"], viewport=PHONE, has_touch=True) as page:
        page.goto(place)
        page.locator(READY[place]).first.wait_for(state="attached")
        for closed in page.locator("details > summary").all():
            closed.click()
        keep(page, f"page-phone-{name_of(place)}")
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate(TOO_SMALL) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_read_aloud(browser: Any, url: str, api: Api, scheme: str) -> None:
    with visitor(browser, url, token=api.tokens["submit"], viewport=DESK, color_scheme=scheme) as page:
        for place in READY:
            page.goto(place)
            page.locator(READY[place]).first.wait_for(state="attached")
            for closed in page.locator("details > summary").all():
                closed.click()
            if scheme == "dark":
                keep(page, f"page-dark-{name_of(place)}")
            assert page.evaluate(NAMELESS) == [], place
            assert page.evaluate(POOR_CONTRAST) == [], place
            found = page.evaluate(STRUCTURE)
            assert (found["main"], found["nav"], found["h1"], found["lang"]) == (1, 1, 1, "en"), place
            assert len(found["ids"]) == len(set(found["ids"])), place
            assert found["broken"] == [], place
            levels = found["levels"]
            assert all(b - a <= 1 for a, b in pairwise(levels)), (place, levels)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 26)"
        assert dark is (scheme == "dark")
