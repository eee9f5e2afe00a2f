"""The detector's settings from the command line: ``--set sigmas=8``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError

from guard import DetectConfig
from jobs.spec.errors import SpecError, problems_of
from jobs.spec.load import Document
from jobs.spec.override import apply_overrides

_SECTION = re.compile(r"^\s*(guard\.)?detect\.")


def detector_settings(base: DetectConfig, overrides: Sequence[str], *, option: str = "--set") -> DetectConfig:
    """``base`` with overrides, ``sigmas=8`` or as in a spec ``guard.detect.sigmas=8``.

    Raises:
        SpecError: a field is unknown, or its value does not fit.
    """
    document = Document(base.model_dump(mode="json"))
    overrides = [_SECTION.sub("", override) for override in overrides]
    problems = apply_overrides(document, overrides, DetectConfig)
    try:
        config = DetectConfig.model_validate(document.data, strict=True)
    except ValidationError as error:
        problems += problems_of(error, DetectConfig, document.data, document.where)
    if problems:
        raise SpecError([replace(p, where=p.where.replace("--set", option, 1)) for p in problems])
    return config
