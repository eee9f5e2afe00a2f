"""Modules of the user's that a spec names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from jobs.spec.errors import did_you_mean, single


class ImportFailed(ImportError):
    """A module cannot be imported; one line."""


def imported(field: str, path: str) -> Callable[..., Any]:
    """The class or function at ``package.module:name``, which a field of the spec names.

    Raises:
        SpecError: there is no such module or name, or it cannot be imported.
    """
    module_name, _, name = path.partition(":")
    try:
        module = import_module(module_name)
    except ImportFailed as error:
        raise single(str(error), path=field, value=path) from error
    found: Callable[..., Any] | None = getattr(module, name, None)
    if found is None:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        message = f"the module {module_name} has no {name}"
        raise single(message, path=field, value=path, suggestion=did_you_mean(name, names))
    if not callable(found):
        raise single("is neither a class nor a function", path=field, value=path)
    return found


def import_module(module: str) -> ModuleType:
    """The module; the working directory is searched too.

    Raises:
        ImportFailed: why not, in one line.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ImportFailed(_why(error, module)) from error


def _why(error: Exception, module: str) -> str:
    """Why the user's module cannot be imported, and what to do."""
    name = error.name or "" if isinstance(error, ImportError) else ""
    namesake = _namesake(name)
    if namesake is not None:
        return f"{namesake} has the name of GradGuard's package {namesake.stem}: rename it"
    if not isinstance(error, ModuleNotFoundError):
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"importing {module} failed: {reason}"
    if name and f"{module}.".startswith(f"{name}."):
        return f"there is no module {name} (looked beside the spec and in {Path.cwd()} too)"
    return f"its module needs {name}, which is not installed"


def _namesake(name: str) -> Path | None:
    """The user's file or folder that GradGuard's package of the same name hides."""
    package = name.partition(".")[0]
    if package not in ("guard", "jobs", "service"):
        return None
    here, ours = Path.cwd(), Path(__file__).resolve().parents[2]
    candidates = (here / f"{package}.py", here / package)
    return next((path for path in candidates if path.exists() and path.resolve() != ours / path.name), None)
