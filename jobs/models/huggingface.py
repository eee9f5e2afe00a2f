"""Models of Hugging Face transformers: built, adapted with PEFT, and saved as ``from_pretrained`` reads them.

No code of a model's folder is executed, and weights are read from safetensors alone.
"""

from __future__ import annotations

import importlib.util
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jobs.data.errors import DataError
from jobs.spec.huggingface import LoraSpec
from jobs.spec.sections import ModelSpec
from jobs.torchvision_compat import import_torchvision

_log = logging.getLogger(__name__)

CAUSAL_LM, IMAGES, TEXTS = "causal-lm", "image-classification", "text-classification"
_ARCHITECTURES = (
    ("ForImageClassification", IMAGES),
    ("ForSequenceClassification", TEXTS),
    ("ForMaskedLM", TEXTS),
    ("ForCausalLM", CAUSAL_LM),
    ("LMHeadModel", CAUSAL_LM),
)
_CLASSES = {
    CAUSAL_LM: "AutoModelForCausalLM",
    IMAGES: "AutoModelForImageClassification",
    TEXTS: "AutoModelForSequenceClassification",
}
_DIGESTED = 1 << 20
_Found = TypeVar("_Found")


def library() -> Any:
    """The module ``transformers``, without its progress bars.

    Raises:
        DataError: it is not installed.
    """
    import_torchvision()
    try:
        import transformers
    except ModuleNotFoundError:
        raise DataError(
            "workload huggingface needs transformers: pip install 'gradguard[huggingface]'"
        ) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def read(kind: str, model: ModelSpec, **options: Any) -> Any:
    """``transformers.<kind>.from_pretrained`` of the model's folder or name.

    Raises:
        DataError: it is not there, or cannot be read.
    """
    where = {"local_files_only": not model.download, "trust_remote_code": False}
    maker = getattr(library(), kind)
    return _one_line(model, lambda: maker.from_pretrained(_source(model), **where, **options))


def _source(model: ModelSpec) -> str:
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or model.name.startswith((".", "~")) or model.name.count("/") > 1:
        raise DataError(f"model.name = {model.name}: there is no such folder")
    return model.name


def _one_line(model: ModelSpec, make: Callable[[], _Found]) -> _Found:
    try:
        return make()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
        line = " ".join(str(error).split()).partition(". ")[0]
        local = Path(model.name).expanduser().is_dir()
        advice = "" if local or model.download else "; model.download: true downloads it"
        raise DataError(f"model.name = {model.name}: {line[:300]}{advice}") from None


def task_of(model: ModelSpec) -> str:
    """``model.task``, or what the configuration of the model says.

    Raises:
        DataError: it is neither a causal language model nor a classifier of images or texts.
    """
    if model.task != "auto":
        return model.task
    config, known = read("AutoConfig", model), library()
    for name, task in _ARCHITECTURES:
        if any(name in architecture for architecture in config.architectures or ()):
            return task
    if type(config) in known.AutoModelForImageClassification._model_mapping:
        return IMAGES
    if type(config) in known.AutoModelForCausalLM._model_mapping:
        return CAUSAL_LM
    raise DataError(
        f"model.name = {model.name}: a {config.model_type} is neither a causal language model nor a "
        "classifier of images or texts: set model.task, or train it as a workload of your own"
    )


