"""Initial weights.

``apply``: from a scheme, the seed and the names of the layers
``weights``: those of another training
``lsuv``: layer-sequential unit variance, on real data
``residual``: the ends of residual branches
``matrices``: which tensors are weight matrices, which are biases
"""

from jobs.init.apply import InitError, build_initialized, initialize
from jobs.init.residual import residual_ends

__all__ = ["InitError", "build_initialized", "initialize", "residual_ends"]
