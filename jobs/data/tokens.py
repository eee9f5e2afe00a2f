"""Text as tokens, and tokens as training samples."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.errors import DataError

_ENDS = ("<|endoftext|>", "</s>", "<eos>", "[SEP]", "<|end_of_text|>")

_AT_ONCE = 64
_MOST_DROPPED = 0.01
"""Share of a text's characters; a few rare signs are no reason to refuse a tokenizer."""
_NAMED = 5
_LIMIT_SEED = 0
_LARGEST = 1 << 24
"""Ids; the largest published vocabularies have less than a million."""


class Bytes:
    """A token is a byte of UTF-8; a text ends with a zero byte, which no text has in it."""

    size = 256
    """Ids are 0..size-1."""
    identity: bytes | None = None
    """Equal for two tokenizers that give the same ids; None where tokenizing costs nothing."""
    dropped = ""
    """Which characters the last ``encode`` dropped, in words; empty if none."""

    def encode(self, texts: Sequence[bytes]) -> NDArray[Any]:
        """The tokens of all texts in one row, uint8, with an end marker after each."""
        return np.frombuffer(b"".join(text + b"\0" for text in texts), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens: zero bytes become line breaks, incomplete characters U+FFFD."""
        return bytes(ids).replace(b"\0", b"\n").decode("utf-8", "replace")


class TokenizerFile:
    """A tokenizer of the library ``tokenizers``, from its JSON file.

    Raises:
        DataError: the library is not installed, or the file cannot be read. ``encode`` raises it too, where
            the text cannot be encoded, or more than 1 % of its characters would be dropped.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise DataError(
                "data.tokenizer needs the library tokenizers: pip install 'gradguard[language]', "
                "or leave it out and train on bytes"
            ) from None
        if not path.is_file():
            raise DataError(f"data.tokenizer: there is no file {path}")
        try:
            content = path.read_bytes()
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            self._tokenizer.no_truncation()  # stored in many published files: text would be left out
            self._tokenizer.no_padding()
        except Exception as error:  # the library raises nothing more particular
            reason = " ".join(str(error).split())
            raise DataError(f"data.tokenizer: {path} is no tokenizer file: {reason}") from error
        self._path = path
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.size: int = max(ids, default=-1) + 1  # more than there are tokens, where ids have gaps
        if self.size > _LARGEST:
            raise DataError(
                f"data.tokenizer: {path} has {len(ids)} tokens and the largest id is {self.size - 1}: a "
                f"model has a row for each id up to it, {_LARGEST} at most"
            )
        found = (self._tokenizer.token_to_id(end) for end in _ENDS)
        self._end = [token for token in found if token is not None][:1]
        self.dropped = ""
        self.identity: bytes | None = tokenizers.__version__.encode() + hashlib.sha256(content).digest()

    def encode(self, texts: Sequence[bytes]) -> NDArray[Any]:
        """As of ``Bytes``, but uint16 where the ids fit, else int32."""
        self.dropped = self._dropped(texts)
        dtype = np.uint16 if self.size <= 1 << 16 else np.int32
        rows: list[NDArray[Any]] = []
        for first in range(0, len(texts), _AT_ONCE):
            some = [text.decode("utf-8") for text in texts[first : first + _AT_ONCE]]
            for encoded in self._encode(some):
                rows.append(np.array(encoded.ids + self._end, dtype=dtype))
        return np.concatenate(rows) if rows else np.empty(0, dtype)

    def _dropped(self, texts: Sequence[bytes]) -> str:
        """Some tokenizers drop characters that are not in their vocabulary, without a word."""
        if not self._drops():
            return ""
        alphabet = set("".join(self._tokenizer.get_vocab(with_added_tokens=True)))
        counts: Counter[str] = Counter()
        for text in texts:
            content = text.decode("utf-8")
            counts.update({c: content.count(c) for c in set(content) if not self._pieces(c) <= alphabet})
        total = sum(len(text.decode("utf-8")) for text in texts) if counts else 0
        if not counts:
            return ""
        share, most = counts.total() / total, ", ".join(repr(c) for c, _ in counts.most_common(_NAMED))
        line = (
            f"drops {counts.total()} of {total} characters ({share:.2g}), since "
            f"they are not in its vocabulary: {most}"
        )
        if share > _MOST_DROPPED:
            advice = "take a tokenizer on bytes, or one with an unknown token"
            raise DataError(f"data.tokenizer: {self._path} {line}: {advice}")
        return line

    def _drops(self) -> bool:
        """Whether it is BPE without an unknown token and without bytes to fall back on."""
        model = json.loads(self._tokenizer.to_str())["model"]
        bytes_known = model.get("byte_fallback") and "<0x00>" in model["vocab"]
        return model["type"] == "BPE" and not (model.get("unk_token") or bytes_known)

    def _pieces(self, character: str) -> set[str]:
        """What becomes of one character before the vocabulary is asked."""
        normalizer, splitter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        text = normalizer.normalize_str(character) if normalizer else character
        return set("".join(piece for piece, _ in splitter.pre_tokenize_str(text)) if splitter else text)

    def _encode(self, texts: list[str]) -> Any:
        try:
            return self._tokenizer.encode_batch(texts, add_special_tokens=False)
        except Exception as error:  # the library raises nothing more particular
            reason = " ".join(str(error).split())
            raise DataError(
                f"data.tokenizer: {self._path} cannot encode this text: {reason}: add an unknown token to "
                "its vocabulary, or take a tokenizer on bytes"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are omitted."""
        return str(self._tokenizer.decode(list(ids)))


Tokenizer = Bytes | TokenizerFile
"""Text to token ids and back."""


def make_tokenizer(path: str | None) -> Tokenizer:
    """That of the file, or bytes."""
    return Bytes() if path is None else TokenizerFile(Path(path).expanduser())


class Windows:
    """Tokens cut into samples: sample i begins at token ``i * context`` and has ``context + 1`` tokens.

    So each token but the first is predicted once.

    Args:
        tokens: one row.
        context: tokens that are predicted in a sample.
        limit: at most this many samples, a fixed random choice.
    """

    def __init__(self, tokens: NDArray[Any], context: int, limit: int | None = None) -> None:
        self._tokens = tokens
        self._offsets = np.arange(context + 1)
        starts = np.arange(max(0, len(tokens) - 1) // context) * context
        if limit is not None and limit < len(starts):
            starts = np.sort(np.random.default_rng(_LIMIT_SEED).permutation(starts)[:limit])
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def batch(self, ids: NDArray[np.int64]) -> Tensor:
        """The tokens of samples, int64 [N, context + 1]."""
        places = self._starts[ids][:, None] + self._offsets
        return torch.from_numpy(self._tokens[places].astype(np.int64))
