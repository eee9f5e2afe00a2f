"""The fields of a spec for a language model: its size, its text, and the defaults that suit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, PositiveInt

from guard.config import Config

LANGUAGE = "language"
SIZES = {
    "gpt-tiny": (4, 4, 128, 128),
    "gpt-mini": (6, 6, 384, 256),
    "gpt-small": (12, 12, 768, 1024),
    "gpt-medium": (24, 16, 1024, 1024),
    "gpt-large": (36, 20, 1280, 1024),
    "gpt-xl": (48, 25, 1600, 1024),
}
"""Layers, heads, width, context; from small on as GPT-2 (Radford et al. 2019, table 2)."""

GPT = ("gpt", *SIZES)
SHAPE = ("layers", "heads", "width", "context")
_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class GptShape:
    """The size of a GPT: ``hidden`` is the inner width of its MLPs, ``vocabulary`` the number of tokens."""

    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    qk_norm: bool = False

    @property
    def hidden(self) -> int:
        """Four times the width; for SwiGLU, which has a third matrix, two thirds of that, so that the number
        of weights is the same (Shazeer, "GLU Variants Improve Transformer", 2020, section 2)."""
        if self.mlp == "gelu":
            return 4 * self.width
        return -(-8 * self.width // (3 * _MULTIPLE)) * _MULTIPLE


class GptFields(Config):
    """The fields of ``model`` for the language workload; the name sets their defaults."""

    layers: PositiveInt | None = None
    """Transformer blocks of a gpt; hidden layers of an mlp, by default 2."""

    heads: PositiveInt | None = None
    """Attention heads of a gpt; they split its width."""

    width: PositiveInt | None = None
    """Width of a gpt's residual stream; of the hidden layers of an mlp, by default 256."""

    context: PositiveInt | None = None
    """Context length of a gpt in tokens; a training sample is a window of that length."""

    mlp: Literal["swiglu", "gelu"] | None = None
    """The inner layers of a gpt. Default: swiglu."""

    qk_norm: bool = False
    """Normalizes queries and keys of each attention head, so that attention logits cannot grow without limit:
    it lets a gpt train at higher rates."""

    vocabulary: PositiveInt | None = None
    """Rows of a gpt's embedding. Default and minimum: the number of tokens (256 for bytes). Multiples of 64
    are fastest."""


class TextFields(Config):
    """The fields of ``data`` for the language workload."""

    path: str | None = Field(default=None, min_length=1)
    """Text: a file, or a folder whose text files are all read, including gzipped ones. If the folder contains
    train/ and test/ (or val/), the latter is the evaluation set."""

    corpus: Literal["auto", "debian", "python"] = "auto"
    """Text if ``path`` is not set: the documents of a Debian system, or the sources of Python's standard
    library. ``auto``: the first, or the second if the first is too small."""

    tokenizer: str | None = Field(default=None, min_length=1)
    """A tokenizer file in the JSON format of the library ``tokenizers``; the tokens are cached in
    ~/.cache/gradguard/tokens. Default: a token is a byte."""

    holdout: float = Field(default=0.05, gt=0, lt=1)
    """Share of every text, at its end, that is held out for evaluation, unless the folder has test/ or
    val/."""


def with_language_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's document with the defaults of the language workload filled in, if that is its workload.

    Betas and weight decay as in Brown et al., "Language Models are Few-Shot Learners" (2020), appendix B.
    """
    if data.get("workload") != LANGUAGE:
        return dict(data)
    model, optimizer = data.get("model") or {}, data.get("optimizer") or {}
    filled = dict(data)
    if isinstance(model, Mapping):
        filled["model"] = {"name": "gpt-tiny", **model}
    if isinstance(optimizer, Mapping):
        own: dict[str, Any] = {"name": "adamw", **optimizer}
        if own["name"] in ("adamw", "muon"):
            own = {"betas": [0.9, 0.95], "weight_decay": 0.1, **own}
        filled["optimizer"] = own
    return filled
