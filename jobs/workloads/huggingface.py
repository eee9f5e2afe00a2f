"""A causal language model of Hugging Face, trained on texts or chats."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jobs.data.documents import load_documents
from jobs.data.errors import DataError
from jobs.data.samples import IGNORED, Packed, Padded, encode
from jobs.data.streams.documents import StreamedDocuments, load_streamed_documents
from jobs.models import huggingface
from jobs.spec.job_spec import JobSpec
from jobs.workloads.losses import cross_entropy
from jobs.workloads.streamed import Streamed

_log = logging.getLogger(__name__)

_CONTEXT = 1024
_EVAL_LOGITS = 1 << 24
_SAMPLES, _PROMPT_TOKENS, _SAMPLE_TOKENS = 3, 32, 64
_TEMPERATURE, _LIKELIEST = 0.8, 50
_SHOWN_TOKENS, _EXCERPT_TOKENS = 16, 40
_LARGEST_EXPONENT = 700.0

Samples = Packed | Padded | StreamedDocuments


class CausalLanguageModel(Streamed):
    """Cross-entropy of the next token; fulfils ``jobs.workloads.base.Workload``.

    Attributes:
        n_train: training samples.
        tokenizer: of the model's folder.
        tokens_per_sample: at most.
        fingerprint: identifies the training data, and the frozen model of an adapter.
        model_sizes: what its network follows from.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        if spec.data.root is not None:
            raise DataError("data.root is for images, and the model writes text: write data.path")
        config = huggingface.read("AutoConfig", spec.model)
        self.tokenizer = huggingface.read("AutoTokenizer", spec.model)
        self._vocabulary = int(config.vocab_size)
        if len(self.tokenizer) > self._vocabulary:
            found = f"{len(self.tokenizer)} tokens, and the model has {self._vocabulary}"
            raise DataError(f"model.name = {spec.model.name}: its tokenizer has {found}")
        self.tokens_per_sample = self._context(config)
        self._train, self._test, source = self._samples()
        self.n_train = len(self._train)
        if not self.n_train or not len(self._test):
            raise DataError(
                f"{source}: {self.n_train} samples to train on and {len(self._test)} held out are too few: "
                "set data.path to more text, data.packing: false, or model.context below "
                f"{self.tokens_per_sample}"
            )
        self._follow(getattr(self._train, "stream", None))
        base = huggingface.base_digest(spec.model) if spec.model.lora else ""
        self.fingerprint = self._train.fingerprint() + (f", model {base}" if base else "")
        self.model_sizes = {"vocabulary": self._vocabulary}
        _log.info("data: %d samples of %s, %d held out", self.n_train, source, len(self._test))

    def _context(self, config: Any) -> int:
        longest = getattr(config, "max_position_embeddings", None)
        chosen = self._spec.model.context or min(longest or _CONTEXT, _CONTEXT)
        if longest and chosen > longest:
            raise DataError(f"model.context = {chosen}: the model has places for {longest} tokens")
        return chosen

    def _samples(self) -> tuple[Samples, Samples, str]:
        data, context = self._spec.data, self.tokens_per_sample
        marks = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        padding = next(mark for mark in marks if mark is not None)
        if data.stream is not None:
            learned = partial(encode, self.tokenizer, loss_on=data.loss_on)
            streams = load_streamed_documents(data, learned, context, padding=padding)
            return *streams, streams[0].stream.name
        train, test, source = load_documents(data)
        own, held_out = (
            [encode(self.tokenizer, document, loss_on=data.loss_on) for document in documents]
            for documents in (train, test)
        )
        if data.packing:
            shorter = min(context, sum(len(document.ids) for document in held_out) - 1)
            return Packed(own, context, data.train_limit), Packed(held_out, shorter, data.test_limit), source
        first = Padded(own, context, data.train_limit, padding=padding)
        return first, Padded(held_out, context, data.test_limit, padding=padding), source

    def build_model(self) -> nn.Module:
        """The model of the spec, with its adapter where it has one."""
        return huggingface.build(self._spec.model, huggingface.CAUSAL_LM, seed=self._spec.seed)

    def train_batch(
        self,
        ids: NDArray[np.int64],
        epoch: int,  # noqa: ARG002
        device: torch.device | str,
    ) -> tuple[Tensor, Tensor]:
        """Tokens and what follows each, int64 [N, T]; -100 follows where nothing is learned."""
        self._expect(ids)
        tokens, targets = self._train.batch(ids)
        return tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def describe_sample(self, sample: int) -> str:
        """The beginning of its text."""
        return repr(self.tokenizer.decode(self._train.batch(np.array([sample]))[0][0, :_EXCERPT_TOKENS]))

    def describe(self, batch: tuple[Tensor, Tensor]) -> list[str]:
        """The first tokens of a batch and their text; how many there are, and how many are learned."""
        tokens, targets = batch
        shown = tokens[0, :_SHOWN_TOKENS].tolist()
        kinds = f"{self.n_train} samples of up to {self.tokens_per_sample} tokens, {self._vocabulary} kinds"
        learned = f"{(targets != IGNORED).float().mean():.0%} of a batch is learned"
        return [
            f"{kinds}; {learned}",
            f"tokens {' '.join(map(str, shown))} = {self.tokenizer.decode(shown)!r}",
        ]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats a learned token, with the label smoothing and the z-loss of the spec."""
        tokens, targets = batch
        logits, own = self.scores(model, tokens).flatten(0, 1), self._spec.regularize
        loss = cross_entropy(logits, targets.flatten(), label_smoothing=own.label_smoothing)
        if own.z_loss:  # of the learned tokens alone, as the cross-entropy is
            learned = (targets.flatten() != IGNORED).float()
            squared = torch.logsumexp(logits.float(), dim=-1).square()
            loss = loss + own.z_loss * (squared * learned).sum() / learned.sum()
        return loss

    def scores(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Logits [N, T, vocabulary]; padding at the end is not seen by what is before it."""
        found: Tensor = model(input_ids=tokens, use_cache=False).logits
        return found

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device | str
    ) -> dict[str, float]:
        """Loss and number of the learned tokens in the held-out samples ``rank, rank + world_size, ...``."""
        was_training = model.training
        model.eval()
        sums = {"loss_sum": 0.0, "tokens": 0.0}
        size = max(1, _EVAL_LOGITS // (self._vocabulary * self.tokens_per_sample))
        own = np.arange(rank, len(self._test), world_size)
        for first in range(0, len(own), size):
            tokens, targets = (part.to(device) for part in self._test.batch(own[first : first + size]))
            logits = self.scores(model, tokens).flatten(0, 1).float()
            loss = functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
            sums["loss_sum"] += loss.item()
            sums["tokens"] += (targets != IGNORED).sum().item()
        model.train(was_training)
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss in nats a token, and perplexity, its exponential."""
        loss = sums["loss_sum"] / max(1.0, sums["tokens"])
        return {"test_loss": loss, "test_perplexity": self.perplexity(loss)}

    @staticmethod
    def perplexity(loss: float) -> float:
        """The exponential of a loss in nats a token."""
        return math.exp(min(loss, _LARGEST_EXPONENT))

    def samples(self, model: nn.Module, device: torch.device | str) -> list[tuple[str, str]]:
        """What the model writes after the beginnings of some held-out samples: prompt and continuation."""
        chosen = np.linspace(0, len(self._test) - 1, min(_SAMPLES, len(self._test))).astype(np.int64)
        prompts = [self._test.batch(np.array([at]))[0][0, :_PROMPT_TOKENS] for at in chosen]
        return [(self.tokenizer.decode(p), self.write(model, p.to(device))) for p in prompts]

    @torch.no_grad()
    def write(self, model: nn.Module, prompt: Tensor, most: int = _SAMPLE_TOKENS) -> str:
        """The continuation of a prompt, int64 [T], drawn with the spec's seed."""
        was_training = model.training
        model.eval()
        generator = torch.Generator().manual_seed(self._spec.seed)
        tokens, written = prompt[None], []
        for _ in range(most):
            logits = self.scores(model, tokens[:, -self.tokens_per_sample :])[0, -1].float().cpu()
            top, places = (logits / _TEMPERATURE).topk(min(_LIKELIEST, len(logits)))
            drawn = places[torch.multinomial(top.softmax(-1), 1, generator=generator)]
            if drawn.item() == self.tokenizer.eos_token_id:
                break
            written.append(int(drawn))
            tokens = torch.cat((tokens, drawn.to(tokens.device)[None]), dim=1)
        model.train(was_training)
        return str(self.tokenizer.decode(written))
