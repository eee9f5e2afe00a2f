"""Imports torchvision, also where its published wheel sits beside a CPU build of torch.

The published torchvision is built for CUDA. Beside a CPU torch its operator library does not load, and
``import torchvision`` dies with ``operator torchvision::nms does not exist``, although models, transforms
and data sets need no such operator. Declaring the schemas of the two operators that the import asks for
is enough; calling them still fails, as it must.
"""

import importlib
import importlib.util
import sys
from contextlib import suppress
from types import ModuleType

import torch

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_DETECTION_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[torch.library.Library] = []  # schemas vanish with their library: kept for the process


def import_torchvision() -> ModuleType:
    """The torchvision module; declares its missing operators if, and only if, the plain import asks for them.

    Raises:
        ImportError, RuntimeError: torchvision cannot be imported for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error) or _declared:
            raise
    _forget_half_imported()
    _declare_operators()
    return importlib.import_module("torchvision")


def ensure_torchvision() -> None:
    """Before the import of a framework that imports torchvision where it is installed, and dies with it."""
    if importlib.util.find_spec("torchvision") is not None:
        with suppress(ImportError, RuntimeError):  # another reason: the framework reports it
            import_torchvision()


def _forget_half_imported() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _DETECTION_OPERATORS:
        library.define(f"{operator}{_SIGNATURE}")
    _declared.append(library)
