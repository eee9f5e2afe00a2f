"""Modules of the user's that a spec names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from jobs.spec.errors import did_you_mean, single

MODULES = "GRADGUARD_MODULES"
"""The environment variable with the folders of the user's modules. They are not in PYTHONPATH, where a
``random.py`` of the user's would hide Python's own from the workers."""


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


def find_modules_in(folder: Path) -> None:
    """Modules that a spec names are found in this folder too, by this process and those that it starts."""
    taken = _folders()
    if (path := str(folder.absolute())) not in taken:
        os.environ[MODULES] = os.pathsep.join([*taken, path])


def namesake_of(module: ModuleType) -> str:
    """What to add to an error where a file of the user's has the name of the module that was found."""
    file = f"{module.__name__.partition('.')[0]}.py"
    own = next((path for folder in searched() if (path := Path(folder, file)).exists()), None)
    found = getattr(module, "__file__", None)
    if own is None or (found is not None and Path(found).resolve() == own.resolve()):
        return ""
    return f" ({own} has the name of a module of Python or of a library: rename it)"


def searched() -> list[str]:
    """Where modules of the user's are looked for, after all others: their names hide nothing."""
    return list(dict.fromkeys([*_folders(), str(Path.cwd())]))


def _folders() -> list[str]:
    return list(filter(None, os.environ.get(MODULES, "").split(os.pathsep)))


def import_module(module: str) -> ModuleType:
    """The module; the working directory is searched too.

    Raises:
        ImportFailed: why not, in one line.
    """
    sys.path += [folder for folder in searched() if folder not in sys.path]
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ImportFailed(_why(error, module)) from error


def _why(error: BaseException, module: str) -> str:
    """Why the user's module cannot be imported, and what to do."""
    name = error.name or "" if isinstance(error, ImportError) else ""
    namesake = _namesake(name)
    if namesake is not None:
        return f"{namesake} has the name of GradGuard's package {namesake.stem}: rename it"
    if isinstance(error, SystemExit):
        return f'importing {module} ends the program: put what calls exit() below if __name__ == "__main__"'
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
