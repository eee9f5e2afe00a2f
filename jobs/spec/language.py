"""What a spec says of a language model: its size, its text, and the defaults that suit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from guard.config import Config
from jobs.spec.errors import did_you_mean, related

if TYPE_CHECKING:
    from jobs.spec.job_spec import DataSpec, ModelSpec

LANGUAGE = "language"
_SIZES = {
    "gpt-tiny": (4, 4, 128, 128),
    "gpt-mini": (6, 6, 384, 256),
    "gpt-small": (12, 12, 768, 1024),
    "gpt-medium": (24, 16, 1024, 1024),
    "gpt-large": (36, 20, 1280, 1024),
    "gpt-xl": (48, 25, 1600, 1024),
}
"""Layers, heads, width, context; from small on those of GPT-2 (Radford et al. 2019, table 2)."""

GPT = ("gpt", *_SIZES)
_SHAPE = ("layers", "heads", "width", "context")
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

    @property
    def hidden(self) -> int:
        """Four times the width; with the third matrix of SwiGLU two thirds of that, so that the weights are
        as many (Shazeer, "GLU Variants Improve Transformer", 2020, section 2)."""
        if self.mlp == "gelu":
            return 4 * self.width
        return -(-8 * self.width // (3 * _MULTIPLE)) * _MULTIPLE


class GptFields(Config):
    """The fields of ``model`` that are for the language workload; by default the name says them."""

    layers: PositiveInt | None = None
    """Transformer blocks of a gpt."""

    heads: PositiveInt | None = None
    """Attention heads of a gpt; they share its width."""

    width: PositiveInt | None = None
    """Width of a gpt's residual stream."""

    context: PositiveInt | None = None
    """Tokens that a gpt sees at once; a training sample is a window of that length."""

    mlp: Literal["swiglu", "gelu"] | None = None
    """The inner layers of a gpt. Default: swiglu."""

    vocabulary: PositiveInt | None = None
    """Rows of a gpt's embedding; at least as many as there are tokens (256 for bytes), which is the default.
    Multiples of 64 are fastest."""


class TextFields(Config):
    """The fields of ``data`` that are for the language workload."""

    path: str | None = Field(default=None, min_length=1)
    """Text: a file, or a folder of which all text files are read, gzipped ones too. A folder with train/ and
    test/ (or val/) in it says itself what is held out."""

    corpus: Literal["auto", "debian", "python"] = "auto"
    """Text where there is no ``path``: the documents of a Debian system, or the sources of Python's standard
    library. ``auto``: the first, and where there is little of it the second."""

    tokenizer: str | None = Field(default=None, min_length=1)
    """A tokenizer file, JSON as the library ``tokenizers`` writes it; the tokens are kept in
    ~/.cache/gradguard/tokens for the next start. Default: a token is a byte."""

    holdout: float = Field(default=0.05, gt=0, lt=1)
    """Share of every text, at its end, that is kept for evaluation; not where the folder says it."""


def with_language_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's document with the defaults of the language workload, where that is what it asks for.

    Moments, decay and clipping of what is not given as in Brown et al., "Language Models are Few-Shot
    Learners" (2020), appendix B.
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


def gpt_shape(model: ModelSpec, tokens: int) -> GptShape:
    """The size that ``model`` asks for.

    Args:
        model: checked by ``check_gpt``.
        tokens: that there are; the vocabulary where none is given.
    """
    named = dict(zip(_SHAPE, _SIZES.get(model.name, ()), strict=False))
    given = {name: getattr(model, name) for name in _SHAPE if getattr(model, name) is not None}
    return GptShape(**{**named, **given}, vocabulary=model.vocabulary or tokens, mlp=model.mlp or "swiglu")


def check_gpt(model: ModelSpec) -> None:
    """Whether ``model`` is a gpt that can be built.

    Raises:
        PydanticCustomError: it is none, lacks a size, or its heads do not share its width.
    """
    if model.name not in GPT:
        suggestion = did_you_mean(model.name, GPT)
        raise related(
            f"must be one of {', '.join(GPT)}", field="name", value=model.name, suggestion=suggestion
        )
    for name, default in (("stem", "auto"), ("pretrained", False)):
        if getattr(model, name) != default:
            raise related("is for vision: remove it", field=name, value=getattr(model, name))
    missing = [name for name in _SHAPE if getattr(model, name) is None] if model.name == "gpt" else []
    if missing:
        raise related(
            f"is of no size of its own: give {', '.join(f'model.{name}' for name in missing)} too",
            field="name",
            value=model.name,
            suggestion="or write gpt-tiny, gpt-small, ...",
        )
    shape = gpt_shape(model, tokens=1)
    if shape.width % (2 * shape.heads):
        raise related(
            f"must be a multiple of twice the {shape.heads} heads, since positions turn pairs of numbers",
            field="width",
            value=shape.width,
            suggestion=f"write {-(-shape.width // (2 * shape.heads)) * 2 * shape.heads}",
        )
    if model.initialization.scheme == "default" and model.initialization.residual == "depth_scaled":
        raise related(
            "a gpt begins so by itself: remove it, or give another scheme too",
            field="init.residual",
            value="depth_scaled",
        )


def check_unused(section: Config, fields: type[Config], workload: str) -> None:
    """Whether a section of another workload leaves the fields of the language workload alone.

    Raises:
        PydanticCustomError: one of them is set.
    """
    for name, field in fields.model_fields.items():
        value = getattr(section, name)
        if value != field.default:
            raise related(
                f"is for workload language, this one is {workload}: remove it", field=name, value=value
            )


def check_text(data: DataSpec) -> None:
    """Whether ``data`` says nothing that means nothing for text.

    Raises:
        PydanticCustomError: a field for images is set.
    """
    ours = {*TextFields.model_fields, "batch_size", "train_limit", "test_limit"}
    for name, field in type(data).model_fields.items():
        value = getattr(data, name)
        if name not in ours and name in data.model_fields_set and value != field.get_default():
            advice = "remove it" if name != "root" else "write data.path"
            raise related(f"is for vision, and the workload is language: {advice}", field=name, value=value)
    if data.path is not None and data.corpus != "auto":
        raise related(
            "is for text without data.path: remove one of the two", field="corpus", value=data.corpus
        )
