"""A GPT: a decoder-only transformer that predicts the next token of a text.

Pre-normalised blocks (RMSNorm), rotary positions, causal attention, SwiGLU or GELU, no biases, and an
embedding that is also the last layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.spec.language import GptShape

_STD = 0.02
_ROTARY_BASE = 10_000.0


class GPT(nn.Module):
    """Logits of the token that follows each token.

    Weights begin as in Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section
    2.3: normal with deviation 0.02, and the ends of residual branches divided by the square root of their
    number.

    Args:
        shape: its size.
        seed: of the initial weights; the global random number generators stay untouched.
    """

    def __init__(self, shape: GptShape, seed: int) -> None:
        super().__init__()
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.embedding = nn.Embedding(shape.vocabulary, shape.width)
            self.dropout = nn.Dropout(0.0)
            self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
            self.norm = nn.RMSNorm(shape.width)
            self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
            self.head.weight = self.embedding.weight
            self._begin()

    def _begin(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module is not self.head:
                nn.init.normal_(module.weight, std=_STD)
        ends = [block.get_submodule(end) for block in self.blocks for end in Block.residual_ends]
        for end in ends:
            assert isinstance(end, nn.Linear)
            nn.init.normal_(end.weight, std=_STD * len(ends) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, float [N, T, vocabulary], of tokens, int64 [N, T], T at most the context."""
        turns = rotation(tokens.shape[1], self.shape.width // self.shape.heads, tokens.device)
        stream = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            stream = block(stream, turns)
        return self.head(self.norm(stream))


class Block(nn.Module):
    """Attention and an MLP, each added to the stream."""

    residual_ends = ("attention.out", "mlp.out")

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.width)
        self.mlp = Mlp(shape)
        self.dropout = nn.Dropout(0.0)

    def forward(self, stream: Tensor, turns: Tensor) -> Tensor:
        stream = stream + self.dropout(self.attention(self.attention_norm(stream), turns))
        return stream + self.dropout(self.mlp(self.mlp_norm(stream)))


class Attention(nn.Module):
    """Causal attention with rotary positions.

    With ``qk_norm`` queries and keys are normalized in each head: Dehghani et al., "Scaling Vision
    Transformers to 22 Billion Parameters" (2023), section 2.
    """

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.dropout = nn.Dropout(0.0)
        self.head_width = shape.width // shape.heads
        self.query_norm, self.key_norm = (
            nn.RMSNorm(self.head_width) if shape.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, stream: Tensor, turns: Tensor) -> Tensor:
        split = self.qkv(stream).unflatten(-1, (3, -1, self.head_width))  # tensor parallel: its own heads
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [samples, heads, length, width / heads]
        mixed = functional.scaled_dot_product_attention(
            rotated(self.query_norm(query), turns),
            rotated(self.key_norm(key), turns),
            value,
            is_causal=True,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """GPT-2's without biases, or SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020, section 2)."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False) if shape.mlp == "swiglu" else None
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.out = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        if self.gate is None:
            return self.out(functional.gelu(self.up(stream)))
        return self.out(functional.silu(self.gate(stream)) * self.up(stream))


def rotation(length: int, head_width: int, device: torch.device) -> Tensor:
    """Cosine and sine of the angle of each position and pair, float32 [2, length, head_width / 2].

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), section 3.2.2. Computed
    at each pass: it costs almost nothing, and DDP would broadcast a buffer.
    """
    pairs = torch.arange(0, head_width, 2, device=device, dtype=torch.float32)
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, _ROTARY_BASE ** (-pairs / head_width))
    return torch.stack((angles.cos(), angles.sin()))


def rotated(vectors: Tensor, turns: Tensor) -> Tensor:
    """Turns the two halves of each vector, [..., length, head_width], by the angle of its position."""
    cosine, sine = turns
    first, second = vectors.float().chunk(2, dim=-1)
    both = torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return both.type_as(vectors)
