"""A small network on the words of texts."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from jobs.spec.sections import ModelSpec

BUCKETS = 1 << 16
"""Words are hashed into so many; two that share one are rare among the words that decide."""

WIDTH, LAYERS = 64, 1


class WordBag(nn.Module):
    """The mean of the vectors of a text's words."""

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(buckets, width, padding_idx=0)

    def forward(self, words: Tensor) -> Tensor:
        """int64 [N, words], 0 where a text is shorter, to [N, width]."""
        known = (words != 0).unsqueeze(-1).to(self.vectors.weight.dtype)
        return (self.vectors(words) * known).sum(1) / known.sum(1).clamp_min(1)


def build_word_bag(model: ModelSpec, *, buckets: int, classes: int) -> nn.Module:
    """``model.layers`` hidden layers of ``model.width`` with ReLU, on the mean of the words' vectors.

    Args:
        model: its section of the spec.
        buckets: of the hashed words, the padding included.
        classes: outputs.
    """
    sizes = [model.width or WIDTH] * ((model.layers or LAYERS) + 1)
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(WordBag(buckets, sizes[0]), *hidden, nn.Linear(sizes[-1], classes))
