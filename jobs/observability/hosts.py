"""Addresses that only this machine reaches, and the Host header of a request to one."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches this address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def names_loopback(header: str) -> bool:
    """Whether a Host header, with or without a port, has a loopback name: ``localhost`` or an address such as
    127.0.0.2 or [::1]. Another name can be made to resolve to loopback (DNS rebinding)."""
    name, colon, port = header.rpartition(":")
    bare = name if colon and port.isdigit() and not header.endswith("]") else header
    return is_loopback(bare)


def url_host(host: str) -> str:
    """An address as it is written in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
