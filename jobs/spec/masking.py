"""Masks secrets in output: by the name of a field or variable, and by its value wherever it occurs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MASKED = "********"
SHORTEST = 6
"""Shorter values are not searched for in logs: they would occur everywhere."""

_SECRET_FIELDS = {("notify", "url")}
"""Section and field: the URL of a webhook is its key."""

Names = Sequence[str]
"""More names of secrets, with ``*`` and ``?``, in any case: the field ``secrets`` of a spec."""

_SECRET_NAME = re.compile(
    r"(^|[_\-.])(tokens?|pwd|auth|keys?|dsn|cookies?|bearer|jwt|otp|webhooks?|authorization"
    r"|connection_?strings?)[0-9]*([_\-.]|$)"
    r"|secret|passw(or)?d|passphrase|credential|(api|access|private|auth)_?(key|token)",
    re.IGNORECASE,
)
_COUNT = re.compile(
    r"^(max|min|num|n)_|(^|_)(tokens|per)(_|$)|_(ids?|dims?|size|len|length|count|index)$", re.IGNORECASE
)
"""Numbers of such a name are counts: ``max_tokens``, ``pad_token_id``, ``key_dim``."""

_ASSIGNED = re.compile(r"(?<![\w.\-])([\w.\-]+)(\s*[=:]\s*)(?!//)([^\s;&,]+)")
_SECRET_VALUE = re.compile(
    r"\b(Bearer|Basic)\s+[\w+/=.\-]{12,}|-----BEGIN [A-Z ]*PRIVATE KEY-----.*", re.DOTALL
)


def is_secret(name: str, more: Names = ()) -> bool:
    """Whether the name of a variable or field suggests a secret."""
    lower = name.lower()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(_SECRET_NAME.search(words)) or any(fnmatchcase(lower, pattern.lower()) for pattern in more)


def masked(value: Any, name: str = "", more: Names = ()) -> Any:
    """A copy of a document with its secrets masked, whatever their type; what is below a secret name is."""
    if isinstance(value, Mapping):
        return {
            str(key): masked(item, _name_below(name, str(key), more), more) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(item, name, more) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if is_secret(name, more):
        count = isinstance(value, int | float) and _COUNT.search(name)
        return value if count else MASKED
    return _masked_text(value, more) if isinstance(value, str) else value


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
        for key, item in value.items():
            yield from _secrets(item, _name_below(name, str(key), more), more)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, name, more)
    elif masked(value, name, more) == MASKED:
        yield str(value)


def _masked_text(text: str, more: Names) -> str:
    """User and options of a URL, ``NAME=VALUE`` pairs, and what looks like a credential."""
    text = _without_credentials(text, more) if "://" in text else text
    return _ASSIGNED.sub(lambda pair: _pair(pair, more), _SECRET_VALUE.sub(MASKED, text))


def _pair(pair: re.Match[str], more: Names) -> str:
    return f"{pair[1]}{pair[2]}{MASKED}" if is_secret(pair[1], more) else pair[0]


def _without_credentials(url: str, more: Names) -> str:
    """User and options of a URL may be credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    place = f"{MASKED}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    options = "&".join(
        f"{pair.partition('=')[0]}={MASKED}" if is_secret(pair.partition("=")[0], more) else pair
        for pair in parts.query.split("&")
    )
    return urlunsplit((parts.scheme, place, parts.path, options, parts.fragment))


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
