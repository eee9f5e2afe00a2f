"""The section ``notify`` of a spec: who is told of a job."""

from __future__ import annotations

import os
from typing import Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from guard.config import Config
from jobs.spec.errors import related

NoticeKind = Literal["started", "rolled_back", "halted", "failed", "ended"]
NOTICE_KINDS: tuple[NoticeKind, ...] = get_args(NoticeKind)
SHORT_TEXT = "{sentence}"
_SCHEMES = {"email": ("smtp://", "smtps://")}


class NotifySpec(Config):
    """One receiver of notices. A notice that cannot be delivered never stops a training; it is counted."""

    kind: Literal["webhook", "slack", "ntfy", "email", "apprise"] = "webhook"
    """``webhook``: JSON with ``job``, ``event``, ``step``, ``sentence`` and ``link`` is posted. ``slack``: a
    Slack-compatible webhook, as Mattermost and Discord (``/slack``) have it. ``ntfy``: a topic of ntfy.
    ``email``. ``apprise``: any URL of the library Apprise, with ``pip install "gradguard[apprise]"``."""

    url: str = Field(min_length=1)
    """Where to. ``$NAME`` is the value of an environment variable. ``email``: ``smtp://user:password@host:port``,
    with STARTTLS where the server offers it, or ``smtps://``. It is masked wherever a spec is shown."""

    to: tuple[str, ...] = ()
    """Addresses of an ``email``."""

    sender: str = "gradguard@localhost"
    """From whom an ``email`` is."""

    on: tuple[NoticeKind, ...] = NOTICE_KINDS
    """What it is told of."""

    per_hour: PositiveInt = 10
    """The most notices in an hour; the last of them is kept for ``halted``, ``failed`` and ``ended``."""

    link: str = ""
    """A link in each notice; ``{job}`` becomes the job's name. Default: the path of the report."""

    text: str = SHORT_TEXT
    """The text, with ``{job}``, ``{event}``, ``{step}`` and ``{sentence}``."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        schemes = _SCHEMES.get(self.kind, ("http://", "https://"))
        if self.kind != "apprise" and not self.url.startswith(("$", *schemes)):
            rule = f"must start with {' or '.join(schemes)}, or name a variable as in $WEBHOOK_URL"
            raise related(rule, value="", field="url")
        if self.kind == "email" and not self.to:
            raise related("needs at least one address", value=list(self.to), field="to")
        try:
            self.text.format(job="", event="", step=0, sentence="")
            self.link.format(job="")
        except (KeyError, IndexError, ValueError) as error:
            raise related(f"has an unknown placeholder: {error}", value=self.text) from None
        return self

    @property
    def address(self) -> str:
        """The URL, with the value of a variable in it."""
        return os.path.expandvars(self.url)
