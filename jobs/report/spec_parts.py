"""A spec in two parts: what differs from the defaults, and all of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.spec.yaml_text import dump_yaml


class SpecParts(NamedTuple):
    """Both as YAML; ``changed`` is the whole where nothing of it is a default, or it cannot be read."""

    changed: str
    whole: str

    @property
    def folded(self) -> bool:
        """Whether there are defaults to be folded."""
        return self.changed != self.whole


def spec_parts(spec: Mapping[str, Any]) -> SpecParts:
    """The parts of a spec whose secrets are masked already."""
    whole = dump_yaml(dict(spec))
    try:
        known = JobSpec.from_dict(dict(spec)).model_dump(mode="json", exclude_defaults=True)
    except SpecError:  # of an older version, or a mask stands where a number was
        return SpecParts(whole, whole)
    changed = _common(spec, {"name": spec.get("name"), **known})
    return SpecParts(dump_yaml(changed), whole)


def _common(spec: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the spec that ``changed`` has too, as they are written in the spec."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        if name not in changed:
            continue
        both = isinstance(value, Mapping) and isinstance(changed[name], Mapping)
        found[name] = _common(value, changed[name]) if both and value else value
    return found
