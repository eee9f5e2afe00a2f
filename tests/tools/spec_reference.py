"""Writes jobs/SPEC.md, every field of a job's spec, from the models: ``python -m tests.tools.spec_reference``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.spec.job_spec import JobSpec
from tests.tools.schema_table import markdown, references, table

PATH = Path(__file__).parents[2] / "jobs" / "SPEC.md"
TOP = "The whole spec"

HEAD = """# The spec of a job: every field

Written by `python -m tests.tools.spec_reference`, from the models; a test fails where it is not up to date.
[README.md](README.md) says how specs are written and what for.

Every field may be left out, unless it is called required. A default that *depends* is told in the meaning.
YAML is read by the rules of version 1.2: `1e-4` is a number, `off` is a word. Any field can be set on the
command line, too: `--set optimizer.lr=0.1`. An unknown field, a wrong type and a value out of range are
refused, all at once, each with its place in the file and with what to write instead. `gradguard check SPEC
--show` prints a spec with every default filled in.
"""


def document() -> str:
    """The document."""
    schema = JobSpec.model_json_schema()
    sections = list(_sections(schema))
    titles = dict(reversed([(name, title) for title, name, _ in sections]))

    def link(name: str) -> str:
        title = titles[name]
        return f"section [`{title}`](#{title.replace('.', '').replace('[]', '')})"

    lines = [HEAD]
    for title, name, section in sections:
        lines.append(f"## {title}\n" if title == TOP else f"## `{title}`\n")
        lines.append(f"{markdown(section.get('description', ''))}\n" if name else _contents(sections))
        lines += [*table(_told(section, schema["$defs"]), link), ""]
    return "\n".join(lines)


def _sections(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Title, name and schema of the whole and of each section, in their order, outer before inner."""
    yield TOP, "", schema
    yield from _inner(schema, schema["$defs"], "")


def _inner(
    section: Mapping[str, Any], known: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for field, inner in section["properties"].items():
        for name in references(inner):
            title = f"{prefix}{field}{'[]' if inner.get('type') == 'array' else ''}"
            yield title, name, known[name]
            yield from _inner(known[name], known, f"{title}.")


def _told(section: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The section, with the meaning of a field that has none of its own taken from what it holds."""
    fields = {}
    for name, field in section["properties"].items():
        inner = next(references(field), None)
        meaning = field.get("description") or (known[inner].get("description", "") if inner else "")
        fields[name] = {**field, "description": meaning}
    return {**section, "properties": fields}


def _contents(sections: list[tuple[str, str, Mapping[str, Any]]]) -> str:
    titles = [title for title, name, _ in sections if name]
    links = (f"[`{title}`](#{title.replace('.', '').replace('[]', '')})" for title in titles)
    return f"Sections: {', '.join(links)}.\n"


if __name__ == "__main__":
    PATH.write_text(document())
