"""A notice carries the figures that a receiver's own text names, and the chart of the job."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.notify import Notice, Notifier
from jobs.run_dir.reader import RunReader
from jobs.spec.notify import FIELDS, NotifySpec
from service.cli.app import app
from tests.jobs.notify.receiver import Receiver, inbox, receiving
from tests.jobs.report.report_fixture import write_job

SENTENCE = "Rückfall: the loss rose."


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture(scope="module")
def notice(tmp_path_factory: pytest.TempPathFactory) -> Notice:
    """Of a job that has trained."""
    folder = tmp_path_factory.mktemp("fashion")
    write_job(folder)
    return Notice("fashion", "rolled_back", SENTENCE, 1204, files=RunReader(folder), rollbacks=2)


def deliver(notice: Notice, **fields: Any) -> dict[str, int]:
    with Notifier([NotifySpec.model_validate(fields)]) as notifier:
        notifier.emit(notice)
    return notifier.counts


def is_chart(png: bytes) -> bool:
    with Image.open(BytesIO(png)) as image:
        return image.format == "PNG" and image.width > 1000 and len(image.getcolors(1 << 24) or ()) > 20


def test_each_kind_of_notice_has_a_text_of_its_own(receiver: Receiver) -> None:
    text = {"rolled_back": "{job} is {event} for the {rollbacks}nd time, at {step:,}: {sentence}"}
    result = {
        "error": "budget spent",
        "skips": 3,
        "rollbacks": 1,
        "metrics": {"test_accuracy": 0.87654, "test_loss": "nan"},
    }
    with Notifier([NotifySpec(url=receiver.url, text=text)]) as notifier:
        notifier.emit(Notice("fashion", "rolled_back", SENTENCE, 1204, rollbacks=2))
        notifier.emit(Notice("fashion", "halted", "It ended.", 1300).with_figures(result))
    first, last = (json.loads(body) for _, _, body in receiver.posts)
    assert first["sentence"] == f"fashion is rolled back for the 2nd time, at 1,204: {SENTENCE}"
    assert last["sentence"] == "It ended."
    figures = {name: last[name] for name in ("reason", "rollbacks", "skips", "metrics")}
    assert figures == {
        "reason": "budget spent",
        "rollbacks": 1,
        "skips": 3,
        "metrics": "test_accuracy 0.8765, test_loss nan",
    }
    assert set(last) == set(FIELDS)


def test_an_email_shows_the_chart(notice: Notice) -> None:
    with inbox() as (url, received):
        assert deliver(notice, kind="email", url=url, to=["a@example.com"])["sent"] == 1
    (message,) = received
    text, picture = message.iter_parts()
    assert text.get_content().strip() == SENTENCE
    assert (picture.get_content_type(), picture.get_filename()) == ("image/png", "fashion.png")
    assert picture.get_content_disposition() == "inline"
    assert is_chart(picture.get_content())


def test_a_topic_of_ntfy_gets_the_chart_with_the_text_beside_it(receiver: Receiver, notice: Notice) -> None:
    deliver(notice, kind="ntfy", url=f"{receiver.url}/topic?auth=x", link="https://x.example/{job}")
    ((path, headers, body),) = receiver.posts
    asked = parse_qs(urlsplit(path).query)
    assert asked["message"] == [f"{SENTENCE}\nhttps://x.example/fashion"]
    assert (asked["filename"], asked["auth"]) == (["fashion.png"], ["x"])
    assert headers["Title"] == "fashion: rolled back"
    assert is_chart(body)


@pytest.mark.parametrize("status", [400, 413])
def test_an_ntfy_that_keeps_no_files_gets_the_text(receiver: Receiver, notice: Notice, status: int) -> None:
    receiver.refuse_files_with = status
    counts = deliver(notice, kind="ntfy", url=f"{receiver.url}/topic")
    assert counts == {"sent": 1, "failed": 0, "dropped": 0}
    _, (path, _, body) = receiver.posts
    assert (path, body.decode()) == ("/topic", SENTENCE)


def test_a_webhook_gets_the_chart_in_base64_where_it_asks_for_it(receiver: Receiver, notice: Notice) -> None:
    deliver(notice, url=receiver.url)
    deliver(notice, url=receiver.url, picture=True)
    without, with_chart = (json.loads(body) for _, _, body in receiver.posts)
    assert "picture" not in without
    assert is_chart(b64decode(with_chart.pop("picture")))
    assert with_chart == without


def test_slack_loads_the_chart_from_a_url(receiver: Receiver, notice: Notice) -> None:
    deliver(notice, kind="slack", url=receiver.url, picture_url="https://x.example/{job}.png")
    attachment = {"fallback": "fashion: rolled back", "image_url": "https://x.example/fashion.png"}
    assert json.loads(receiver.posts[0][2])["attachments"] == [attachment]


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")
def test_apprise_passes_the_chart_on(receiver: Receiver, notice: Notice) -> None:
    pytest.importorskip("apprise")
    deliver(notice, kind="apprise", url=receiver.url.replace("http", "json"))
    (attached,) = json.loads(receiver.posts[0][2])["attachments"]
    assert attached["filename"] == "fashion.png"
    assert is_chart(b64decode(attached["base64"]))


def test_a_job_that_cannot_be_drawn_is_notified_of_without_a_chart(
    receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    for files in (None, RunReader(tmp_path / "missing"), RunReader(tmp_path)):
        counts = deliver(
            Notice("fashion", "ended", SENTENCE, files=files), kind="ntfy", url=f"{receiver.url}/topic"
        )
        assert counts["sent"] == 1
    assert [body.decode() for _, _, body in receiver.posts] == [SENTENCE] * 3


def test_the_command_tries_the_text_of_a_kind_and_sends_the_chart(receiver: Receiver, tmp_path: Path) -> None:
    write_job(tmp_path / "fashion")
    path = tmp_path / "job.yaml"
    path.write_text(
        f"name: fashion\nstorage: {tmp_path}\n"
        f"notify: [{{kind: ntfy, url: {receiver.url}/topic, text: {{halted: 'Wake up: {{sentence}}'}}}}]\n"
    )
    result = CliRunner().invoke(app, ["notify", "test", str(path), "--event", "halted"])
    assert result.exit_code == 0, result.output
    ((where, headers, body),) = receiver.posts
    assert parse_qs(urlsplit(where).query)["message"][0].startswith("Wake up: This is a test")
    assert headers["Priority"] == "high"
    assert is_chart(body)
