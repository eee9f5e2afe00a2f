"""Agree: all ranks hold the same numbers before any of them decides."""
