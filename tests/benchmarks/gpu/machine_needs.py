"""The packages that a measurement imports, and where those come from that a bare machine lacks.

Only the standard library is imported here.
"""

from __future__ import annotations

import platform
import re
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "PIL": "pillow",
    "rich": "rich",
    "pytest": "pytest",
    "prometheus_client": "prometheus-client",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "typing_extensions": "typing-extensions",
}
"""By the name that is imported."""


def unpack(wheels: Path, into: Path) -> None:
    """Unpacks each wheel of a folder, so that its packages can be imported from ``into``."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)


def missing(unpacked: Path) -> list[str]:
    """One line for each package that cannot be imported, be it from ``unpacked`` or not: what to bring."""
    found = [_problem(package, name, unpacked) for package, name in DISTRIBUTIONS.items()]
    return [problem for problem in found if problem]


def _problem(package: str, name: str, unpacked: Path) -> str:
    """Empty where there is none."""
    bring, spec = f"bring its wheel ({pinned(name)}) in the folder of --wheels", find_spec(package)
    if spec is None:
        return f"{name} is missing: {bring}"
    try:
        if Path(spec.origin or "").is_relative_to(unpacked):
            import_module(package)
    except ImportError as error:  # as with a wheel of another Python
        return f"{name} cannot be imported by Python {platform.python_version()} ({error}): {bring}"
    return ""


def pinned(name: str) -> str:
    """The version that is tested; of the parts of pydantic that which pydantic asks for."""
    pins = (ROOT / "constraints.txt").read_text()
    found = re.search(rf"^{re.escape(name)}==\S+", pins, re.MULTILINE)
    return found[0] if found else f"{name}, as pydantic {pinned('pydantic').partition('==')[2]} asks for"
