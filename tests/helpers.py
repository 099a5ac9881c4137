"""Tiny random models: transformers writes them, our loader reads them back."""

import json
import re
import time

import pytest
import torch
import transformers

from minillama import CheckpointError
from minillama.hub import load


BASE = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, vocab_size=128, max_position_embeddings=16_384, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
SCALED = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def tiny_hugging_face(seed=0, rope=PLAIN, **changes) -> transformers.LlamaForCausalLM:
    """transformers' Llama with random weights that leave no part without effect (norm weights are not 1)."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**BASE | changes, rope_parameters=dict(rope)))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        mean, std = (1.0, 0.2) if "norm" in name else (0.0, 0.15)
        torch.nn.init.normal_(weight, mean, std, generator=generator)
    return model.eval()


def tiny_pair(folder, **changes):
    """(transformers' model, ours): ours read from the folder in which transformers saved it."""
    reference = tiny_hugging_face(**changes)
    reference.save_pretrained(folder)
    return reference, load(folder)[0]


def edit_json(path, change) -> None:
    """Rewrite a JSON file after `change` has altered its object in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def random_ids(count: int, seed=0, vocab_size=BASE["vocab_size"]) -> torch.Tensor:
    """(1, count) seeded ids."""
    return torch.randint(vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))


def refused(path, match="") -> None:
    """load raises one line that begins with this file's name, within a second."""
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert time.process_time() - start < 1
    file, _, message = str(caught.value).partition(": ")
    assert file == str(path) and re.search(match, message) and "\n" not in message
