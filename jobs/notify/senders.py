"""How each kind of receiver gets a notice."""

from __future__ import annotations

import os
import re
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
_VARIABLE = re.compile(r"\$\{?([A-Z_][A-Z0-9_]*)\}?")
_NO_FILES = (400, 413)
"""What an ntfy answers that keeps no files, or none of this size."""


class NotSent(RuntimeError):
    """A notice was not delivered; the text names no secret."""


def send(receiver: NotifySpec, notice: Notice) -> None:
    """Delivers a notice, within about ``TIMEOUT_S``.

    Raises:
        NotSent: with the reason in a few words.
    """
    if unset := [name for name in _VARIABLE.findall(receiver.url) if name not in os.environ]:
        raise NotSent(f"the variable {unset[0]} is not set where the job runs")
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
    content: dict[str, Any] = {"text": _with_link(f"*{notice.title}*\n{notice.sentence}", notice.link)}
    if receiver.picture_url and notice.event != "started":
        url = receiver.picture_url.format(job=notice.job)
        content["attachments"] = [{"fallback": notice.title, "image_url": url}]
    _post(receiver, json=content)


def _ntfy(receiver: NotifySpec, notice: Notice) -> None:
    urgent = notice.event in ("halted", "failed")
    headers = {"Title": notice.title, "Priority": "high" if urgent else "default", "Tags": notice.event}
    if notice.link.startswith("http"):
        headers["Click"] = notice.link
    text = _with_link(notice.sentence, notice.link)
    if notice.picture:  # the body is the file then, and the text a parameter
        url = httpx.URL(receiver.address).copy_merge_params({"message": text, "filename": _file_name(notice)})
        answer = httpx.post(url, timeout=TIMEOUT_S, content=notice.picture, headers=headers)
        if answer.status_code not in _NO_FILES:
            answer.raise_for_status()
            return
    _post(receiver, content=text.encode(), headers=headers)


def _post(receiver: NotifySpec, **content: Any) -> None:
    httpx.post(receiver.address, timeout=TIMEOUT_S, **content).raise_for_status()


def _file_name(notice: Notice) -> str:
    return f"{notice.job}.png"


def _email(receiver: NotifySpec, notice: Notice) -> None:
    url = urlsplit(receiver.address)
    message = EmailMessage()
    message["Subject"], message["From"] = notice.title, receiver.sender
    message["To"] = ", ".join(receiver.to)
    message.set_content(_with_link(notice.sentence, notice.link))
    if notice.picture:
        name = _file_name(notice)
        message.add_attachment(notice.picture, "image", "png", disposition="inline", filename=name)
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
        from apprise.attachment.memory import AttachMemory
    except ImportError:
        raise NotSent('kind apprise needs the library: pip install "gradguard[apprise]"') from None
    service = apprise.Apprise()
    if not service.add(receiver.address):
        raise NotSent("Apprise does not know this URL")
    level = "failure" if notice.event in FINAL - {"ended"} else "info"
    body = _with_link(notice.sentence, notice.link)
    picture, name = notice.picture, _file_name(notice)
    attach = [AttachMemory(content=picture, name=name, mimetype="image/png")] if picture else None
    if not service.notify(body=body, title=notice.title, notify_type=level, attach=attach):
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