def build(model: ModelSpec, task: str, *, seed: int, classes: Sequence[str] = ()) -> nn.Module:
    """The model in float32, with its published weights where there are any, in training mode.

    Args:
        model: its section of the spec.
        task: ``causal-lm``, ``image-classification`` or ``text-classification``.
        seed: of what is initialized: all of it, a head for other classes, an adapter.
        classes: of a classifier.

    Raises:
        DataError: it cannot be read, or a library is missing.
    """
    labels: dict[str, Any] = {}
    if classes:
        names = dict(enumerate(map(str, classes)))
        labels = {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        found = _base(model, task, labels)
        adapted = found if model.lora is None else _adapted(found, model.lora, head=bool(classes))
    return adapted.train()


def _base(model: ModelSpec, task: str, labels: Mapping[str, Any]) -> nn.Module:
    kind = _CLASSES[task]
    folder = Path(model.name).expanduser()
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        if old := [*folder.glob("*.bin"), *folder.glob("*.pt")]:
            raise DataError(f"{old[0]} is a pickle, which is not read: save it with safe_serialization=True")
        _log.info("model: %s has no weights: they are initialized from the seed", folder)
        maker, config = getattr(library(), kind), read("AutoConfig", model, **labels)
        made: nn.Module = _one_line(model, lambda: maker.from_config(config, dtype=torch.float32))
        return made
    options = {**labels, "use_safetensors": True, "ignore_mismatched_sizes": bool(labels)}
    return read(kind, model, dtype=torch.float32, **options, **_quantized(model.lora))


def _quantized(lora: LoraSpec | None) -> dict[str, Any]:
    if lora is None or lora.quantize == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DataError(
            f"model.lora.quantize = {lora.quantize} needs bitsandbytes: pip install it, or remove the field"
        )
    four = lora.quantize == "4bit"
    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True} if four else {}
    config = library().BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four, **settings)
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def _adapted(base: nn.Module, lora: LoraSpec, *, head: bool) -> nn.Module:
    try:
        import peft
    except ModuleNotFoundError:
        raise DataError("model.lora needs PEFT: pip install 'gradguard[huggingface]'") from None
    if lora.quantize != "none":
        base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    last = [name for name, m in base.named_modules() if isinstance(m, nn.Linear)][-1:] if head else []
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.targets == ("all-linear",) else list(lora.targets),
        exclude_modules=last or None,
        modules_to_save=[*lora.train_fully, *last] or None,
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in base.modules()),
        task_type=None if head else "CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(base, config)
    except ValueError as error:
        raise DataError(f"model.lora: {' '.join(str(error).split())[:300]}") from None


class TrainedWeights:
    """The state of an adapted model in a checkpoint: all but the frozen weights, which its folder has."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Adapters, modules that are trained as a whole, and buffers."""
        frozen = frozen_names(self._model)
        return {name: value for name, value in self._model.state_dict().items() if name not in frozen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Into the model; every tensor of ``state_dict`` must be there, and no other.

        Raises:
            RuntimeError: they differ.
        """
        if other := self.state_dict().keys() ^ state.keys():
            raise RuntimeError(f"these tensors are missing or unknown: {', '.join(sorted(other)[:3])}")
        self._model.load_state_dict(dict(state), strict=False)


def frozen_names(model: nn.Module) -> set[str]:
    """The parameters of an adapted model that are not trained; of any other model none."""
    if not is_adapted(model):
        return set()
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    return set(model.state_dict()) - trained - buffers


def is_adapted(model: nn.Module) -> bool:
    """Whether PEFT has put an adapter into it."""
    return hasattr(model, "peft_config")


def base_digest(model: ModelSpec) -> str:
    """Identifies the files of the frozen model, by their sizes and ends; empty for one in the cache."""
    digest = 0
    for file in sorted(Path(model.name).expanduser().glob("*.safetensors")):
        with file.open("rb") as opened:
            start = opened.read(_DIGESTED)
            size = opened.seek(0, 2)
            opened.seek(max(0, size - _DIGESTED))
            digest = zlib.crc32(start + opened.read(_DIGESTED) + size.to_bytes(8, "little"), digest)
    return f"{digest:08x}" if digest else ""


def save(model: nn.Module, source: ModelSpec, task: str, folder: Path) -> None:
    """Writes a folder that ``from_pretrained`` reads: weights, configuration, tokenizer or image processor.

    An adapter is merged into the weights; a quantized model is saved as its adapter alone.
    """
    merged = model
    if is_adapted(model) and (source.lora is None or source.lora.quantize == "none"):
        merged = model.merge_and_unload()  # type: ignore[operator]
    merged.save_pretrained(folder)  # type: ignore[operator]
    kind = "AutoImageProcessor" if task == IMAGES else "AutoTokenizer"
    try:
        read(kind, source).save_pretrained(folder)
    except DataError:
        _log.info("export: %s has no %s", source.name, kind)
