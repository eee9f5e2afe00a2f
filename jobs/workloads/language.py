"""The built-in language model: a GPT that learns the next token of a text."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jobs.data.errors import DataError
from jobs.data.text import load_text
from jobs.data.token_cache import encoded
from jobs.data.tokens import Windows, make_tokenizer
from jobs.models.gpt import GPT
from jobs.spec.job_spec import JobSpec
from jobs.workloads.losses import cross_entropy

_log = logging.getLogger(__name__)

_EVAL_LOGITS = 1 << 24
_SAMPLES, _PROMPT_TOKENS, _SAMPLE_TOKENS = 3, 32, 128
_TEMPERATURE, _LIKELIEST = 0.8, 50
_LARGEST_EXPONENT = 700.0
_SHOWN_TOKENS, _EXCERPT_TOKENS = 16, 40


class LanguageWorkload:
    """Cross-entropy of the next token; fulfils ``jobs.workloads.base.Workload``.

    A sample is a window of the text, at the same place in every epoch and for every number of workers.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._tokenizer = make_tokenizer(spec.data.tokenizer)
        self._shape = spec.model.gpt_shape(self._tokenizer.size)
        if self._shape.vocabulary < self._tokenizer.size:
            raise DataError(
                f"model.vocabulary = {self._shape.vocabulary}: the tokenizer has {self._tokenizer.size} "
                f"tokens; write {-(-self._tokenizer.size // 64) * 64}, or leave it out"
            )
        corpus = load_text(spec.data)
        train, test = (encoded(self._tokenizer, texts) for texts in (corpus.train, corpus.test))
        self._train = Windows(train, self._shape.context, spec.data.train_limit)
        self._test = Windows(test, self._shape.context, spec.data.test_limit)
        if not len(self._train) or not len(self._test):
            raise DataError(
                f"{corpus.source}: {len(train)} tokens to train on and {len(test)} held out are too few for "
                f"windows of {self._shape.context}: set data.path to more text, "
                "data.holdout higher, or model.context lower"
            )
        self.n_train = len(self._train)
        self.tokens_per_sample = self._shape.context
        self.model_sizes = {"vocabulary": self._tokenizer.size}
        self.fingerprint = f"{len(train)} tokens, {zlib.crc32(train.data):08x}"
        _log.info("data: %d tokens of %s, %d held out", len(train), corpus.source, len(test))

    def build_model(self) -> nn.Module:
        """The GPT of the spec, for this tokenizer."""
        return GPT(self._shape, self._spec.seed)

    def train_batch(self, ids: NDArray[np.int64], epoch: int, device: torch.device | str) -> Tensor:  # noqa: ARG002
        """Tokens, int64 [N, context + 1]; the same in every ``epoch``, since there is no augmentation."""
        return self._train.batch(ids).to(device, non_blocking=True)

    def describe_sample(self, sample: int) -> str:
        """The beginning of its text."""
        tokens = self._train.batch(np.array([sample]))[0, :_EXCERPT_TOKENS].tolist()
        return repr(self._tokenizer.decode(tokens))

    def describe(self, batch: Tensor) -> list[str]:
        """The first tokens of a batch and their text; how many tokens there are."""
        shown = batch[0, :_SHOWN_TOKENS].tolist()
        text = self._tokenizer.decode(shown)
        kinds = f"{len(self._train)} windows of {self._shape.context} tokens, {self._tokenizer.size} kinds"
        return [kinds, f"tokens {' '.join(map(str, shown))} = {text!r}"]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats a token, with the label smoothing and the z-loss of the spec."""
        logits = model(batch[:, :-1]).flatten(0, 1)
        targets, own = batch[:, 1:].flatten(), self._spec.regularize
        return cross_entropy(logits, targets, label_smoothing=own.label_smoothing, z_loss=own.z_loss)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device | str
    ) -> dict[str, float]:
        """Loss and number of the tokens in the held-out windows ``rank, rank + world_size, ...``."""
        was_training = model.training
        model.eval()
        sums = {"loss_sum": 0.0, "tokens": 0.0}
        size = max(1, _EVAL_LOGITS // (self._shape.vocabulary * self._shape.context))
        own = np.arange(rank, len(self._test), world_size)
        for first in range(0, len(own), size):
            batch = self._test.batch(own[first : first + size]).to(device)
            logits = model(batch[:, :-1]).flatten(0, 1).float()
            loss = functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum")
            sums["loss_sum"] += loss.item()
            sums["tokens"] += batch[:, 1:].numel()
        model.train(was_training)
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss in nats a token, and perplexity, its exponential."""
        loss = sums["loss_sum"] / sums["tokens"]
        return {"test_loss": loss, "test_perplexity": math.exp(min(loss, _LARGEST_EXPONENT))}

    @torch.no_grad()
    def samples(self, model: nn.Module, device: torch.device | str) -> list[tuple[str, str]]:
        """What the model writes after the beginnings of some held-out windows: prompt and continuation.

        Drawn with a fixed seed, temperature 0.8, from the 50 likeliest tokens.
        """
        was_training = model.training
        model.eval()
        context = self._shape.context
        generator = torch.Generator().manual_seed(self._spec.seed)
        chosen = np.linspace(0, len(self._test) - 1, min(_SAMPLES, len(self._test))).astype(np.int64)
        start = min(_PROMPT_TOKENS, context)
        tokens = self._test.batch(chosen)[:, :start]
        for _ in range(_SAMPLE_TOKENS):
            logits = model(tokens[:, -context:].to(device))[:, -1, : self._tokenizer.size]
            top, places = (logits.float().cpu() / _TEMPERATURE).topk(min(_LIKELIEST, logits.shape[-1]))
            drawn = torch.multinomial(top.softmax(-1), 1, generator=generator)
            tokens = torch.cat((tokens, places.gather(1, drawn)), dim=1)
        model.train(was_training)
        decode = self._tokenizer.decode
        return [(decode(row[:start]), decode(row[start:])) for row in tokens.tolist()]
