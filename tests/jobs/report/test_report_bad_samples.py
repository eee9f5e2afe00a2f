"""The report shows which samples made a batch bad, and which come back over the epochs."""

from pathlib import Path

from guard import Incident
from jobs.observability.event_line import event
from jobs.report import words
from jobs.report.bad_samples import MOST_OFFENDERS, offenders
from jobs.report.page import write_page
from tests.jobs.report.report_fixture import incident_row, write_rows

CAT = "cat/<b>0017</b>.png"


def bad(sample: int, *, share: float | None = 0.93, content: str = "") -> dict[str, object]:
    nonfinite = share is None
    loss = "nan" if nonfinite else 20.0
    row = {"sample": sample, "rank": 1, "loss": loss, "grad_norm": None}
    return {**row, "nonfinite": nonfinite, "share": share, "content": content}


def incident(number: int, *samples: dict[str, object], **fields: object) -> dict[str, object]:
    values = {"verdict": "spike", "value": 3.0, "score": 9.0, "action": "skipped", "reason": "", **fields}
    row = incident_row(number, "job", attempt=10 * number, step=10 * number, **values)
    return {**row, "bad_samples": list(samples)}


def test_a_sample_that_comes_back_is_listed_first_with_kinds_and_content():
    rows = [
        incident(1, bad(4)),
        incident(2, bad(17, content=CAT)),
        incident(3, bad(17, share=None, content=CAT), verdict="nonfinite"),
    ]
    (first, second), more = offenders([Incident.from_row(row) for row in rows])
    assert (first.sample, first.times, first.steps, first.content) == (17, 2, "20, 30", CAT)
    assert first.kinds == "spike loss and nonfinite loss"
    assert (second.sample, second.times, more) == (4, 1, 0)


def test_of_many_bad_samples_the_most_frequent_are_listed():
    rows = [Incident.from_row(incident(number, bad(number))) for number in range(1, 31)]
    listed, more = offenders(rows)
    assert len(listed) + more == 30
    assert len(listed) == MOST_OFFENDERS


def test_the_page_shows_the_sample_and_escapes_its_content(tmp_path: Path):
    write_rows(tmp_path / "incidents.jsonl", [incident(1, bad(17, content=CAT))])
    html = write_page(tmp_path).read_text(encoding="utf-8")
    assert html.count("cat/&lt;b&gt;0017&lt;/b&gt;.png") == 3  # story, card, and the table of all
    assert '<h2 id="bad-samples">' in html


def test_the_story_says_what_goes_without_the_sample_and_what_was_excluded():
    def story(row: dict[str, object]) -> str:
        return " ".join(words.story(Incident.from_row(row)))

    assert "Without sample 17 (x) 93 % of the excess is gone." in story(incident(1, bad(17, content="x")))
    several = incident(1, bad(17, share=0.4), bad(4, share=0.35), bad(5, share=0.2))
    assert "Without sample 17 40 % of the excess is gone, without 2 more 95 %." in story(several)
    assert "Sample 17 is not finite." in story(incident(1, bad(17, share=None), verdict="nonfinite"))
    excluded = incident(1, bad(17), action="applied", excluded_samples=[17])
    assert "Computed again without sample 17, the batch was fine." in story(excluded)
    assert words.badge(Incident.from_row(excluded)) == "Sample excluded"


def test_one_line_names_the_sample():
    _, line = event(Incident.from_row(incident(1, bad(17))))
    assert line.endswith("step skipped, bad sample 17")
