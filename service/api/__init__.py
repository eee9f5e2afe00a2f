"""The HTTP API."""

from service.api.app import make_app
from service.api.context import Context, Limits

__all__ = ["Context", "Limits", "make_app"]
