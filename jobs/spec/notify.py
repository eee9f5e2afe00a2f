"""The section ``notify`` of a spec: who is told of a job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from string import Formatter
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from guard.config import Config
from jobs.spec.errors import did_you_mean, related

NoticeKind = Literal["started", "rolled_back", "halted", "failed", "ended"]
NOTICE_KINDS: tuple[NoticeKind, ...] = get_args(NoticeKind)
SHORT_TEXT = "{sentence}"
FIELDS: Mapping[str, str | int] = {
    **dict.fromkeys(("job", "event", "sentence"), ""),
    "step": 0,
    **dict.fromkeys(("link", "reason"), ""),
    **dict.fromkeys(("rollbacks", "skips"), 0),
    "metrics": "",
}
"""What a text may name, with an example of its type."""

_SCHEMES = {"email": ("smtp://", "smtps://")}
_TAKE_FILES = ("email", "ntfy", "apprise")


class TextSpec(Config):
    """A text for each kind of notice; those that are not set say ``{sentence}``."""

    started: str = SHORT_TEXT
    """The job trains."""

    rolled_back: str = SHORT_TEXT
    """The guard restored a healthy state."""

    halted: str = SHORT_TEXT
    """The guard's budget is spent."""

    failed: str = SHORT_TEXT
    """The job ended with an error."""

    ended: str = SHORT_TEXT
    """The job succeeded, or was stopped."""


def _kind_of_text(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "texts" if isinstance(value, dict | TextSpec) else None


Text = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextSpec, Tag("texts")],
    Discriminator(
        _kind_of_text,
        custom_error_type="text",
        custom_error_message=f"must be a text, or a section with some of {', '.join(NOTICE_KINDS)}",
    ),
]


class NotifySpec(Config):
    """One receiver of notices. A notice that cannot be delivered never stops a training; it is counted."""

    kind: Literal["webhook", "slack", "ntfy", "email", "apprise"] = "webhook"
    """``webhook``: JSON with ``job``, ``event``, ``sentence``, ``step``, ``link``, ``reason``, ``rollbacks``,
    ``skips`` and ``metrics`` is posted. ``slack``: a Slack-compatible webhook, as Mattermost and Discord
    (``/slack``) have it. ``ntfy``: a topic of ntfy. ``email``. ``apprise``: any URL of the library Apprise,
    with ``pip install "gradguard[apprise]"``."""

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

    text: Text = SHORT_TEXT
    """The text, or one for each kind of notice, with ``{job}``, ``{event}``, ``{step}``, ``{sentence}``,
    ``{link}``, ``{reason}``, ``{rollbacks}``, ``{skips}`` and ``{metrics}``."""

    picture: bool | None = None
    """Attach the chart of the run with its incidents, a PNG of about 100 kB, to all notices but ``started``.
    ``email``, ``ntfy`` and ``apprise`` get it by default; a ``webhook`` with true, Base64 as ``picture``."""

    picture_url: str = ""
    """``slack`` loads a picture from this URL and shows it; ``{job}`` becomes the job's name."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        schemes = _SCHEMES.get(self.kind, ("http://", "https://"))
        if self.kind != "apprise" and not self.url.startswith(("$", *schemes)):
            rule = f"must start with {' or '.join(schemes)}, or name a variable as in $WEBHOOK_URL"
            raise related(rule, value="", field="url")
        if self.kind == "email" and not self.to:
            raise related("needs at least one address", value=list(self.to), field="to")
        if self.kind == "slack" and self.picture:
            raise related("slack takes no files: set picture_url", value=True, field="picture")
        if self.kind != "slack" and self.picture_url:
            raise related("is for slack: remove it", value=self.picture_url, field="picture_url")
        return self

    @model_validator(mode="after")
    def _texts_can_be_filled(self) -> Self:
        if isinstance(self.text, str):
            _check_text(self.text, "text", FIELDS)
        else:
            for kind in NOTICE_KINDS:
                _check_text(getattr(self.text, kind), f"text.{kind}", FIELDS)
        for name in ("link", "picture_url"):
            _check_text(getattr(self, name), name, {"job": ""})
        return self

    @property
    def address(self) -> str:
        """The URL, with the value of a variable in it."""
        return os.path.expandvars(self.url)

    @property
    def wants_picture(self) -> bool:
        """Whether the chart is attached."""
        return self.kind in _TAKE_FILES if self.picture is None else self.picture

    def text_for(self, event: NoticeKind) -> str:
        """The text for one kind of notice, its fields not filled in."""
        return self.text if isinstance(self.text, str) else str(getattr(self.text, event))


def _check_text(text: str, field: str, known: Mapping[str, str | int]) -> None:
    """Refuses a field that does not exist, and all of ``str.format`` but ``{name}`` and ``{number:,}``."""
    try:
        parts = [(name, form, way) for _, name, form, way in Formatter().parse(text) if name is not None]
    except ValueError as error:
        message = f"cannot be filled in: {error}; a brace that is no field is written twice"
        raise related(message, value=text, field=field) from None
    for name, form, way in parts:
        if name not in known:
            message = f"has no field {{{name}}} (there are: {', '.join(known)})"
            raise related(message, value=text, field=field, suggestion=did_you_mean(name, known))
        if way or form not in ("", "," if isinstance(known[name], int) else ""):
            message = f"cannot be filled in: write {{{name}}}; numbers may also be {{step:,}}"
            raise related(message, value=text, field=field)
