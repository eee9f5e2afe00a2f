"""Small models of Hugging Face in folders, as ``save_pretrained`` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from jobs.spec.job_spec import JobSpec

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_TEXT = "the cat sat on a mat and saw dogs run over hills while rain fell all day"
WORDS = _TEXT.split()


def sentences(count: int) -> list[str]:
    """Texts of a few words each; the first 272 differ."""
    return [" ".join(WORDS[(i * 3 + j * (1 + i % 16)) % len(WORDS)] for j in range(12)) for i in range(count)]


def language_model(folder: Path, *, chat: bool = True) -> Path:
    """A Llama of two layers with its tokenizer."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        sentences(50),
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|end|>", pad_token="<|end|>")
    if chat:
        tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def image_model(folder: Path, *, classes: int = 3) -> Path:
    """A ViT for images of 16 pixels, with a processor that has its own mean and deviation."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=16, patch_size=8, num_labels=classes, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    return folder


def texts(path: Path, count: int = 60) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in sentences(count)))
    return path


def chats(path: Path, count: int = 24) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text[20:]}]}
        for text in sentences(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def spec_of(folder: Path, storage: Path, *, data: dict[str, Any], **sections: Any) -> JobSpec:
    """A job on the model of a folder; ``sections["model"]`` has further fields."""
    model = {"name": str(folder), **sections.pop("model", {})}
    fields = {"name": "hf", "storage": str(storage), "workload": "huggingface", "model": model}
    return JobSpec.from_dict({**fields, "data": {"batch_size": 4, **data}, **sections})
