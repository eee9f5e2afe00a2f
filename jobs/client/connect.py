"""Detects what is at an address: a service, a Ray cluster, or a folder."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from jobs.client.backend import Backend
from jobs.client.errors import NotAllowed, Unreachable

SERVICE = "http://127.0.0.1:8410"
RAY = "http://127.0.0.1:8265"
TOKEN_VARIABLE = "GRADGUARD_TOKEN"
TOKEN_FILE_VARIABLE = "GRADGUARD_TOKEN_FILE"
PROBE_TIMEOUT_S = 10.0
PROBES = 6
_IN_NO_URL = frozenset(map(chr, (*range(33), 127)))


def connect(address: str | Path | None, *, token: str | None = None) -> Backend:
    """The backend for an address.

    Args:
        address: the URL of a service or of Ray's dashboard, or a folder of jobs; None looks for a service and
            then for Ray on this machine.
        token: of the service; default: ``$GRADGUARD_TOKEN``, or what is in ``$GRADGUARD_TOKEN_FILE``.

    Raises:
        Unreachable: nothing answers there.
        NotAllowed: the token can be none.
    """
    if address is None:
        address = SERVICE if is_service(SERVICE) else RAY
    address = os.fspath(address)
    if not address.startswith(("http://", "https://")):
        from jobs.client.folder_backend import FolderBackend

        if "://" in address and not address.startswith("file://"):
            raise Unreachable(f"{address} is no address: give http://..., https://..., or a folder of jobs")
        return FolderBackend(address)
    _check_url(address)
    if is_service(address):
        from jobs.client.service_backend import ServiceBackend

        return ServiceBackend(address, token=_sendable(token or token_from_environment()))
    from jobs.client.ray_backend import RayBackend

    return RayBackend(address)


def is_service(address: str) -> bool:
    """Whether a GradGuard service answers there."""
    for _ in range(PROBES):
        try:
            with urllib.request.urlopen(f"{address.rstrip('/')}/healthz", timeout=PROBE_TIMEOUT_S) as answer:
                return bool(json.loads(answer.read(1000)).get("service") == "gradguard")
        except TimeoutError:
            continue  # a server listens and is slow: ask again
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise Unreachable(
                    f"the certificate of {address} is not one that this machine trusts "
                    f"({error.reason.verify_message}): set SSL_CERT_FILE to that of its issuer"
                ) from None
            return False
        except (OSError, ValueError, AttributeError, HTTPException):
            return False
    return False


def _check_url(address: str) -> None:
    try:
        parts = urlsplit(address)
        known = parts.hostname and (parts.port is None or parts.port) and not set(address) & _IN_NO_URL
    except ValueError:  # a port that is none, or half an IPv6 address
        known = False
    if not known:
        raise Unreachable(f"{address} is no URL: write http://HOST:PORT, such as {SERVICE}")


def _sendable(token: str | None) -> str | None:
    """The token without the spaces around it. One with others in it is not even in the error."""
    token = token and token.strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise NotAllowed("the token contains a space or another character that none has: copy it again")
    return token


def token_from_environment() -> str | None:
    """The token of the service, never from a command line, where others could see it."""
    if token := os.environ.get(TOKEN_VARIABLE):
        return token
    file = os.environ.get(TOKEN_FILE_VARIABLE)
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip() if file else None
    except (OSError, ValueError) as error:  # or no text
        reason = getattr(error, "strerror", None) or "is no text"
        raise Unreachable(f"the token file {file} cannot be read: {reason}") from None
