"""Writes guard/API.md and jobs/API.md, what a program may use: ``python -m tests.tools.api_reference``.

The text is that of the docstrings. The sources are read by griffe and not run; nothing is written down here
but which objects, in which order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import griffe

from tests.tools.schema_table import markdown

ROOT = Path(__file__).parents[2]

GUARD = {
    "The guard": (
        "guard.guard.GradientGuard",
        "guard.types.StepReport",
        "guard.observe.noise_scale.NoiseEstimate",
    ),
    "Verdicts and incidents": (
        "guard.types.Verdict",
        "guard.records.Incident",
        "guard.record.journal.Journal",
    ),
    "Configuration": (
        "guard.config.GuardConfig",
        "guard.config.ClipConfig",
        "guard.config.DetectConfig",
        "guard.config.SnapshotConfig",
        "guard.config.RecoveryConfig",
        "guard.config.BudgetConfig",
    ),
    "The detector alone": (
        "guard.decide.detector.SpikeDetector",
        "guard.decide.replay.replay",
        "guard.decide.replay.ReplayResult",
    ),
    "Metrics": ("guard.record.metrics.GuardMetrics",),
    "Before the first step": ("guard.preflight.run.run_preflight", "guard.preflight.report.PreflightReport"),
    "Faults on demand": ("guard.faults.config.FaultConfig", "guard.faults.injector.FaultInjector"),
    "In other frameworks": (
        "guard.integrations.lightning.GradientGuardCallback",
        "guard.integrations.transformers.GuardedTrainer",
    ),
    "Errors": (
        "guard.errors.GuardError",
        "guard.errors.UnsupportedGradient",
        "guard.errors.GuardHalt",
        "guard.errors.RankDivergence",
        "guard.errors.RankLost",
    ),
}
JOBS = {
    "The client": (
        "jobs.client.client.JobClient",
        "jobs.client.client.Job",
        "jobs.client.aio.AsyncJobClient",
    ),
    "What it answers": (
        "jobs.client.models.JobInfo",
        "jobs.client.models.Progress",
        "jobs.client.models.AttemptInfo",
        "jobs.client.models.Event",
        "jobs.client.models.CheckpointInfo",
        "jobs.client.models.Series",
    ),
    "What it raises": (
        "jobs.client.errors.ClientError",
        "jobs.client.errors.Unreachable",
        "jobs.client.errors.NotAllowed",
        "jobs.client.errors.JobNotFound",
        "jobs.client.errors.JobTimeout",
        "jobs.client.errors.Conflict",
        "jobs.client.errors.Refused",
        "jobs.client.errors.Unsupported",
        "jobs.client.errors.TryLater",
    ),
    "The spec": ("jobs.spec.job_spec.JobSpec", "jobs.spec.errors.SpecError"),
    "A workload of your own": ("jobs.workloads.base.Workload", "jobs.workloads.base.ReadsAhead"),
}

HEAD = """# {title}

