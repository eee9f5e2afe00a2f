"""Attention logits of models of transformers, fused and written out, and their heads rescaled one by one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guard import ClipConfig, GradientGuard, GuardConfig
from guard.observe.attention_logits import AttentionLogits
from guard.observe.projections import projections
from tests.guard.integrations.problem import NEVER

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback

from guard.integrations.transformers import GuardedTrainer
from tests.guard.integrations.test_transformers import arguments, run
from tests.guard.integrations.test_transformers_variants import language_rows

HEADS = 4
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARED = SIZES | {"num_key_value_heads": 2}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": HEADS, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
IMAGES = {"image_size": 16, "patch_size": 4}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "ModernBert": SIZES | {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    "GPT2": OLD | {"vocab_size": 64},
    "GPTBigCode": OLD | {"vocab_size": 64},
    "GPTNeoX": SIZES,
    "Llama": SHARED,
    "Mistral": SHARED | {"sliding_window": 4},
    "Phi3": SHARED,
    "Falcon": SIZES | {"num_kv_heads": 2, "new_decoder_architecture": True},
    "DeepseekV3": SIZES
    | LATENT
    | {"num_key_value_heads": HEADS, "first_k_dense_replace": 2, "n_routed_experts": 8},
    "ViT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS} | IMAGES,
}


OTHERS = {"Albert": SIZES | {"embedding_size": 16}, "Qwen3": SHARED | {"head_dim": 8}}
"""One layer that is called twice; normalized queries."""


def made(kind: str, attention: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**copy.deepcopy((MODELS | OTHERS)[kind]))
    config._attn_implementation = attention
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def batch(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if kind == "ViT":
        return {"pixel_values": torch.randn(2, 3, 16, 16)}
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, 9:] = 0
    return {"input_ids": torch.randint(3, 60, (2, 12)), "attention_mask": mask}


def seen(model: nn.Module, given: dict[str, Tensor]) -> AttentionLogits:
    with torch.no_grad(), AttentionLogits({id(m): name for name, m in model.named_modules()}) as logits:
        model(**given)
    assert logits.problem is None
    return logits


@pytest.mark.parametrize("kind", MODELS)
def test_fused_and_written_out_attention_show_the_same_logits_and_heads_rescale_alone(kind: str) -> None:
    found = {}
    for attention in ("eager", "sdpa"):
        model = made(kind, attention)
        logits = seen(model, batch(kind))
        found[attention] = before = logits.heads()
        assert len(before) == 2
        first = next(iter(before))
        weights = projections(model.get_submodule(first), HEADS, logits.width(first))
        assert weights is not None
        saved, factors = weights.saved(), np.array([1.0, 0.25, 0.5, 1.0])
        with torch.no_grad():
            weights.rescale(factors)
            assert seen(model, batch(kind)).heads()[first] == pytest.approx(before[first] * factors, rel=1e-5)
            weights.restore(saved)
        assert all((seen(model, batch(kind)).heads()[name] == before[name]).all() for name in before)
    for name, heads in found["eager"].items():
        assert heads == pytest.approx(found["sdpa"][name], rel=1e-5)


def guarded(model: nn.Module, tau: float) -> GradientGuard:
    """One step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6)
    guard = GradientGuard(model, optimizer, {"attention": {"action": "qk_clip", "every": 1, "tau": tau}})
    loss = lambda: model(**batch("Bert"))[0].square().mean()  # noqa: E731
    guard.backward(loss())
    guard.step(loss)
    return guard


def test_layers_that_share_their_weights_are_rescaled_once() -> None:
    model = made("Albert", "sdpa")
    (before,) = seen(model, batch("Bert")).heads().values()
    assert guarded(model, float(before.max()) / 2).totals.qk_clips == 1
    twins = made("Llama", "sdpa")
    twins.layers[1].self_attn.q_proj, twins.layers[1].self_attn.k_proj = (
        twins.layers[0].self_attn.q_proj,
        twins.layers[0].self_attn.k_proj,
    )
    norm = twins.layers[0].self_attn.q_proj.weight.norm()
    highest = [heads.max() for heads in seen(twins, batch("Bert")).heads().values()]
    assert guarded(twins, min(highest) / 2).totals.qk_clips == 1
    assert twins.layers[0].self_attn.q_proj.weight.norm() > norm / 4


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_trainer_is_watched_without_a_closure_and_left_as_it_is(tmp_path: Path, attention: str) -> None:
    states, logits = [], []

    class Noted(TrainerCallback):
        """What the guard reports."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if isinstance(trainer, GuardedTrainer) and trainer.report is not None:
                logits.append(trainer.report.attention_logit)

    for kind in (Trainer, GuardedTrainer):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=32, **OLD, attn_implementation=attention))
        watched = GuardConfig(clip=ClipConfig(max_norm=NEVER), attention={"action": "watch", "every": 2})
        given = {"guard_config": watched} if kind is GuardedTrainer else {}
        args = arguments(tmp_path / kind.__name__, max_steps=5, gradient_accumulation_steps=2)
        trainer = kind(model, args, train_dataset=language_rows(), callbacks=[Noted()], **given)
        run(trainer)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    assert [logit is not None for logit in logits] == [True, False, True, False, True]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_queries_that_are_normalized_or_frozen_are_left_alone_in_one_line(caplog: Any) -> None:
    normed, frozen = made("Qwen3", "sdpa"), made("Llama", "sdpa")
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_("mlp" in name)
    for model in (normed, frozen):
        before = {name: p.clone() for name, p in model.named_parameters() if "self_attn" in name}
        lowest = min(heads.max() for heads in seen(model, batch("Bert")).heads().values())
        assert guarded(model, float(lowest) / 2).totals.qk_clips == 0
        now = dict(model.named_parameters())
        assert all(torch.allclose(now[name], p, rtol=0, atol=1e-5) for name, p in before.items())
    lines = [record.getMessage() for record in caplog.records if "logit" in record.getMessage()]
    assert len(lines) == 2
    assert "lower no logit: layers.0.self_attn, layers.1.self_attn: its queries" in lines[0]
    assert "without weights that could be rescaled: layers.0.self_attn" in lines[1]
