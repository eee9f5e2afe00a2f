"""The packages that a measurement imports, and where those come from that a bare machine lacks.

Only the standard library is imported here.
"""

from __future__ import annotations

import re
import zipfile
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


def missing() -> list[str]:
    """One line for each package that cannot be imported: what to bring."""
    absent = [name for package, name in DISTRIBUTIONS.items() if find_spec(package) is None]
    return [
        f"{name} is missing: bring its wheel ({pinned(name)}) in the folder of --wheels" for name in absent
    ]


def pinned(name: str) -> str:
    """The version that is tested; of the parts of pydantic that which pydantic asks for."""
    pins = (ROOT / "constraints.txt").read_text()
    found = re.search(rf"^{re.escape(name)}==\S+", pins, re.MULTILINE)
    return found[0] if found else f"{name}, as pydantic {pinned('pydantic').partition('==')[2]} asks for"