Written by `python -m tests.tools.api_reference`, from the docstrings; a test fails where it is not up to date.
{more}
"""
DOCUMENTS = {
    "guard/API.md": (
        GUARD,
        "API of the guard",
        "[README.md](README.md) says how it works and how it is tuned. What is named `guard.NAME` comes by\n"
        "`from guard import NAME`, all else from its module. Defaults and limits of the configuration are\n"
        "in [jobs/SPEC.md](../jobs/SPEC.md#guard).",
    ),
    "jobs/API.md": (
        JOBS,
        "API of the jobs",
        "[README.md](README.md) says how to use it; [SPEC.md](SPEC.md) has every field of a spec.",
    ),
}


def documents() -> dict[Path, str]:
    """The documents, by the file that each belongs into."""
    loader = griffe.GriffeLoader(search_paths=[ROOT], docstring_parser=griffe.Parser.google)
    for package in ("guard", "jobs"):
        loader.load(package)
    loader.resolve_aliases()
    return {
        ROOT / name: "\n".join([HEAD.format(title=title, more=more), *_chapters(loader, chapters)])
        for name, (chapters, title, more) in DOCUMENTS.items()
    }


def _chapters(loader: griffe.GriffeLoader, chapters: dict[str, tuple[str, ...]]) -> Iterator[str]:
    for title, paths in chapters.items():
        yield f"## {title}\n"
        for path in paths:
            yield from _object(loader, path)


def _object(loader: griffe.GriffeLoader, path: str) -> Iterator[str]:
    found = loader.modules_collection[path]
    package = loader.modules_collection[path.partition(".")[0]]
    public = found.name in (package.exports or ())
    yield f"### `{package.name + '.' + found.name if public else path}`\n"
    if isinstance(found, griffe.Function):
        yield from _function(found, found.name)
        return
    assert isinstance(found, griffe.Class)
    init = found.members.get("__init__")
    if isinstance(init, griffe.Function):
        yield _code(init, found.name)
    yield from _told(found)
    yield from _fields(found)
    for member in found.members.values():
        if isinstance(member, griffe.Function) and _is_public(member):
            yield f"#### `{found.name}.{member.name}`\n"
            yield from _function(member, member.name)


def _function(function: griffe.Function, name: str) -> Iterator[str]:
    yield _code(function, name)
    yield from _told(function)


def _code(function: griffe.Function, name: str) -> str:
    """The signature, one parameter a line where it is long."""
    signature = function.signature(name=name).replace("(self, *, ", "(*, ").replace("(self, ", "(")
    signature = signature.replace("(self)", "()").removesuffix(" -> None")
    prefix = "async " if "async" in function.labels else ""
    if len(prefix + signature) > 100:
        inner, _, after = signature.partition("(")[2].rpartition(")")
        parts = ",\n    ".join(_split(inner))
        signature = f"{name}(\n    {parts},\n){after}"
    return f"```text\n{prefix}{signature}\n```\n"


def _split(parameters: str) -> list[str]:
    """At the commas that separate parameters, not at those within brackets."""
    parts, depth = [""], 0
    for character in parameters:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _told(found: griffe.Object) -> Iterator[str]:
    """The sections of a docstring."""
    for section in found.docstring.parsed if found.docstring else ():
        if isinstance(section, griffe.DocstringSectionText):
            yield from (_paragraph(text) for text in section.value.split("\n\n"))
        elif isinstance(section, griffe.DocstringSectionParameters):
            yield from _list("Arguments", [(f"`{item.name}`", item.description) for item in section.value])
        elif isinstance(section, griffe.DocstringSectionAttributes):
            yield from _list("Attributes", [(f"`{item.name}`", item.description) for item in section.value])
        elif isinstance(section, griffe.DocstringSectionRaises):
            yield from _list("Raises", [(f"`{item.annotation}`", item.description) for item in section.value])
        elif isinstance(section, griffe.DocstringSectionReturns):
            yield from _list("Returns", [("", item.description) for item in section.value])


def _paragraph(text: str) -> str:
    indented = all(line.startswith("    ") for line in text.splitlines())
    return f"```text\n{text}\n```\n" if indented else f"{markdown(text)}\n"


def _list(title: str, items: list[tuple[str, str]]) -> Iterator[str]:
    yield f"**{title}**\n"
    for name, meaning in items:
        yield f"- {name}: {markdown(meaning)}" if name else f"- {markdown(meaning)}"
    yield ""


def _fields(found: griffe.Class) -> Iterator[str]:
    """Public attributes and properties that say what they are, or have a type of their own."""
    fields = [
        member
        for member in found.members.values()
        if isinstance(member, griffe.Attribute) and _is_public(member) and _is_field(member)
    ]
    if "__init__" in found.members:  # its signature has them already
        fields = [member for member in fields if member.docstring or _words(member)]
    if not fields:
        return
    yield "| Attribute | Type | Meaning |\n|---|---|---|"
    for field in fields:
        meaning = markdown(field.docstring.value) if field.docstring else ""
        kind = f"`{_words(field) or field.annotation}`" if field.annotation is not None else ""
        cells = (cell.replace("|", "\\|") for cell in (f"`{field.name}`", kind, meaning))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _words(field: griffe.Attribute) -> str:
    """What the name of a type stands for, where that is a choice of words."""
    target = field.module.members.get(str(field.annotation))
    if isinstance(target, griffe.Alias):
        if not target.resolved:  # of another package
            return ""
        target = target.final_target
    value = str(target.value) if isinstance(target, griffe.Attribute) else ""
    return " ".join(value.split()) if value.startswith("Literal[") else ""


def _is_public(member: griffe.Object) -> bool:
    return not member.name.startswith("_") and member.name != "model_config"


def _is_field(member: griffe.Attribute) -> bool:
    own = "class-attribute" in member.labels or "property" in member.labels
    return own or ("instance-attribute" in member.labels and member.annotation is not None)


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
