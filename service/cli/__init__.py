"""The command ``gradguard``: ``app`` has the command line, each other module one command or a few."""

from __future__ import annotations

from service.cli.app import main

__all__ = ["main"]
