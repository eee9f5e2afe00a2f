import math
import random
import re
from html.parser import HTMLParser

import pytest

from guard import Incident
from jobs.report import charts, write_page
from jobs.report.data import read_run
from jobs.report.page import render, setup_words
from jobs.run_dir.jsonl import iter_jsonl, write_json_atomic
from tests.jobs.report.report_fixture import (
    LAYERS,
    SPEC,
    incident_row,
    nan_incident,
    result,
    rollback_incident,
    row_at,
    rows,
    write_job,
    write_rows,
)

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}$\\frac"


class Page(HTMLParser):
    """Every element with its attributes, all text, and whether the tags are balanced."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def tags(self):
        return {tag for tag, _ in self.elements}


def page_of(job_dir):
    return Page(write_page(job_dir).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def job_dir(tmp_path_factory):
    job_dir = write_job(tmp_path_factory.mktemp("runs") / "fashion")
    write_page(job_dir)
    return job_dir


@pytest.fixture
def html(job_dir):
    return (job_dir / "report.html").read_text(encoding="utf-8")


def assert_harmless(html):
    page = Page(html)
    assert not page.open
    assert not page.tags() & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for name in ("src", "href", "xlink:href", "action"):
        assert all(value.startswith(("#", "data:image/png;base64,")) for value in page.attributes(name))
    assert set(re.findall(r"https?://[^\s\"'<)]*", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    return page


def test_page_needs_nothing_beside_it_and_runs_nothing(html):
    assert_harmless(html)


def test_page_is_well_formed_for_readers_of_all_kinds(html):
    page = Page(html)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(page.attributes("href")) <= {f"#{id_}" for id_ in ids}
    assert {value[1:] for value in page.attributes("xlink:href") if value.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)
    assert {label for labels in page.attributes("aria-labelledby") for label in labels.split()} <= set(ids)
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    charts = [attributes for _, attributes in page.elements if "chart" in attributes.get("class", "").split()]
    assert charts
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert [tag for tag, _ in page.elements if tag == "h1"] == ["h1"]
    assert ("html", {"lang": "en"}) in page.elements
    assert "width=device-width, initial-scale=1" in page.attributes("content")


def test_page_describes_what_happened(html):
    text = Page(html).text
    for part in (
        "fashion Succeeded",
        "resnet18 fashion-mnist SGD, lr 0.1 batch 128 2 epochs 2 workers",
        "The run finished 240 steps in 3 min 1 s and reached a test accuracy of 88.1 %.",
        "The guard stepped in: 1 skip and 1 rollback; 26 steps were lost.",
        "Non-finite loss at step 69 Step skipped",
        "Loss spike at step 151 Recovered",
        "Recovered in 52 steps.",
        "layer4.1.conv2 88 35.2 × 71 %",
        "Samples in the batch: 1000–1063",
        "120 1 84.2 % 0.44 240 2 88.1 % 0.336",
        "torch 2.13.0",
        "gradguard train spec.yaml",
    ):
        assert part in text
    assert " ".join(SPEC.split()) in text


def test_charts_follow_the_colours_of_the_page(html):
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        assert not re.findall(r"(?:fill|stroke): #", svg)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_the_same_files_give_the_same_page(job_dir, html):
    assert write_page(job_dir).read_text(encoding="utf-8") == html


def test_every_incident_is_on_the_page_once(tmp_path):
    job = write_job(tmp_path / "job")
    incidents = [nan_incident(i) if i % 3 else rollback_incident(i) for i in range(1, 61)]
    (job / "incidents.jsonl").unlink()
    write_rows(job / "incidents.jsonl", incidents)
    page = page_of(job)
    assert sorted(page.attributes("id").count(f"incident-{i}") for i in range(1, 61)) == [1] * 60
    assert page.text.count("The guard rolled back") == 20


def test_an_incident_number_that_came_twice_has_two_anchors(tmp_path):
    write_rows(tmp_path / "incidents.jsonl", [nan_incident(1), rollback_incident(1)])
    assert {"incident-1", "incident-1-2"} <= set(page_of(tmp_path).attributes("id"))


def test_the_contents_of_files_are_only_text(tmp_path):
    job = write_job(tmp_path / "job")
    write_json_atomic(
        job / "result.json",
        result(
            HOSTILE,
            9,
            status=HOSTILE,
            error=HOSTILE,
            resume=HOSTILE,
            versions={HOSTILE: HOSTILE},
            metrics={HOSTILE: 1.0},
        ),
    )
    (job / "spec.yaml").write_text(f"model: {{name: {HOSTILE!r}}}\n# {HOSTILE}")
    bad = {
        **incident_row(3, HOSTILE, attempt=9, step=8, verdict=HOSTILE, value=1.0, score=1.0, action=HOSTILE),
        "signal": HOSTILE,
        "layers": [{"name": HOSTILE, "norm": 1.0, "share": 0.5, "growth": 2.0}],
        "samples": [HOSTILE],
    }
    write_rows(job / "incidents.jsonl", [bad])
    last = [*iter_jsonl(job / "metrics.jsonl")][-1]["attempt"]
    write_rows(
        job / "metrics.jsonl",
        [
            {**row_at_last(last + 1), "layers": {HOSTILE: 1.0}},
            {"attempt": last + 1, "step": 1, "eval": {HOSTILE: 1.0}},
        ],
    )
    html = write_page(job).read_text(encoding="utf-8")
    assert_harmless(html)
    assert html.count("<script") == 0
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 8


def row_at_last(attempt):
    return row_at(random.Random(0), attempt, attempt)


def test_names_in_any_script_can_be_drawn_and_written(tmp_path):
    job = write_job(tmp_path / "job")
    names = {"层.weight": 1.0, "слой$x$.bias": 2.0, "\ud800\x00\x1b": 3.0, "": 4.0}
    write_rows(job / "metrics.jsonl", [{**row_at_last(900), "layers": names}])
    assert "层" in page_of(job).text


@pytest.mark.parametrize("missing", ["spec.yaml", "metrics.jsonl", "incidents.jsonl", "result.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
def test_any_file_may_be_missing_empty_or_cut(tmp_path, missing, how):
    job = write_job(tmp_path / "job")
    path = job / missing
    whole = path.read_bytes()
    path.write_bytes(b"" if how == "empty" else whole[: len(whole) * 2 // 3])
    if how == "missing":
        path.unlink()
    page = page_of(job)
    assert "How to reproduce" in page.text
    if missing == "result.json":
        assert "Still running, or killed" in page.text
    if missing == "metrics.jsonl" and how != "cut":
        assert "No steps have been recorded yet." in page.text
    if missing == "incidents.jsonl" and how != "cut":
        assert "incidents.jsonl has no incident: it is missing or was cut" in page.text


def test_a_folder_with_nothing_in_it_has_a_report(tmp_path):
    page = page_of(tmp_path)
    assert tmp_path.name in page.text
    assert "No steps have been recorded yet." in page.text
    assert "No incidents: no step has been recorded yet." in page.text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("failed", "Failed"),
        ("halted", "Halted by the guard"),
        ("stopped", "Stopped"),
        ("succeeded", "Succeeded"),
    ],
)
def test_the_status_is_shown_in_words_with_the_error_and_how_to_continue(tmp_path, status, said):
    job = write_job(tmp_path / "job")
    write_json_atomic(
        job / "result.json",
        result("job", 9, status=status, error="out of luck", resume="gradguard train x --resume"),
    )
    text = page_of(job).text
    assert f"job {said}" in text
    assert "Error out of luck" in text
    assert "To continue gradguard train x --resume" in text


@pytest.mark.parametrize(
    ("mode", "said"), [("off", "The guard was off"), ("shadow", "shadow mode"), ("exact", "No incidents.")]
)
def test_a_run_without_incidents_explains_why(tmp_path, mode, said):
    (tmp_path / "spec.yaml").write_text(f"guard: {{mode: {mode}}}")
    write_rows(
        tmp_path / "metrics.jsonl",
        [{"attempt": i, "step": i, "loss": 1.0, "action": "applied"} for i in range(3)],
    )
    assert said in page_of(tmp_path).text


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, 5e-324, None, "text", True, []]
)
def test_no_value_breaks_the_page(tmp_path, value):
    fields = ("loss", "grad_norm", "clip_threshold", "lr", "step_seconds", "time", "rolled_back_to", "score")
    bad = [{**row, **dict.fromkeys(fields, value)} for row in rows(40)]
    nested = {"layers": dict.fromkeys(LAYERS, value), "local_norms": [value, value]}
    write_rows(tmp_path / "metrics.jsonl", [{**row, **nested} for row in bad])
    evidence = ("window", "layers", "ranks")
    entries = {key: [dict.fromkeys(rollback_incident(1)[key][0], value)] * 3 for key in evidence}
    broken = [dict.fromkeys(rollback_incident(1), value), {**rollback_incident(2), **entries}]
    write_rows(tmp_path / "incidents.jsonl", [{**row, "type": "incident"} for row in broken])
    write_json_atomic(tmp_path / "result.json", dict.fromkeys(result("x", 1), value))
    assert_harmless(write_page(tmp_path).read_text(encoding="utf-8"))


def test_an_update_ratio_that_was_measured_has_a_chart(tmp_path, html):
    measured = [{**row_at_last(i), **({"update_ratio": 1e-3} if i % 5 == 0 else {})} for i in range(1, 40)]
    write_rows(tmp_path / "metrics.jsonl", measured)
    assert "Update / weight norm" in page_of(tmp_path).text
    assert "Update / weight norm" not in html


def test_a_run_of_one_step_has_charts(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [row_at_last(1)])
    assert "step attempt" in page_of(tmp_path).text


def test_a_nonfinite_loss_is_a_mark_at_the_top_edge(tmp_path):
    plain = [{"attempt": i, "step": i, "loss": 1.0 + i, "action": "applied"} for i in range(1, 20)]
    without, with_ = tmp_path / "without", tmp_path / "with"
    write_rows(without / "metrics.jsonl", plain)
    write_rows(with_ / "metrics.jsonl", [*plain, {**plain[0], "attempt": 20, "loss": math.nan}])
    marks = [charts.training(read_run(job)).count("stroke: var(--danger)") for job in (without, with_)]
    assert marks[0] == 0 < marks[1]
    assert "not finite" in page_of(with_).text


def test_neighbouring_incidents_share_a_badge_and_far_ones_do_not():
    places = {1: 10, 2: 500, 3: 503, 4: 505, 5: 990}
    incidents = [Incident.from_row({**rollback_incident(i), "attempt": place}) for i, place in places.items()]
    labels = [mark.label for mark in charts.incident_marks(incidents, (0.0, 1000.0))]
    assert labels == ["1", "2–4", "5"]


def test_one_drawing_serves_all_screens_and_its_text_can_be_enlarged(job_dir):
    run = read_run(job_dir)
    drawing = charts.training(run)
    assert 'xlink:href="#incident-1"' in drawing
    assert 'xlink:href="#incident-2"' in drawing
    assert not re.search(r"<svg[^>]* (width|height)=", drawing), "it scales with the page"
    texts = re.findall(r'<text style="([^"]*)"', drawing)
    assert texts
    assert all("calc(8" in text and "px * var(--text))" in text and "var(--font)" in text for text in texts)
    assert render(run).count("step attempt<") == 6, "training, two windows, two heat maps and the cost"


def test_many_layers_keep_their_spike_and_the_page_stays_small(tmp_path):
    names = [f"transformer.blocks.{i}.attention.weight" for i in range(1500)]
    quiet = {"attempt": 1, "step": 1, "action": "applied", "loss": 1.0, "layers": dict.fromkeys(names, 1.0)}
    loud = {**quiet, "attempt": 2, "step": 2, "layers": {**quiet["layers"], names[777]: math.nan}}
    write_rows(tmp_path / "metrics.jsonl", [quiet, loud])
    page = write_page(tmp_path)
    assert page.stat().st_size < 200_000
    assert "Gradient norm by layer" in page.read_text()


@pytest.mark.slow
def test_a_hundred_thousand_rows_stay_a_small_page_with_every_spike(tmp_path):
    random_ = random.Random(0)
    long = [{**row_at(random_, i, i), "layers": None} for i in range(1, 100_001)]
    long[77_776]["loss"] = 12_345.0
    write_rows(tmp_path / "metrics.jsonl", long)
    write_rows(tmp_path / "incidents.jsonl", [{**nan_incident(i), "attempt": 33 * i} for i in range(1, 3000)])
    run = read_run(tmp_path)
    assert len(render(run).encode()) < 2_000_000
    assert "highest 12,345" in render(run)


def test_the_fixture_is_what_the_reader_expects(tmp_path):
    incidents = [*iter_jsonl(write_job(tmp_path / "job") / "incidents.jsonl")]
    assert [row["type"] for row in incidents] == ["incident", "incident", "outcome"]


def test_the_data_that_was_found_is_named():
    assert setup_words({"data": {"dataset": "auto"}}, {"dataset": "fashion-mnist"}) == ["fashion-mnist"]
    assert setup_words({"data": {"dataset": "auto"}}, None) == ["auto"]
