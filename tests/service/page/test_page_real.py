"""The page of a real service: a job is submitted, watched, stopped and resumed in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from service.settings import default_database
from service.store import Tokens, open_database
from tests.browser import CHROMIUM, NO_CHROMIUM, chromium, keep
from tests.integration.harness.runner import DIGITS, GRADGUARD, Sandbox, read_until
from tests.service.page.page_fixture import visitor
from tests.waiting import interrupt, until

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
]

DEADLINE_S = 300
A_CHECKPOINT = re.compile(r"step-\d{8}")
"""Any: a fast machine has deleted the first ones before they are looked for."""
ENDLESS = {
    **DIGITS,
    "name": "watched",
    "scale": {"workers": 1, "cpus_per_worker": 1},
    "train": {"max_steps": 100_000, "checkpoint_every_steps": 10},
    "faults": [{"kind": "nan_loss", "step": 5}],
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of ``gradguard serve`` with a cluster of its own, and a token for it."""
    sandbox = Sandbox(tmp_path_factory.mktemp("page"))
    storage = sandbox.path / "storage"
    engine = open_database(default_database(storage))
    token = Tokens(engine).create("grace", "submit")
    options = ("--port=0", f"--storage={storage}", "--auth", "--lease-s=2", "--num-cpus=2")
    process = sandbox.start(GRADGUARD, "serve", *options)
    try:
        said = read_until(process, lambda line: line.startswith("serving at "))
        yield said.rpartition("serving at ")[2].partition(",")[0], token
    finally:
        engine.dispose()
        interrupt(process)


@pytest.fixture
def page(service: tuple[str, str]) -> Iterator[Any]:
    url, token = service
    with chromium() as browser, visitor(browser, url, token=token) as page:
        page.set_default_timeout(1000 * DEADLINE_S)
        yield page


def test_a_job_is_submitted_watched_stopped_and_resumed(page: Any) -> None:
    page.goto("/submit")
    page.get_by_label("Spec, YAML").fill(yaml.safe_dump(ENDLESS))
    page.get_by_text("The spec is valid. It asks for 1 worker, 1 CPU.").wait_for()
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url("**/jobs/watched-*")

    state = page.locator("#state")
    state.get_by_text("Running").wait_for()
    page.locator("canvas").first.wait_for()
    drawn = attempt(page)
    until(lambda: attempt(page) > drawn + 5, DEADLINE_S)
    page.locator("#incident-1").get_by_text("The guard skipped the step").wait_for()
    assert page.get_by_role("link", name="Incident 1: Non-finite loss at step 5").count() == 3
    page.get_by_role("region", name="Checkpoints").get_by_text(A_CHECKPOINT).first.wait_for()
    page.locator(".log", has_text="step").wait_for()
    keep(page, "page-real-running")

    page.get_by_role("link", name="Jobs", exact=True).click()
    page.locator("tr.job svg.spark path.norm").wait_for()
    keep(page, "page-real-list")
    page.get_by_role("link", name="watched").click()

    press(page, "Stop", "Stop the job")
    state.get_by_text("Stopped").wait_for()
    ended_at = step(page)
    press(page, "Resume", "Resume the job")
    state.get_by_text("Running").wait_for()
    until(lambda: step(page) > ended_at, DEADLINE_S)
    keep(page, "page-real-resumed")
    press(page, "Stop", "Stop the job")
    state.get_by_text("Stopped").wait_for()


def press(page: Any, button: str, answer: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name=answer).click()


def attempt(page: Any) -> int:
    """The last attempt in the legend of the first chart."""
    shown: str = page.locator(".u-value").first.inner_text()
    return int(shown.partition(",")[0])


def step(page: Any) -> int:
    """The step that the page shows."""
    said: str = page.get_by_text("of 100,000").inner_text()
    return int(said.replace(",", "").split()[1])
