"""Masks secrets in output: by the name of a field or variable, and by its value wherever it occurs."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from html import escape
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

MASKED = "********"
SHORTEST = 6
"""Shorter values are not searched for in logs: they would occur everywhere."""

_SECRET_FIELDS = {("notify", "url")}
"""Section and field: the URL of a webhook is its key."""

Names = Sequence[str]
"""More names of secrets, with ``*`` and ``?``, in any case: the field ``secrets`` of a spec."""

_SECRET_NAME = re.compile(
    r"(^|_)(tokens?|pwd|creds?|auth|oauth|keys?|dsn|cookies?|bearer|jwt|otp|sig|webhooks?|authorization"
    r"|connection_?strings?)[0-9]*(_|$)|(^|_)(pin|pat|sas)[0-9]*$|pass[0-9]*$"
    r"|secret|passw(or)?[dt]|passphrase|passcode|passkey|credential"
    r"|(api|access|private|auth|bearer|refresh|session|master|ssh|license|encryption|signing)_?(key|token)",
    re.IGNORECASE,
)
_COUNT = re.compile(
    r"^(max|min|num|n)_|(^|_)(tokens|per)(_|$)|_(ids?|dims?|size|len|length|count|index)$", re.IGNORECASE
)
"""Numbers of such a name are counts: ``max_tokens``, ``pad_token_id``, ``key_dim``."""

_ASSIGNED = re.compile(
    r"(?<![\w.\-])(?:([\w.\-]+)(\\*[\"']?\s*[=:]\s*)(?!//)|--([\w.\-]+)(\s+)(?![\w.\-]+[=:]))"
    r"(\"[^\"]*\"|'[^']*'|[^\s;&,]+)"
)
_SECRET_VALUE = re.compile(
    r"\b(Bearer|Basic)\s+[\w+/=.\-]{12,}|-----BEGIN [A-Z ]*PRIVATE KEY-----.*"
    r"|\b(gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abps]-|AKIA|AIza)[A-Za-z0-9\-]{16,}\w*"
    r"|\b(npm_|pypi-|sk_live_|rk_live_|SG\.|ya29\.|ASIA)[\w.\-]{16,}"
    r"|\beyJ[\w\-]{10,}\.[\w.\-]+"
    r"|(?<=//hooks\.slack\.com/services/)\S+|(?<=//discord\.com/api/webhooks/)\S+",
    re.DOTALL,
)
"""Headers, private keys, and what GitHub, GitLab, Hugging Face, OpenAI, Slack, AWS, Google,
npm, PyPI, Stripe and SendGrid issue."""

_PARTS = re.compile(r"[\n,]|^(?:Bearer|Basic) ")
"""Between the keys of a list, the lines of a private key; before the key in a header."""

_URL = re.compile(r"[\w+.\-]+://[^\s\"'<>]+")


def is_secret(name: str, more: Names = ()) -> bool:
    """Whether the name of a variable or field suggests a secret."""
    lower = name.lower()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\W_]+", "_", name)
    return bool(_SECRET_NAME.search(words)) or any(fnmatchcase(lower, pattern.lower()) for pattern in more)


def masked(value: Any, name: str = "", more: Names = ()) -> Any:
    """A copy of a document with its secrets masked, whatever their type; what is below a secret name is."""
    if isinstance(value, Mapping):
        return {key: masked(item, below, more) for key, item, below in _items(value, name, more)}
    if isinstance(value, list | tuple):
        return [masked(item, below, more) for item, below in _elements(value, name, more)]
    if value is None or isinstance(value, bool):
        return value
    if is_secret(name, more):
        count = isinstance(value, int | float) and _COUNT.search(name)
        return value if count else MASKED
    return _masked_text(value, more) if isinstance(value, str) else value


def _items(section: Mapping[Any, Any], name: str, more: Names) -> Iterator[tuple[str, Any, str]]:
    """Key, value and the name that decides. ``{name: API_KEY, value: ...}`` is a pair too."""
    names = {str(key).lower(): item for key, item in section.items()}
    label = next((names[key] for key in ("name", "key") if isinstance(names.get(key), str)), "")
    for key, item in section.items():
        pair = str(key).lower() in ("value", "val") and is_secret(label, more)
        yield str(key), item, label if pair else _name_below(name, str(key), more)


def _elements(values: Sequence[Any], name: str, more: Names) -> Iterator[tuple[Any, str]]:
    """Value and the name that decides: that of an option, as in ``[--api-key, ...]``, of a pair, as in
    ``[X-Api-Key, ...]``, or of the list."""
    for before, item in zip(("", *values), values, strict=False):
        pair = len(values) == 2 and isinstance(item, str)
        option = isinstance(before, str) and (pair or before.startswith("-"))
        secret = option and "=" not in before and is_secret(before.lstrip("-"), more)
        yield item, before.lstrip("-") if secret else name


def _name_below(section: str, key: str, more: Names) -> str:
    """What is below a secret name is secret too."""
    if is_secret(section, more):
        return section
    return "webhook" if (section, key) in _SECRET_FIELDS else key


def masked_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a spec to display: its secrets are masked, those too that its field ``secrets`` names."""
    names = names_of(spec)
    shown = {str(key): masked(value, str(key), names) for key, value in spec.items()}
    return {**shown, "secrets": list(names)} if "secrets" in spec else shown


