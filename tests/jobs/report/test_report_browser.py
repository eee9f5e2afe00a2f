"""The pages in a real Chromium: wide, narrow, in the dark and on paper. Pictures are in build/screenshots."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.report import write_report
from jobs.report.compare import compare, write_comparison
from tests.browser import CHROMIUM, DESK, KEPT, NO_CHROMIUM, chromium, keep
from tests.jobs.report.report_fixture import write_job

PHONE = {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
]


HOSTILE = (
    "<script>window.harm = 1</script>",
    '"><img src=x onerror="window.harm = 1">',
    "x" * 3000,
    "\u202e😀'",
)


def hostile(folder: Path) -> Path:
    """A job whose names are those of an attacker, wherever a job may choose them."""
    folder.mkdir()
    rows = [{"attempt": i, "step": i, "action": "applied", "loss": 1 / i, "lr": 0.1} for i in range(1, 31)]
    layers = dict.fromkeys(HOSTILE, 1.0)
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps({**row, 'layers': layers})}\n" for row in rows)
    )
    found = {"type": "incident", "verdict": "spike", "score": 9.0, "baseline": 1.0, "value": 99.0, "step": 9}
    incidents = [
        {**found, "id": i, "attempt": 9 + i, "signal": name, "action": name, "samples": [name]}
        | {"layers": [[name, 0.5]], "reason": name}
        for i, name in enumerate(HOSTILE)
    ]
    (folder / "incidents.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in incidents))
    confusion = {"classes": HOSTILE, "rows": [[1] * len(HOSTILE)] * len(HOSTILE)}
    result = {"status": HOSTILE[0], "error": HOSTILE[1], "metrics": layers, "confusion": confusion}
    (folder / "result.json").write_text(
        json.dumps({**result, "versions": dict(zip(HOSTILE, HOSTILE, strict=True))})
    )
    (folder / "spec.yaml").write_text(json.dumps({"name": "hostile", "tags": HOSTILE}))
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    first, second = write_job(root / "fashion"), write_job(root / "hot", steps=120, name="hot")
    long_name = "a-name-as-long-as-a-job-may-have-0123456789-0123456789-012345"
    named = write_job(root / "named", name=long_name)
    return {
        "report": write_report(first),
        "long-name": write_report(named),
        "hostile": write_report(hostile(root / "hostile")),
        "empty": write_report(root / "nothing"),
        "compare": write_comparison(compare(first, second), root / "compare.html"),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, pages):
    """Opens a page; at the end of the test nothing must have been asked for or complained about."""
    contexts, wrong = [], []

    def open_(name, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        url = pages[name].as_uri()
        page.on("request", lambda request: wrong.append(request.url) if request.url != url else None)
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def too_wide(page):
    """What sticks out to the right, outside of the tables that scroll by themselves."""
    return page.evaluate(
        """() => [...document.querySelectorAll("main *")]
            .filter(e => !e.closest(".scroll") && !e.closest("svg"))
            .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
            .map(e => e.outerHTML.slice(0, 80))"""
    )


@pytest.mark.parametrize("name", ["report", "long-name", "empty", "compare"])
@pytest.mark.parametrize(("place", "size"), [("phone", PHONE), ("desk", DESK)])
def test_nothing_scrolls_sideways(visit, name, place, size):
    page = visit(name, viewport=size)
    keep(page, f"{name}-{place}")
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert too_wide(page) == []


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_names_of_an_attacker_are_text_that_breaks(visit, size):
    page = visit("hostile", viewport=size)
    assert page.evaluate("window.harm") is None
    assert page.get_by_text("window.harm").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]


TEXT_SIZES = """() => [...document.querySelectorAll(".chart text")].map(e =>
    e.getScreenCTM().a * parseFloat(getComputedStyle(e).fontSize))"""
OVERLAPS = """() => [...document.querySelectorAll(".chart svg")].flatMap(svg => {
    const common = (p, q, low, high) => Math.min(p[high], q[high]) - Math.max(p[low], q[low]);
    const boxes = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
        .filter(([, q]) => common(p, q, "left", "right") > 1 && common(p, q, "top", "bottom") > p.height / 4)
        .map(([b]) => `${a} | ${b}`)); })"""
"""Pairs of texts that cover each other."""


@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize("size", [PHONE, {"width": 600, "height": 900}, DESK])
def test_the_text_of_a_chart_can_be_read_on_every_screen(visit, name, size):
    page = visit(name, viewport=size)
    sizes = page.evaluate(TEXT_SIZES)
    assert min(sizes) > 8.5
    assert max(sizes) < 17
    assert page.evaluate(OVERLAPS) == []


def brightness(color):
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")) / 3


@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_and_charts_follow_the_system(visit, name, scheme):
    page = visit(name, viewport=DESK, color_scheme=scheme)
    keep(page, f"{name}-{scheme}")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.body).color")
    label = page.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill")
    assert (brightness(ground) < 60) is (scheme == "dark")
    assert (brightness(ink) > 180) is (scheme == "dark")
    assert (brightness(label) > 120) is (scheme == "dark")


@pytest.mark.parametrize("name", ["report", "compare"])
def test_paper_is_white_however_dark_the_screen(visit, name):
    page = visit(name, viewport=DESK, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".chart svg").first.is_visible()
    content = page.pdf(path=KEPT / f"{name}.pdf", format="A4")
    assert content.startswith(b"%PDF")
    assert 1 <= content.count(b"/Type /Page\n") <= 12


def test_a_mark_in_the_chart_leads_to_its_incident(visit):
    page = visit("report", viewport=DESK)
    page.locator(".chart svg a").last.click()
    assert page.url.endswith("#incident-2")
    assert page.locator("#incident-2").bounding_box()["y"] < DESK["height"]


def test_the_page_can_be_read_aloud(visit):
    page = visit("report", viewport=DESK)
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings[:2] == ["Training", "Incidents"]
    assert {"Where the time went", "Gradient norm by layer", "Gradient share by rank"} <= set(headings)
    assert page.get_by_role("img", name="Loss went from").first.is_visible()
