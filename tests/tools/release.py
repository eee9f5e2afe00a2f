"""``make release``: checks version and changelog, builds wheel and source archive, tries the wheel.

It uploads nothing: what is in ``dist/`` at its end can be uploaded with ``twine upload dist/*``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta as b; b.build_{kind}({folder!r})"
SOURCES = ("guard", "jobs", "service", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")


def problems(root: Path) -> list[str]:
    """Why this tree cannot be released, a line for each reason."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    changelog, found = (root / "CHANGELOG.md").read_text(), []
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        found.append(f"pyproject.toml: version {version} is not as 1.2.3 or 1.2.3rc1")
    heading = re.search(rf"^## \[?{re.escape(version)}\]?(.*)$", changelog, re.MULTILINE)
    if heading is None:
        found.append(f"CHANGELOG.md: has no section '## {version}': move what is under Unreleased there")
    elif not re.search(r"\d{4}-\d{2}-\d{2}", heading[1]):
        found.append(f"CHANGELOG.md: the section of {version} has no date: write '## {version} - YYYY-MM-DD'")
    unreleased = re.search(r"^## \[?Unreleased\]?$(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if unreleased and unreleased[1].strip():
        found.append("CHANGELOG.md: something is still under Unreleased")
    return found


def build(root: Path, target: Path) -> list[Path]:
    """Wheel and source archive of a copy of the tree, since a build leaves files in its folder."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copy:
        for name in SOURCES:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, Path(copy) / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        for kind in ("sdist", "wheel"):
            code = BUILD.format(kind=kind, folder=str(target.resolve()))
            subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, stdout=subprocess.DEVNULL)
    return sorted(target.iterdir())


def try_wheel(wheel: Path, version: str) -> None:
    """Installs it into an environment of its own, beside the packages of this one, and asks its version.

    Raises:
        RuntimeError: the command does not run there, or is of another version.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(venv)]
        subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
        (site,) = venv.glob("lib/python*/site-packages")
        others = [path for path in sys.path if Path(path).name == "site-packages"]
        (site / "dependencies.pth").write_text("\n".join(others))
        command = [str(venv / "bin" / "gradguard"), "--version"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.startswith(f"gradguard {version}"):
        raise RuntimeError(f"{wheel.name} does not run: {done.stdout}{done.stderr}")


def main() -> int:
    """The whole release, up to the upload."""
    if found := problems(ROOT):
        print("\n".join(found), file=sys.stderr)
        return 1
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    target = ROOT / "dist"
    shutil.rmtree(target, ignore_errors=True)
    made = build(ROOT, target)
    try_wheel(next(path for path in made if path.suffix == ".whl"), version)
    print("\n".join(map(str, made)))
    print("twine upload dist/*  # when you mean it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