def names_of(spec: Mapping[str, Any] | None) -> Names:
    """The field ``secrets`` of a spec that may be of anybody's making."""
    names = (spec or {}).get("secrets")
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def _secrets(value: Any, name: str, more: Names) -> Iterator[str]:
    """The values below secret names."""
    if isinstance(value, Mapping):
        for _, item, below in _items(value, name, more):
            yield from _secrets(item, below, more)
    elif isinstance(value, list | tuple):
        for item, below in _elements(value, name, more):
            yield from _secrets(item, below, more)
    elif masked(value, name, more) == MASKED:
        found = (str(value), *_PARTS.split(str(value)), *_secrets_in(str(value), more))
        yield from (form for text in found for form in _forms(text))
    elif isinstance(value, str):
        yield from _secrets_in(value, more)


def _forms(text: str) -> tuple[str, ...]:
    """As a URL, a JSON document and a page show it."""
    return text, quote(text, safe=""), json.dumps(text)[1:-1], escape(text)


def _secrets_in(text: str, more: Names) -> Iterator[str]:
    """What ``_masked_text`` masks in a text, as a log may show it on its own."""
    yield from (found[0] for found in _SECRET_VALUE.finditer(text))
    yield from (
        pair[5].strip("\"'") for pair in _ASSIGNED.finditer(text) if is_secret(pair[1] or pair[3], more)
    )
    for url in _URL.findall(text):
        with suppress(ValueError):
            parts = urlsplit(url)
            options = (option.partition("=") for option in parts.query.split("&"))
            found = [parts.password or "", *(value for name, _, value in options if _signs(name, more))]
            yield from (form for value in found for form in (value, unquote(value)))


def _masked_text(text: str, more: Names) -> str:
    """User and options of a URL, ``NAME=VALUE`` pairs, and what looks like a credential."""
    text = _URL.sub(lambda url: _without_credentials(url[0], more), text)
    return _ASSIGNED.sub(lambda pair: _pair(pair, more), _SECRET_VALUE.sub(MASKED, text))


def _pair(pair: re.Match[str], more: Names) -> str:
    name = pair[1] or pair[3]
    return f"{pair[0][: pair.start(5) - pair.start()]}{MASKED}" if is_secret(name, more) else pair[0]


def _without_credentials(url: str, more: Names) -> str:
    """User and options of a URL may be credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    place = f"{MASKED}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    options = "&".join(
        f"{pair.partition('=')[0]}={MASKED}" if _signs(pair.partition("=")[0], more) else pair
        for pair in parts.query.split("&")
    )
    return urlunsplit((parts.scheme, place, parts.path, options, parts.fragment))


def _signs(option: str, more: Names) -> bool:
    """Whether an option of a URL gives access: a key, or the signature of a presigned URL."""
    return is_secret(option, more) or option.lower().endswith("signature")


class Mask:
    """Masks the secrets of an environment and a spec in a log; lengths stay, and so do offsets."""

    def __init__(self, env: Mapping[str, str], spec: Mapping[str, Any] | None = None) -> None:
        values = {
            value.encode() for value in _secrets([env, spec], "", names_of(spec)) if len(value) >= SHORTEST
        }
        self._values = sorted(values, key=len, reverse=True)
        self.longest = max(map(len, self._values), default=0)

    def __call__(self, content: bytes) -> bytes:
        for value in self._values:
            content = content.replace(value, b"*" * len(value))
        return content

    def text(self, text: str) -> str:
        """The same for a text of any origin; what looks like a secret is masked too."""
        return str(masked(self(text.encode("utf-8", "replace")).decode()))

    def document(self, value: Any) -> Any:
        """A copy of a JSON value with its texts masked; numbers are no secrets."""
        if isinstance(value, Mapping):
            return {str(key): self.document(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.document(item) for item in value]
        return self.text(value) if isinstance(value, str) else value


def masked_result(
    result: Mapping[str, Any], spec: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A copy of a job's result to display. Its texts may quote a command line with
    ``--set options.api_key=...``, or an error with a URL."""
    shown: dict[str, Any] = Mask(env or {}, spec).document(result)
    return shown
