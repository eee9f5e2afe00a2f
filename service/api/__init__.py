"""The HTTP API."""

from service.api.context import Context, Limits

__all__ = ["Context", "Limits"]
