"""Whether bytes are text, and if not, why."""

from __future__ import annotations

import codecs

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def why_no_text(content: bytes) -> str | None:
    """What is wrong with a text in UTF-8; None if it is one."""
    if content.startswith(_UTF_16):
        return "it is UTF-16: save it as UTF-8"
    if b"\0" in content:
        return "it has zero bytes, as UTF-16 and binary files do"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"byte {error.start} (0x{content[error.start]:02x}, in line {line}) is not UTF-8"
    return None
