"""Documents as training samples: token ids, which of them are learned, packed or padded."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.documents import Chat
from jobs.data.errors import DataError

IGNORED = -100
"""The target of a token that is not learned, as in ``torch.nn.functional.cross_entropy``."""
_LIMIT_SEED = 0


class Tokens(NamedTuple):
    """A document: ids, int64 [T], and which of them are learned, bool [T]."""

    ids: NDArray[np.int64]
    learned: NDArray[np.bool_]


def encode(tokenizer: Any, document: str | Chat, *, loss_on: str) -> Tokens:
    """A text with the tokenizer's marks and an end, or a chat in the tokenizer's template.

    Raises:
        DataError: the tokenizer has no chat template, or one that refuses this chat.
    """
    if isinstance(document, str):
        ids, end = tokenizer(document, verbose=False)["input_ids"], tokenizer.eos_token_id
        ids = ids if end is None or ids[-1:] == [end] else [*ids, end]
        return Tokens(np.array(ids, dtype=np.int64), np.ones(len(ids), dtype=bool))
    text = _rendered(tokenizer, document)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.array(found["input_ids"], dtype=np.int64)
    learned = np.full(len(ids), loss_on == "all")
    if loss_on == "assistant":
        starts = np.array([start for start, _ in found["offset_mapping"]])
        for first, last in _answers(tokenizer, document, text):
            learned |= (starts >= first) & (starts < last)
    return Tokens(ids, learned)


def _rendered(tokenizer: Any, chat: Chat, *, prompt: bool = False) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "data.path: it has chats, and the model's tokenizer has no chat template: put "
            "chat_template.jinja into its folder, or name a column with plain text in data.columns.text"
        )
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # noqa: BLE001 - a template raises anything
        reason = " ".join(str(error).split())
        raise DataError(f"data.path: the chat template refuses a chat: {reason}") from None


def _answers(tokenizer: Any, chat: Chat, text: str) -> list[tuple[int, int]]:
    """Where the assistant's messages are in the text, with the mark at their end."""
    found = []
    for at, message in enumerate(chat):
        if message["role"] == "assistant":
            before = _rendered(tokenizer, chat[:at], prompt=True) if at else ""
            after = _rendered(tokenizer, chat[: at + 1])
            if not (text.startswith(after) and after.startswith(before)):
                raise DataError(
                    "data.loss_on = assistant: the chat template renders a chat's beginning differently from "
                    "the whole chat, so that answers cannot be found in it: write all"
                )
            found.append((len(before), len(after)))
    return found


class Packed:
    """Documents in one row, cut into windows: sample i predicts ``context`` tokens.

    The documents of a window see each other. Windows without a learned token are left out.
    """

    def __init__(self, documents: Sequence[Tokens], context: int, limit: int | None = None) -> None:
        self._ids, self._targets = _joined(documents)
        self._offsets = np.arange(context)
        starts = np.arange(max(0, len(self._ids) - 1) // context) * context
        ends = self._targets[1 : len(starts) * context + 1]
        learned = (ends != IGNORED).reshape(-1, context).any(axis=1)
        self._starts = _limited(starts[learned], limit)

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Tokens and what follows each, int64 [N, context]."""
        places = self._starts[ids][:, None] + self._offsets
        return torch.from_numpy(self._ids[places]), torch.from_numpy(self._targets[places + 1])

    def fingerprint(self) -> str:
        """Identifies tokens and targets."""
        return f"{len(self._ids)} tokens, {zlib.crc32(self._targets.data, zlib.crc32(self._ids.data)):08x}"


class Padded:
    """A sample is a document, cut at ``context`` tokens to predict; a batch is padded at its end."""

    def __init__(
        self, documents: Sequence[Tokens], context: int, limit: int | None = None, *, padding: int
    ) -> None:
        cut = [Tokens(d.ids[: context + 1], d.learned[: context + 1]) for d in documents]
        kept = np.array([i for i, d in enumerate(cut) if d.learned[1:].any()], dtype=np.int64)
        self._documents = [cut[i] for i in _limited(kept, limit)]
        self._padding = padding

    def __len__(self) -> int:
        return len(self._documents)

    def batch(self, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Tokens and what follows each, int64 [N, the longest]."""
        return padded([self._documents[i] for i in ids], self._padding)

    def fingerprint(self) -> str:
        """Identifies tokens and targets."""
        ids, targets = _joined(self._documents)
        return f"{len(self)} documents, {zlib.crc32(targets.data, zlib.crc32(ids.data)):08x}"


def padded(documents: Sequence[Tokens], padding: int) -> tuple[Tensor, Tensor]:
    """Tokens and what follows each, int64 [N, the longest, but one at least]."""
    shape = (len(documents), max(2, *(len(d.ids) for d in documents)) - 1)
    tokens, targets = torch.full(shape, padding), torch.full(shape, IGNORED)
    for row, document in enumerate(documents):
        own, size = _joined([document]), max(0, len(document.ids) - 1)
        tokens[row, :size] = torch.from_numpy(own[0][:-1])
        targets[row, :size] = torch.from_numpy(own[1][1:])
    return tokens, targets


def _joined(documents: Sequence[Tokens]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids of all, and the same as targets."""
    if not documents:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ids = np.concatenate([d.ids for d in documents])
    return ids, np.where(np.concatenate([d.learned for d in documents]), ids, IGNORED)


def _limited(chosen: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """At most so many, a fixed random choice."""
    if limit is None or limit >= len(chosen):
        return chosen
    return np.sort(np.random.default_rng(_LIMIT_SEED).permutation(chosen)[:limit])
