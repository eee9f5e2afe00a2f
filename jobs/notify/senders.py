"""How each kind of receiver gets a notice."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from jobs.notify.notice import FINAL, Notice
from jobs.spec.notify import NotifySpec

TIMEOUT_S = 10.0


class NotSent(RuntimeError):
    """A notice was not delivered; the text names no secret."""


def send(receiver: NotifySpec, notice: Notice) -> None:
    """Delivers a notice, within about ``TIMEOUT_S``.

    Raises:
        NotSent: with the reason in a few words.
    """
    try:
        _SENDERS[receiver.kind](receiver, notice)
    except httpx.HTTPStatusError as error:
        raise NotSent(f"the {receiver.kind} answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, smtplib.SMTPException, ValueError) as error:
        reason = str(error).replace(receiver.address, "the URL") or type(error).__name__
        raise NotSent(f"the {receiver.kind} cannot be reached: {reason}") from None


def _webhook(receiver: NotifySpec, notice: Notice) -> None:
    _post(receiver, json=notice.to_dict())


def _slack(receiver: NotifySpec, notice: Notice) -> None:
    _post(receiver, json={"text": _with_link(f"*{notice.title}*\n{notice.sentence}", notice.link)})


def _ntfy(receiver: NotifySpec, notice: Notice) -> None:
    urgent = notice.event in ("halted", "failed")
    headers = {"Title": notice.title, "Priority": "high" if urgent else "default", "Tags": notice.event}
    if notice.link.startswith("http"):
        headers["Click"] = notice.link
    _post(receiver, content=_with_link(notice.sentence, notice.link).encode(), headers=headers)


def _post(receiver: NotifySpec, **content: Any) -> None:
    httpx.post(receiver.address, timeout=TIMEOUT_S, **content).raise_for_status()


def _email(receiver: NotifySpec, notice: Notice) -> None:
    url = urlsplit(receiver.address)
    message = EmailMessage()
    message["Subject"], message["From"] = notice.title, receiver.sender
    message["To"] = ", ".join(receiver.to)
    message.set_content(_with_link(notice.sentence, notice.link))
    host, context = url.hostname or "localhost", ssl.create_default_context()
    with (
        smtplib.SMTP_SSL(host, url.port or 465, timeout=TIMEOUT_S, context=context)
        if url.scheme == "smtps"
        else smtplib.SMTP(host, url.port or 25, timeout=TIMEOUT_S)
    ) as server:
        server.ehlo()
        if url.scheme == "smtp" and server.has_extn("starttls"):
            server.starttls(context=context)
        if url.username:
            server.login(unquote(url.username), unquote(url.password or ""))
        server.send_message(message)


def _apprise(receiver: NotifySpec, notice: Notice) -> None:
    try:
        import apprise
    except ImportError:
        raise NotSent('kind apprise needs the library: pip install "gradguard[apprise]"') from None
    service = apprise.Apprise()
    if not service.add(receiver.address):
        raise NotSent("Apprise does not know this URL")
    level = "failure" if notice.event in FINAL - {"ended"} else "info"
    body = _with_link(notice.sentence, notice.link)
    if not service.notify(body=body, title=notice.title, notify_type=level):
        raise NotSent("Apprise could not deliver it")


def _with_link(text: str, link: str) -> str:
    return f"{text}\n{link}" if link else text


_SENDERS: dict[str, Callable[[NotifySpec, Notice], None]] = {
    "webhook": _webhook,
    "slack": _slack,
    "ntfy": _ntfy,
    "email": _email,
    "apprise": _apprise,
}
