"""A checkpoint's whole model as one ONNX file, which runs without PyTorch."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jobs.checkpoints.export import ABOUT, about_model
from jobs.checkpoints.load import Content
from jobs.errors import JobError
from jobs.models.exported import build_filled
from jobs.spec.sections import ModelSpec

LARGEST = (1 << 31) - (1 << 20)
"""Bytes of weights: a file of protobuf ends at 2 GiB."""

_EXAMPLE_ROWS = 2
"""Of the inputs with which the model is traced; the number is free in the file."""


class Input(NamedTuple):
    """What a model takes: its name, an example, and which axes are free."""

    name: str
    example: Tensor
    free: dict[int, Any]


class Scores(nn.Module):
    """A model of Hugging Face that returns its scores alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, classes] of images [N, channels, size, size]."""
        scores: Tensor = self.model(images).logits
        return scores


def save_onnx(content: Content, target: Path) -> str:
    """Writes the model with its weights, and replaces ``target`` atomically.

    The input is ``images`` float32 [N, channels, size, size], normalized; ``rows`` float32 [N, features], as
    in the table; ``words`` or ``tokens`` int64 [N, length]. The output is ``logits``. The metadata have
    ``classes``, a JSON list in the order of the outputs, ``normalization`` of images, that is ``mean`` and
    ``std`` for pixels from 0 to 1, each where there is one, and ``gradguard``, how the model was made.

    Returns:
        The name of the input.

    Raises:
        JobError: the model is not one of ours, ONNX cannot express it, or the file cannot be written.
    """
    try:
        import onnxscript  # noqa: F401 - what torch translates with
    except ImportError:
        raise JobError('ONNX needs two libraries: pip install "gradguard[onnx]"') from None
    about, step = about_model(content.manifest), content.manifest.step
    model = build_filled(about, dict(content.model()), f"the checkpoint of step {step}")
    if sum(tensor.nbytes for tensor in model.state_dict().values()) > LARGEST:
        raise JobError(f"cannot write {target}: a model of more than 2 GB does not fit an ONNX file")
    given = _input(about)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        program = _translated(Scores(model) if _is_huggingface(about) else model, given)
        program.model.metadata_props.update(_metadata(about, step))
        program.save(temporary, external_data=False)
        temporary.replace(target)
    except OSError as error:
        raise JobError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return given.name


def _translated(model: nn.Module, given: Input) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        try:
            return torch.onnx.export(
                model,
                (given.example,),
                dynamo=True,
                dynamic_shapes=(given.free,),
                input_names=[given.name],
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            why = str(error.__cause__ or error).strip().partition("\n")[0]
            raise JobError(f"ONNX cannot express this model: {why}") from None


def _is_huggingface(about: dict[str, Any]) -> bool:
    return about["workload"] == "huggingface"


def _input(about: dict[str, Any]) -> Input:
    sizes, rows = about["sizes"], torch.export.Dim("rows")
    if _is_huggingface(about) and "image_size" not in sizes:
        raise JobError("ONNX is for images, tables and our own language models: export to a folder instead")
    if "features" in sizes:
        return Input("rows", torch.zeros(_EXAMPLE_ROWS, sizes["features"]), {0: rows})
    if "buckets" in sizes:
        words = torch.ones(_EXAMPLE_ROWS, 16, dtype=torch.int64)
        return Input("words", words, {0: rows, 1: torch.export.Dim("words")})
    if "vocabulary" in sizes:
        config = ModelSpec.model_validate_json(json.dumps(about["model"]))
        most = config.gpt_shape(sizes["vocabulary"]).context
        tokens = torch.zeros(_EXAMPLE_ROWS, min(most, 16), dtype=torch.int64)
        return Input("tokens", tokens, {0: rows, 1: torch.export.Dim("length", max=most)})
    size = sizes["image_size"]
    return Input("images", torch.zeros(_EXAMPLE_ROWS, sizes["channels"], size, size), {0: rows})


def _metadata(about: dict[str, Any], step: int) -> dict[str, str]:
    named = {name: json.dumps(about[name]) for name in ("classes", "normalization") if about[name]}
    return {**named, "step": str(step), ABOUT: json.dumps(about)}
