"""What a workload requires of the sections ``model``, ``data`` and ``options``, and of faults.

Each function is a pydantic validator of one field of ``JobSpec``; it raises ``PydanticCustomError`` or
``ValueError`` for the first thing that is wrong. A workload of the user's own checks its fields itself.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationInfo

from guard.config import Config
from guard.faults.config import FaultConfig
from jobs.spec.data import DataSpec
from jobs.spec.errors import did_you_mean, related
from jobs.spec.huggingface import HUGGINGFACE, DocumentFields, HuggingFaceFields
from jobs.spec.language import GPT, LANGUAGE, SHAPE, GptFields, TextFields
from jobs.spec.sections import ModelSpec
from jobs.spec.workload_names import BUILTIN, IMPORT_PATH, TABULAR

VISION = "vision"


def workload(value: str) -> str:
    if ":" in value and not IMPORT_PATH.fullmatch(value):
        raise ValueError("is not an import path: write package.module:Class")
    if ":" not in value and value not in BUILTIN:
        message = f"must be {' or '.join(BUILTIN)}, or your own class as package.module:Class"
        raise related(message, value=value, suggestion=did_you_mean(value, BUILTIN))
    return value


def options(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    if value and info.data.get("workload") in BUILTIN:
        raise ValueError(f"is for your own workload; {info.data['workload']} has none: remove it")
    return value


def model(value: ModelSpec, info: ValidationInfo) -> ModelSpec:
    own = info.data.get("workload")
    if own == LANGUAGE:
        _check_unused(value, HuggingFaceFields, HUGGINGFACE, LANGUAGE)
        _check_gpt(value)
    if own == VISION:
        _check_unused(value, GptFields, LANGUAGE, VISION)
        _check_unused(value, HuggingFaceFields, HUGGINGFACE, VISION)
        _check_vision_model(value)
    if own == HUGGINGFACE:
        _check_huggingface(value)
    if own == TABULAR:
        _check_unused(value, HuggingFaceFields, HUGGINGFACE, TABULAR)
        _check_mlp(value)
    return value


def data(value: DataSpec, info: ValidationInfo) -> DataSpec:
    own = info.data.get("workload")
    if own in (LANGUAGE, VISION):
        _check_unused(value, DocumentFields, HUGGINGFACE, own)
    if own == LANGUAGE:
        _check_text(value)
    if own == HUGGINGFACE and value.stream is not None and value.path is not None and value.packing:
        message = "cuts all documents into windows, whose places a stream does not know: set it to false"
        raise related(message, field="packing", value=True)
    if own == TABULAR:
        _check_rows(value)
        if value.stream is not None and value.columns.text is not None:
            message = "are read whole by workload tabular: remove this, or write huggingface"
            raise related(message, field="columns.text", value=value.columns.text)
    elif own in BUILTIN and value.columns.features is not None:
        message = f"is for workload tabular, this one is {own}: remove it"
        raise related(message, field="columns.features", value=list(value.columns.features))
    if own == VISION:
        _check_unused(value, TextFields, LANGUAGE, VISION)
        if value.columns.text is not None:
            message = "is for workload language, this one is vision: remove it"
            raise related(message, field="columns.text", value=value.columns.text)
    return value


def fault(value: FaultConfig, info: ValidationInfo) -> FaultConfig:
    own, data = info.data.get("workload"), info.data.get("data")
    words = own == TABULAR and data is not None and data.columns.text is not None
    if value.kind == "poisoned_batch" and (own == LANGUAGE or words):
        message = "has no effect on text, since tokens are whole numbers"
        suggestion = "write nan_loss or scaled_gradient"
        raise related(message, field="kind", value=value.kind, suggestion=suggestion)
    return value


def _check_vision_model(model: ModelSpec) -> None:
    from jobs.torchvision_compat import classification_models

    known = classification_models()
    if model.name not in known:
        message = "must be a torchvision classification model, such as resnet18"
        raise related(message, field="name", value=model.name, suggestion=did_you_mean(model.name, known))


def _check_gpt(model: ModelSpec) -> None:
    if model.name not in GPT:
        message, suggestion = f"must be one of {', '.join(GPT)}", did_you_mean(model.name, GPT)
        raise related(message, field="name", value=model.name, suggestion=suggestion)
    for name, default in (("stem", "auto"), ("pretrained", False)):
        if getattr(model, name) != default:
            raise related("is for vision: remove it", field=name, value=getattr(model, name))
    missing = [name for name in SHAPE if getattr(model, name) is None] if model.name == "gpt" else []
    if missing:
        message = f"has no default size: also set {', '.join(f'model.{name}' for name in missing)}"
        suggestion = "or write gpt-tiny, gpt-small, ..."
        raise related(message, field="name", value=model.name, suggestion=suggestion)
    _check_heads(model)
    if model.initialization.scheme == "default" and model.initialization.residual == "depth_scaled":
        message = "is already the default of a gpt: remove it, or set another scheme too"
        raise related(message, field="init.residual", value="depth_scaled")


def _check_heads(model: ModelSpec) -> None:
    shape = model.gpt_shape(tokens=1)
    unit = 2 * shape.heads
    if shape.width % unit:
        rule = f"must be a multiple of twice the {shape.heads} heads"
        message = f"{rule}, since rotary positions rotate pairs of numbers"
        suggestion = f"write {-(-shape.width // unit) * unit}"
        raise related(message, field="width", value=shape.width, suggestion=suggestion)


def _check_text(data: DataSpec) -> None:
    """No field for images is set."""
    ours = {*TextFields.model_fields, "batch_size", "train_limit", "test_limit", "columns"}
    for name, field in type(data).model_fields.items():
        value = getattr(data, name)
        if name not in ours and name in data.model_fields_set and value != field.get_default():
            advice = "remove it" if name != "root" else "write data.path"
            theirs, shown = ("huggingface", "set") if name == "stream" else (VISION, value)
            raise related(f"is for {theirs}, and the workload is language: {advice}", field=name, value=shown)
    if data.columns.text is not None and data.path is None:
        raise related("is a column of data.path: set that too", field="columns.text", value=data.columns.text)
    if data.path is not None and data.corpus != "auto":
        message = "is for text without data.path: remove one of the two"
        raise related(message, field="corpus", value=data.corpus)


def _check_huggingface(model: ModelSpec) -> None:
    if not model.name:
        message = "is required for huggingface: the folder of a model, or its name on the Hugging Face hub"
        raise related(message, field="name", value=None)
    for name, field in GptFields.model_fields.items():
        if name != "context" and getattr(model, name) != field.default:
            raise related("is for workload language: remove it", field=name, value=getattr(model, name))
    for name, default in (("stem", "auto"), ("pretrained", False)):
        if getattr(model, name) != default:
            raise related("is for vision: remove it", field=name, value=getattr(model, name))


def _check_mlp(model: ModelSpec) -> None:
    if model.name != "mlp":
        raise related("must be mlp, the model of workload tabular", field="name", value=model.name)
    theirs = {"heads": LANGUAGE, "context": LANGUAGE, "mlp": LANGUAGE, "qk_norm": LANGUAGE}
    theirs |= {"vocabulary": LANGUAGE, "stem": VISION, "pretrained": VISION}
    for name, other in theirs.items():
        if getattr(model, name) != type(model).model_fields[name].default:
            raise related(f"is for workload {other}: remove it", field=name, value=getattr(model, name))


def _check_rows(data: DataSpec) -> None:
    """A table, and no field for images or text."""
    _check_unused(data, TextFields, LANGUAGE, TABULAR)
    _check_unused(data, DocumentFields, HUGGINGFACE, TABULAR)
    if data.dataset != "table":
        raise related("must be table for workload tabular", field="dataset", value=data.dataset)
    for name in ("image_size", "resize", "normalize", "augment", "workers", "on_broken"):
        if getattr(data, name) != type(data).model_fields[name].default:
            raise related("is for images: remove it", field=name, value=str(getattr(data, name)))
    if data.columns.text is not None and data.columns.features is not None:
        message = "either texts or numbers are classified: remove columns.features, or this"
        raise related(message, field="columns.text", value=data.columns.text)


def _check_unused(section: Config, fields: type[Config], theirs: str, own: str) -> None:
    """No field of another workload is set."""
    for name, field in fields.model_fields.items():
        value = getattr(section, name)
        if value != field.default:
            message = f"is for workload {theirs}, this one is {own}: remove it"
            raise related(message, field=name, value=value)
