"""Builds a model again from a job's folder, or the file that ``gradguard checkpoints --export`` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from jobs.checkpoints.errors import DamagedCheckpoint
from jobs.checkpoints.export import ABOUT, about_model
from jobs.checkpoints.load import Content, newest_model
from jobs.errors import JobError
from jobs.models import huggingface
from jobs.models.huggingface import TrainedWeights, is_adapted
from jobs.run_dir.open_storage import open_storage
from jobs.run_dir.paths import CHECKPOINTS
from jobs.spec.sections import ModelSpec


def save_pretrained(content: Content, folder: Path) -> None:
    """Writes the model of a checkpoint as a folder that ``from_pretrained`` of transformers reads.

    An adapter is merged into its model. ``gradguard.json`` says how it was made.

    Raises:
        JobError: its workload is not huggingface, the folder is not empty, or cannot be written.
    """
    about = about_model(content.manifest)
    if about["workload"] != "huggingface":
        raise JobError(
            f"cannot export to the folder {folder}: that is for workload huggingface, and this one is "
            f"{about['workload']}: write a file that ends in .safetensors"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"{folder} exists already: write the name of a new folder")
    source = ModelSpec.model_validate_json(json.dumps(about["model"]))
    model = build_filled(about, dict(content.model()), folder)
    task = _task(about)
    try:
        huggingface.save(model, source, task, folder)
        (folder / "gradguard.json").write_text(json.dumps({**about, "step": content.manifest.step}, indent=2))
    except OSError as error:
        raise JobError(f"cannot write {folder}: {error.strerror or error}") from None


def load_model(path: str | Path) -> nn.Module:
    """The trained model of a job, on the CPU, in eval mode.

    Args:
        path: the job's folder, ``runs/x``, for its newest good checkpoint (a warning names a newer one that
            is damaged), or a ``.safetensors`` file that
            ``gradguard checkpoints JOB --export STEP --to FILE`` wrote.

    Raises:
        JobError: it is another file or folder, or its model is that of a workload of the user's own: then
            build it with its own code, and load the weights with ``safetensors.torch.load_file``.
    """
    return build_filled(*_read(Path(path)), path)


def build_filled(about: dict[str, Any], weights: dict[str, Any], path: str | Path) -> nn.Module:
    """The model that ``about_model`` describes, with these weights, in eval mode.

    Raises:
        JobError: it does not say how its model is built, or the weights do not fit; ``path`` names it.
    """
    try:
        model = _build(about, path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise JobError(
            f"{path}: what it says of its model is damaged: {type(error).__name__}: {why}"
        ) from None
    try:
        target = TrainedWeights(model) if is_adapted(model) else model
        target.load_state_dict(weights)
    except RuntimeError as error:
        raise JobError(f"{path}: the weights do not fit the model: {' '.join(str(error).split())}") from None
    return model.eval()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if path.is_dir():
        return _read_newest(path)
    try:
        with safe_open(path, framework="pt") as file:
            about: Any = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise JobError(f"cannot read {path}: {error}") from None
    return about if isinstance(about, dict) else {}, weights


def _read_newest(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    storage = open_storage(folder / CHECKPOINTS)
    try:
        found = newest_model(storage) if (folder / CHECKPOINTS).is_dir() else None
    except DamagedCheckpoint as error:
        raise JobError(f"{folder}: every good checkpoint is damaged: {error}") from None
    if found is None:
        raise JobError(f"{folder} has no good checkpoint: give a job's folder, or an exported file")
    return about_model(found[0]), found[1]


def _task(about: dict[str, Any]) -> str:
    if not about.get("classes"):
        return huggingface.CAUSAL_LM
    return huggingface.TEXTS if "tokens" in about["sizes"] else huggingface.IMAGES


def _build(about: dict[str, Any], path: str | Path) -> nn.Module:
    sizes, workload = about.get("sizes"), about.get("workload")
    if not sizes:
        raise JobError(
            f"{path} does not say how its model is built (workload {workload}): build it with its own code, "
            "and load the weights with safetensors.torch.load_file"
        )
    config = ModelSpec.model_validate_json(json.dumps({**about["model"], "pretrained": False}))
    if workload == "huggingface":
        return huggingface.build(config, _task(about), seed=0, classes=about.get("classes") or ())
    if workload == "tabular":
        from jobs.models.mlp import build_mlp
        from jobs.models.word_bag import build_word_bag

        return build_mlp(config, **sizes) if "features" in sizes else build_word_bag(config, **sizes)
    if workload == "language":
        from jobs.models.gpt import GPT

        return GPT(config.gpt_shape(sizes["vocabulary"]), 0)
    from jobs.models.vision import build_model

    return build_model(config, **sizes, seed=0)
