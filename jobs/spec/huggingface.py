"""The fields of a spec for a Hugging Face model: which one, its adapter, how its text is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from guard.config import Config

HUGGINGFACE = "huggingface"
_LR, _ADAPTER_LR = 5e-5, 2e-4


class LoraSpec(Config):
    """A LoRA adapter (Hu et al., "LoRA", 2021), made by PEFT: it alone is trained, the model stays frozen.

    Snapshots and checkpoints hold the adapter, its optimizer's moments and the buffers.
    """

    rank: PositiveInt = 8
    """Rank of the two matrices beside each adapted layer."""

    alpha: float = Field(default=16.0, gt=0, allow_inf_nan=False)
    """The adapter's output is multiplied by ``alpha / rank``."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter."""

    targets: tuple[str, ...] = Field(default=("all-linear",), min_length=1)
    """Names of the layers that are adapted, as ``q_proj``. Default: all linear layers but the last one."""

    train_fully: tuple[str, ...] = ()
    """Names of modules that are trained as a whole, beside the adapters. A new head for classes always is."""

    quantize: Literal["none", "4bit", "8bit"] = "none"
    """Holds the frozen model in 4 bits (NF4: QLoRA, Dettmers et al. 2023) or 8; needs bitsandbytes."""


class HuggingFaceFields(Config):
    """The fields of ``model`` for the workload huggingface."""

    task: Literal["auto", "causal-lm", "image-classification", "text-classification"] = "auto"
    """What the model does. ``auto``: what its configuration names."""

    lora: LoraSpec | None = None
    """Trains a LoRA adapter instead of the model."""

    download: bool = False
    """Whether ``name`` may be downloaded from the Hugging Face hub. ``false``: it is a folder, or a model in
    the cache of this machine."""


class DocumentFields(Config):
    """The fields of ``data`` for text of the workload huggingface."""

    packing: bool = True
    """Whether documents are joined and cut into windows of ``model.context`` tokens, so that no place of a
    batch is empty. ``false``: a sample is one document, cut at ``model.context``."""

    loss_on: Literal["all", "assistant"] = "all"
    """Which tokens of a chat are learned: all of them, or the assistant's messages."""


def with_huggingface_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's document with the defaults of the workload huggingface filled in, if that is its workload.

    A folder in ``model.weights`` without ``model.name`` is the model. The rates are those of transformers'
    ``TrainingArguments``, and for adapters of Dettmers et al., "QLoRA" (2023), table 9.
    """
    if data.get("workload") != HUGGINGFACE:
        return dict(data)
    model, optimizer = data.get("model") or {}, data.get("optimizer") or {}
    filled = dict(data)
    if isinstance(model, Mapping):
        own = dict(model)
        if own.get("name") is None:
            own["name"] = own.pop("weights", None) or ""
        filled["model"] = own
    if isinstance(optimizer, Mapping):
        adapter = isinstance(model, Mapping) and model.get("lora") is not None
        filled["optimizer"] = {"name": "adamw", "lr": _ADAPTER_LR if adapter else _LR, **optimizer}
    return filled
