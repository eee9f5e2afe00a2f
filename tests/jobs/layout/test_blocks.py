"""The blocks of a model are its repeated parts; checkpointed ones give the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jobs.layout.activations import checkpoint_activations
from jobs.layout.blocks import blocks_of
from jobs.models.gpt import GPT
from jobs.models.vision import build_model
from jobs.spec.language import GptShape
from jobs.spec.sections import ModelSpec
from jobs.workloads.errors import WorkloadError

SHAPE = GptShape(3, 2, 32, 16, 64)


def test_a_gpt_has_its_blocks_and_a_resnet_those_of_its_stages() -> None:
    gpt = GPT(SHAPE, 0)
    assert blocks_of(gpt) == list(gpt.blocks)
    resnet = build_model(ModelSpec(name="resnet18"), channels=3, classes=10, image_size=32, seed=0)
    assert len(blocks_of(resnet)) == 8


def test_a_model_without_blocks_is_refused_in_one_line() -> None:
    with pytest.raises(WorkloadError, match="has no blocks") as raised:
        blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("how", ["block", "selective"])
def test_checkpointed_blocks_keep_their_names_and_give_the_same_gradients(how: str) -> None:
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    plain, recomputed = GPT(SHAPE, 0), GPT(SHAPE, 0)
    checkpoint_activations(blocks_of(recomputed), how)  # type: ignore[arg-type]
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    saved = {model: saved_bytes(model, tokens) for model in (plain, recomputed)}
    assert saved[recomputed] < saved[plain]
    pairs = zip(plain.parameters(), recomputed.parameters(), strict=True)
    assert all(a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad) for a, b in pairs)


def saved_bytes(model: nn.Module, tokens: torch.Tensor) -> int:
    """What a forward pass outside of recomputation keeps for its backward pass, which then runs."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(tokens).square().mean()
    loss.backward()
    return sum(kept.values())
