"""Notices arrive at real receivers on loopback; what does not arrive is counted, and stops nothing."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.notify import Notice, Notifier
from jobs.notify.senders import NotSent, send
from jobs.spec.job_spec import JobSpec, SpecError
from jobs.spec.masking import Mask, masked_spec
from jobs.spec.notify import NotifySpec
from service.cli.app import app
from tests.jobs.notify.receiver import Receiver, inbox, receiving

NOTICE = Notice("fashion", "halted", "The guard halted the run.", 40, "https://gradguard.example/fashion")
SECRET = "T00/B00/XXXXsecret"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def spec(**fields: Any) -> NotifySpec:
    return NotifySpec.model_validate(fields)


def test_a_webhook_gets_the_notice_as_json(receiver: Receiver) -> None:
    send(spec(url=f"{receiver.url}/hook"), NOTICE)
    path, _, body = receiver.posts[0]
    assert (path, json.loads(body)) == ("/hook", NOTICE.to_dict())


def test_a_slack_webhook_gets_a_text(receiver: Receiver) -> None:
    send(spec(kind="slack", url=receiver.url), NOTICE)
    text = json.loads(receiver.posts[0][2])["text"]
    assert text == "*fashion: halted*\nThe guard halted the run.\nhttps://gradguard.example/fashion"


def test_a_topic_of_ntfy_gets_a_text_with_a_link_and_a_priority(receiver: Receiver) -> None:
    send(spec(kind="ntfy", url=f"{receiver.url}/my-topic"), NOTICE)
    path, headers, body = receiver.posts[0]
    assert path == "/my-topic"
    assert body.decode().startswith("The guard halted the run.")
    assert (headers["Title"], headers["Priority"]) == ("fashion: halted", "high")
    assert headers["Click"] == NOTICE.link


def test_an_email_is_delivered_by_smtp() -> None:
    with inbox() as (url, received):
        send(spec(kind="email", url=url, to=("a@example.com", "b@example.com")), NOTICE)
    (message,) = received
    assert message["Subject"] == "fashion: halted"
    assert message["To"] == "a@example.com, b@example.com"
    assert NOTICE.link in message.get_content()


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")
def test_any_url_of_apprise_can_be_a_receiver(receiver: Receiver) -> None:
    pytest.importorskip("apprise")
    send(spec(kind="apprise", url=receiver.url.replace("http", "json")), NOTICE)
    assert json.loads(receiver.posts[0][2])["title"] == "fashion: halted"


def test_the_url_may_be_in_a_variable(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_URL", f"{receiver.url}/from-variable")
    send(spec(url="$HOOK_URL"), NOTICE)
    assert receiver.posts[0][0] == "/from-variable"


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    with pytest.raises(NotSent, match="the variable HOOK is not set where the job runs"):
        send(spec(url="$HOOK"), NOTICE)


def test_failures_are_counted_and_the_others_get_theirs(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    broken = spec(url=f"{receiver.url}/broken/{SECRET}")
    unreachable = spec(kind="email", url=f"smtp://u:{SECRET.replace('/', '%2F')}@127.0.0.1:1", to=("a@b.c",))
    with (
        caplog.at_level(logging.WARNING),
        Notifier([broken, unreachable, spec(url=receiver.url)]) as notifier,
    ):
        notifier.emit(NOTICE)
    assert notifier.counts == {"sent": 1, "failed": 2, "dropped": 0}
    assert "answered 500" in caplog.text
    assert "XXXXsecret" not in caplog.text


def test_an_hour_has_so_many_notices_and_the_end_is_among_them(receiver: Receiver) -> None:
    now = [0.0]
    with Notifier([spec(url=receiver.url, per_hour=3)], clock=lambda: now[0]) as notifier:
        for step in range(5):
            notifier.emit(Notice("fashion", "rolled_back", "It was rolled back.", step))
        notifier.emit(NOTICE)
    assert notifier.counts == {"sent": 3, "failed": 0, "dropped": 3}
    got = [json.loads(body) for _, _, body in receiver.posts]
    assert [notice["step"] for notice in got] == [0, 1, 40]
    assert "(3 more notices since the last one were not sent)" in got[-1]["sentence"]
    with Notifier([spec(url=receiver.url, per_hour=1)], clock=lambda: now[0]) as notifier:
        notifier.emit(NOTICE)
        notifier.emit(NOTICE)
        while sum(notifier.counts.values()) < 2:
            pass
        now[0] = 3600.0
        notifier.emit(NOTICE)
    assert notifier.counts == {"sent": 2, "failed": 0, "dropped": 1}


def test_a_receiver_gets_what_it_asks_for_in_its_own_words(receiver: Receiver) -> None:
    wanted = spec(
        url=receiver.url, on=("failed",), text="{job} {event} at {step}", link="https://x.example/{job}"
    )
    with Notifier([wanted]) as notifier:
        notifier.emit(NOTICE)
        notifier.emit(Notice("fashion", "failed", "A worker died.", 7))
    (got,) = [json.loads(body) for _, _, body in receiver.posts]
    assert (got["sentence"], got["link"]) == ("fashion failed at 7", "https://x.example/fashion")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"url": "hooks.example"}, "must start with http:// or https://"),
        ({"kind": "email", "url": "https://x", "to": ["a@b.c"]}, "must start with smtp://"),
        ({"kind": "email", "url": "smtp://x"}, "needs at least one address"),
        ({"url": "https://x", "text": "{jbo}"}, "no field {jbo} (there are: job, event"),
        ({"url": "https://x", "text": {"halted": "{setp}"}}, 'did you mean "step"?'),
        ({"url": "https://x", "text": {"haltd": "x"}}, 'did you mean "halted"?'),
        ({"url": "https://x", "text": 5}, "must be a text, or a section with some of started"),
        ({"url": "https://x", "text": "{step:>9999999999}"}, "cannot be filled in: write {step}"),
        ({"url": "https://x", "text": "{job.x}"}, "has no field {job.x}"),
        ({"url": "https://x", "text": "a } brace"}, "cannot be filled in: Single '}'"),
        ({"url": "https://x", "link": "https://x/{jbo}"}, 'did you mean "job"?'),
        ({"url": "https://x", "kind": "slack", "picture": True}, "set picture_url"),
        ({"url": "https://x", "picture_url": "https://y"}, "is for slack"),
        ({"url": "https://x", "kind": "slak"}, 'did you mean "slack"'),
    ],
)
def test_a_wrong_receiver_is_refused_in_one_line(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict({"notify": [fields]})
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_url_is_masked_wherever_a_spec_or_a_log_is_shown() -> None:
    url = f"https://hooks.example/services/{SECRET}"
    job = JobSpec.from_dict({"notify": [{"kind": "slack", "url": url}]}).model_dump(mode="json")
    assert SECRET not in json.dumps(masked_spec(job))
    assert SECRET.encode() not in Mask({}, job)(f"posting to {url}".encode())


def test_the_command_tries_every_receiver(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"notify: [{{url: {receiver.url}}}, {{kind: slack, url: {receiver.url}/broken}}]\n")
    result = CliRunner().invoke(app, ["notify", "test", str(path)])
    assert result.exit_code == 1
    assert "notify[0]: the webhook took it" in result.output
    assert "notify[1]: the slack answered 500" in result.output
    assert "test of the notices" in json.loads(receiver.posts[0][2])["sentence"]
    result = CliRunner().invoke(app, ["notify", "test", str(path), "--json"])
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)
    assert first == {"kind": "webhook", "error": None}
    assert "answered 500" in second["error"]


def test_apprise_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(NotSent, match="pip install"):
        send(spec(kind="apprise", url="json://127.0.0.1"), NOTICE)
