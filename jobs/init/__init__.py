"""Initial weights: the schemes, residual branches, and LSUV on real data."""

from jobs.init.apply import build_initialized, initialize
from jobs.init.errors import InitError
from jobs.init.residual import residual_ends

__all__ = ["InitError", "build_initialized", "initialize", "residual_ends"]
