"""Builds torchvision classification models for images of any size and number of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from jobs.spec.errors import did_you_mean
from jobs.spec.sections import ModelSpec
from jobs.torchvision_compat import classification_models, import_torchvision

import_torchvision()
from torchvision import models as zoo  # noqa: E402

_SMALL_IMAGE = 64


class ModelError(ValueError):
    """A model cannot be built, or not for these images; the text is one line."""


def build_model(config: ModelSpec, *, channels: int, classes: int, image_size: int, seed: int) -> nn.Module:
    """A model on the CPU whose initial weights depend on the arguments alone.

    Args:
        config: name, stem and whether to start from published weights.
        channels: of the images.
        classes: number of outputs.
        image_size: height and width of the images in pixels.
        seed: of the initial weights; the global random number generators stay untouched.

    Raises:
        ModelError: the name is unknown, the stem does not fit it, or the images are too small for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU generators too
        model = _published(config.name, classes, image_size)
        _adapt_stem(model, config, channels, image_size)
        if config.pretrained:
            _load_published_weights(model, config.name)
        _adapt_channels(model, channels)
        _try_out(model, config.name, (2, channels, image_size, image_size))
    return model


def _published(name: str, classes: int, image_size: int) -> nn.Module:
    known = classification_models()
    if name not in known:
        question = did_you_mean(name, known) or f"known are {', '.join(known)}"
        raise ModelError(f"model {name}: torchvision has no such classification model; {question}")
    try:
        return zoo.get_model(name, weights=None, num_classes=classes, **_extra_arguments(name, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _unfit(name, image_size, error) from error


def _extra_arguments(name: str, image_size: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    has_many_outputs = name in ("googlenet", "inception_v3")
    return {"aux_logits": False, "init_weights": True} if has_many_outputs else {}


def _adapt_stem(model: nn.Module, config: ModelSpec, channels: int, image_size: int) -> None:
    stem = config.stem
    if not isinstance(model, zoo.ResNet):
        if stem in ("small", "tiny"):
            raise ModelError(f"model {config.name}: the stem {stem} is for ResNets; set model.stem: auto")
        return
    if stem == "auto":
        stem = "small" if image_size <= _SMALL_IMAGE else "imagenet"
    if stem != "imagenet":
        stride = 1 if stem == "small" else 2
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as all its others
        model.maxpool = nn.Identity()


def _load_published_weights(model: nn.Module, name: str) -> None:
    published = zoo.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
    own = model.state_dict()
    model.load_state_dict(own | {k: v for k, v in published.items() if k in own and own[k].shape == v.shape})


def _adapt_channels(model: nn.Module, channels: int) -> None:
    """Rebuilds the first convolution for another number of channels.

    A grey image gives in one channel exactly what it gave in three equal ones, and in more channels, whose
    weights repeat, the same on the average.
    """
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    given = first.in_channels
    if given == channels:
        return
    source = [first.weight.detach()[:, index % given] for index in range(max(channels, given))]
    weight = torch.stack(source, dim=1)
    weight = weight.sum(1, keepdim=True) if channels == 1 else weight[:, :channels] * given / channels
    first.in_channels, first.weight = channels, nn.Parameter(weight)


def _try_out(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Checks that the images survive all halvings, before the first training step does."""
    model.eval()  # neither dropout nor running statistics
    try:
        with torch.no_grad():
            model(torch.zeros(shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _unfit(name, shape[-1], error) from error
    model.train()


def _unfit(name: str, image_size: int, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())
    return ModelError(f"model {name}: not for images of {image_size}x{image_size}: {reason}")
