"""Texts with a class each, as hashed words and pairs of words."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.models.word_bag import BUCKETS, build_word_bag
from jobs.spec.job_spec import JobSpec
from jobs.spec.sections import ModelSpec
from jobs.workloads.labelled_texts import LabelledTexts, load_texts, texts_of

MOST = 512
"""Words of a text; what is longer is cut off."""

_ALONE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts without spaces: each letter counts as a word
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")


def hashed(text: str) -> NDArray[np.int64]:
    """The buckets of the words of a text, and of each two that follow each other; at least one. Bucket 0 is
    the padding. Source: Joulin et al., "Bag of Tricks for Efficient Text Classification", 2016."""
    words = [match[0] for match in itertools.islice(_WORD.finditer(text.lower()), MOST)]
    pairs = (f"{first} {second}" for first, second in itertools.pairwise(words))
    found = [zlib.crc32(word.encode(errors="replace")) % (BUCKETS - 1) + 1 for word in (*words, *pairs)]
    return np.array(found or [zlib.crc32(b"") % (BUCKETS - 1) + 1], dtype=np.int64)


def padded(texts: Iterator[NDArray[np.int64]]) -> Tensor:
    """int64 [N, words of the longest], filled with 0."""
    return nn.utils.rnn.pad_sequence([torch.from_numpy(words) for words in texts], batch_first=True)


@dataclass(frozen=True, slots=True, eq=False)
class WordRows:
    """Labelled texts, and what the model sees of them.

    Attributes:
        texts: as they are in the table.
        words: of each text, as ``hashed`` gives them.
        columns: the name of the column of the texts.
    """

    texts: LabelledTexts
    words: tuple[NDArray[np.int64], ...]
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> Tensor:
        """int64, shape [N]."""
        return self.texts.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.texts.classes

    @property
    def name(self) -> str:
        """The data set, for messages."""
        return self.texts.name

    @property
    def sizes(self) -> dict[str, int]:
        """Of the model, as they follow from the data."""
        return {"buckets": BUCKETS, "classes": len(self.classes)}

    def fingerprint(self) -> str:
        """Identifies the samples and their order."""
        return self.texts.fingerprint()

    def inputs(self, rows: Tensor) -> Tensor:
        """What the model sees of these samples, int64 [N, words]."""
        return padded(self.words[row] for row in rows.tolist())

    def read(self, table: pa.Table, root: Path) -> Tensor:
        """The same of other texts, without labels."""
        return padded(map(hashed, texts_of(table, self.columns[0], root)))

    def build_model(self, spec: ModelSpec) -> nn.Module:
        """A ``word_bag``."""
        return build_word_bag(spec, **self.sizes)


def load_words(spec: JobSpec) -> tuple[WordRows, WordRows]:
    """Training and test texts.

    Raises:
        DataError: see ``load_texts``.
    """
    columns = (str(spec.data.columns.text),)
    train, test = (WordRows(part, tuple(map(hashed, part.texts)), columns) for part in load_texts(spec))
    return train, test
