"""The Markdown documents of the repository: their blocks, links, anchors, and what they name."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster.session import PACKAGE_ROOT as ROOT

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


FOLDER = re.compile(r"(?<!\S)/\S*/(?=runs/)")


def repository_files(pattern: str = "*") -> list[str]:
    """The files that git tracks, or would; none where this is no checkout."""
    command = ["git", "ls-files", "-co", "--exclude-standard", pattern]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return listed.stdout.splitlines() if listed.returncode == 0 else []


def documents() -> list[Path]:
    """Every Markdown file of the repository."""
    names = repository_files("*.md")
    return [ROOT / name for name in names] or [p for p in ROOT.rglob("*.md") if not _hidden(p)]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(ROOT).parts)


def name(path: Path) -> str:
    """The path of a document below the top of the repository."""
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and whether nothing separates it from the block above."""

    language: str
    text: str
    below: bool = False


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text, end, found = path.read_text(), 0, []
    for match in FENCE.finditer(text):
        found.append(Block(match[2], match[3], below=bool(found) and not text[end : match.start()].strip()))
        end = match.end()
    return found


def commands(block: Block) -> list[str]:
    """The commands of a shell block; a continued line belongs to the one before."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def prose(path: Path) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", path.read_text())


def inline_code(path: Path) -> list[str]:
    """The text between single backticks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(path))]


def links(path: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor of every relative link."""
    text = re.sub(r"`[^`]*`", "`code`", prose(path))
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            yield (path.parent / file).resolve() if file else path, anchor


def anchors(path: Path) -> set[str]:
    """As GitHub makes them from headings; the second of two equal ones gets a number."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
        slug = "".join(c for c in text.replace(" ", "-") if c.isalnum() or c in "-_")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def masked(text: str) -> list[str]:
    """The lines of an output with numbers, folders and column widths masked: they differ from run to run."""
    lines = (" ".join(line.split()) for line in FOLDER.sub("", text).splitlines())
    return [NUMBER.sub("#", line) for line in lines if line]


def agrees(shown: str, output: str) -> bool:
    """Whether an output matches what a document shows; a line ``...`` there matches any lines."""
    lines = masked(output)
    for number, part in enumerate(re.split(r"^\.\.\.$", shown, flags=re.MULTILINE)):
        wanted = masked(part)
        places = [i for i in range(len(lines) - len(wanted) + 1) if lines[i : i + len(wanted)] == wanted]
        if not places or (number == 0 and "..." not in shown and len(lines) != len(wanted)):
            return False
        lines = lines[places[0] + len(wanted) :]
    return True


class Session:
    """Runs the blocks of a document in order, and compares their output with what the document shows.

    Args:
        path: the document.
        shell: runs one command and returns its output; raises where it fails.
        names: variables of the programs.
    """

    def __init__(self, path: Path, shell: Callable[[str], str], names: dict[str, Any] | None = None) -> None:
        self._blocks = blocks(path)
        self._shell = shell
        self.names = names or {}

    def run(self, folder: Path, *, extra: str = "") -> int:
        """Runs all; files are written to ``folder`` with ``extra`` appended. Returns how many blocks ran."""
        ran, output = 0, ""
        for block in self._blocks:
            if block.language == "python":
                output = self._python(block.text)
            elif block.language == "sh":
                output = "".join(self._shell(command) for command in commands(block))
            elif block.language == "yaml":
                (folder / shlex.split(block.text.splitlines()[0])[-1]).write_text(block.text + extra)
            elif block.below:
                assert agrees(block.text, output), f"shown:\n{block.text}\nsaid:\n{output}"
            ran += block.language in ("python", "sh")
        return ran

    def _python(self, program: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(program, self.names)
        return out.getvalue()
