"""Masks secrets in output: by the name of a variable, and by its value wherever it occurs."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MASKED = "********"
SHORTEST = 6
"""Shorter values are not searched for in logs: they would occur everywhere."""

_SECRET_NAME = re.compile(
    r"(^|[_\-.])(secret|token|password|passwd|pwd|passphrase|credentials?|auth|api_?key|access_?key|private_?key"
    r"|key|dsn|cookie|connection_?string)s?([_\-.]|$)",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether the name of a variable or field suggests a secret."""
    return bool(_SECRET_NAME.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)))


def masked(value: Any, name: str = "") -> Any:
    """A copy of a document with its secrets masked."""
    if isinstance(value, Mapping):
        return {str(key): masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name) for item in value]
    if isinstance(value, str) and is_secret(name):
        return MASKED
    return _without_credentials(value) if isinstance(value, str) and "://" in value else value


def _without_credentials(url: str) -> str:
    """User and options of a URL may be credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    place = f"{MASKED}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    options = "&".join(
        f"{pair.partition('=')[0]}={MASKED}" if is_secret(pair.partition("=")[0]) else pair
        for pair in parts.query.split("&")
    )
    return urlunsplit((parts.scheme, place, parts.path, options, parts.fragment))


class Mask:
    """Masks the secrets of an environment in a log; lengths stay, and so do offsets."""

    def __init__(self, env: Mapping[str, str]) -> None:
        values = {value.encode() for name, value in env.items() if is_secret(name) and len(value) >= SHORTEST}
        self._values = sorted(values, key=len, reverse=True)
        self.longest = max(map(len, self._values), default=0)

    def __call__(self, content: bytes) -> bytes:
        for value in self._values:
            content = content.replace(value, b"*" * len(value))
        return content
