import io
import math
import time
from pathlib import Path

import pytest
from rich.console import Console

from jobs.observability.console import LiveView, event_line, print_summary, status_line
from tests.jobs.report.report_fixture import result

STATUS = {
    "job": "fashion",
    "phase": "training",
    "step": 120,
    "total_steps": 938,
    "epoch": 1,
    "total_epochs": 2,
    "loss": 0.41234,
    "grad_norm": 1.2,
    "clip_share": 0.067,
    "steps_per_second": 4.7,
    "eta_seconds": 174.2,
    "counters": {"anomalies": 3, "skips": 1, "rollbacks": 1, "steps_lost": 26},
    "eval": {"test_accuracy": 0.871},
    "guard_share": 0.0119,
}


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def event(seq, text="rolled back 26 steps", level="warning", **fields):
    return {"seq": seq, "time": 1764072000.0 + seq, "step": 125, "level": level, "text": text, **fields}


def plain_view(clock=None, width=40):
    console = Console(file=io.StringIO(), width=width)
    return LiveView(console, clock=clock or Clock()), console


def lines(console):
    return console.file.getvalue().splitlines()


def terminal(width=100):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, color_system="truecolor")


def test_status_lines_come_at_most_every_five_seconds_and_events_at_once():
    clock = Clock()
    view, console = plain_view(clock)
    with view:
        for second in range(11):
            clock.now = 1000.0 + second
            view.update({**STATUS, "step": second}, [event(second)])
    statuses = [line for line in lines(console) if line.startswith("status ")]
    assert [line.split(" ")[2] for line in statuses] == ["step=0/938", "step=5/938", "step=10/938"]
    assert len(lines(console)) == 3 + 11


def test_the_last_status_is_not_swallowed_at_the_end():
    view, console = plain_view()
    with view:
        view.update({**STATUS, "step": 1}, [])
        view.update({**STATUS, "step": 938}, [])
    assert [line.split(" ")[2] for line in lines(console)] == ["step=1/938", "step=938/938"]


def test_nothing_is_printed_before_there_is_a_status_and_without_a_new_one_the_last_stays():
    clock = Clock()
    view, console = plain_view(clock)
    with view:
        view.update(None, [])
        assert lines(console) == []
        view.update(STATUS, [])
        clock.now += 10
        view.update(None, [])
    assert lines(console) == [status_line(STATUS)] * 2


def test_an_event_that_came_twice_is_shown_once():
    view, console = plain_view()
    with view:
        view.update(None, [event(1), event(2)])
        view.update(None, [event(2), event(3), event(3, text="another with the number of the last")])
    assert len(lines(console)) == 4


def test_lines_are_never_wrapped_or_coloured_outside_a_terminal():
    view, console = plain_view(width=20)
    with view:
        view.update(STATUS, [event(1, text="a [bold]text[/bold] of :smile: " + "x" * 200)])
    assert lines(console)[0].endswith("a [bold]text[/bold] of :smile: " + "x" * 200)
    assert "\x1b" not in console.file.getvalue()


def test_the_form_of_the_lines_is_stable():
    assert status_line(STATUS) == (
        "status phase=training step=120/938 epoch=1/2 loss=0.4123 grad_norm=1.2 clip_share=0.067 "
        "steps_per_second=4.7 eta_seconds=174 anomalies=3 skips=1 rollbacks=1 steps_lost=26 "
        "test_accuracy=0.871"
    )
    at = time.strftime("%H:%M:%S", time.localtime(1764072001.0))
    assert event_line(event(1)) == f"{at} warning step 125: rolled back 26 steps"
    assert event_line(event(1, text="step 151: spike", level="error")) == f"{at} error   step 151: spike"


@pytest.mark.parametrize("value", [None, "text", math.nan, math.inf, [], {}])
@pytest.mark.parametrize("key", sorted(STATUS))
def test_a_status_with_holes_is_shown_without_them(key, value):
    assert status_line({**STATUS, key: value}).startswith("status ")
    with LiveView(terminal()) as view:
        view.update({**STATUS, key: value}, [])


def test_nonfinite_values_are_shown_as_such():
    assert " loss=nan grad_norm=inf " in status_line({**STATUS, "loss": math.nan, "grad_norm": math.inf})


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred\x07", "tab\tand\r\x00"])
def test_text_from_elsewhere_stays_one_plain_line(text):
    for line in (event_line(event(1, text=text)), status_line({**STATUS, "phase": text})):
        assert line.isprintable()


def test_a_terminal_shows_the_figures_with_events_above_them():
    console = terminal()
    with LiveView(console) as view:
        view.update(STATUS, [event(1), event(2, text="halted", level="error")])
    shown = console.file.getvalue()
    for part in ("fashion", "120/938", "0.412", "6.7 %", "2 min 54 s", "87.1 %", "rollbacks", "steps lost"):
        assert part in shown
    assert shown.index("halted") < shown.index("120/938")
    assert shown.count("rolled back 26 steps") == 1
    assert "\x1b[1;31m" in shown  # an error is bold and red


def test_a_terminal_without_a_status_shows_that_it_waits():
    console = terminal()
    with LiveView(console):
        pass
    assert "waiting for the job to start" in console.file.getvalue()


def summary_of(**fields):
    console = Console(file=io.StringIO(), width=40)
    print_summary(console, {**result("fashion", 938), **fields}, Path("runs/fashion"))
    return console.file.getvalue()


def test_summary_names_the_outcome_and_the_files():
    assert summary_of() == (
        "\n"
        "fashion: succeeded\n"
        "The run finished 938 steps in 3 min 1 s and reached a test accuracy of 88.1 %.\n"
        "  metrics    test_accuracy 88.1 %, test_loss 0.336\n"
        "  guard      4 anomalies, 1 skip, 1 rollback, 26 steps lost, 1.2 % of the step time\n"
        "  report     runs/fashion/report.html\n"
        "  result     runs/fashion/result.json\n"
        "  incidents  runs/fashion/incidents.jsonl\n"
        "  checkpoint runs/fashion/checkpoints/step-00000938\n"
    )


def test_summary_of_a_stopped_job_shows_how_to_continue():
    text = summary_of(status="stopped", resume="gradguard train fashion.yaml --resume")
    assert text.splitlines()[-1] == "  continue   gradguard train fashion.yaml --resume"


def test_summary_of_a_failed_job_has_its_error_on_one_line():
    text = summary_of(status="failed", error="RuntimeError: no\nmemory [red]", metrics={})
    assert "fashion: failed\n" in text
    assert "  error      RuntimeError: no memory [red]\n" in text


def test_summary_of_a_healthy_run_names_no_incidents():
    text = summary_of(anomalies=0, skips=0, rollbacks=0, steps_lost=0)
    assert "0 anomalies, 0 skips, 0 rollbacks, 0 steps lost" in text
    assert "incidents.jsonl" not in text


def test_summary_of_a_result_with_holes_is_still_one():
    console = Console(file=io.StringIO(), width=80)
    print_summary(console, {"status": "failed"}, Path("runs/fashion"))
    assert "fashion: failed\nThe run failed.\n" in console.file.getvalue()
