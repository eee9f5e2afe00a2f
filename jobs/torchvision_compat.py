"""torchvision, also beside a CPU build of torch; and what it offers."""

import importlib

from guard.integrations.torchvision_compat import import_torchvision

__all__ = ["classification_models", "import_torchvision"]


def classification_models() -> list[str]:
    """The names of torchvision's classification models; the import takes a second."""
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    names: list[str] = models.list_models(module=models)
    return names
