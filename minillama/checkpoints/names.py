"""Checkpoints: one model, several file formats, equal logits.

Written by notebooks/07_checkpoints.ipynb: edit it there.
"""

import re

from minillama.checkpoints.files import CheckpointError


NAMES = (  # minillama, Meta, Hugging Face, GGUF; N is the number of the block
    ("embedding", "tok_embeddings", "model.embed_tokens", "token_embd"),
    (
        "blocks.N.attention_norm",
        "layers.N.attention_norm",
        "model.layers.N.input_layernorm",
        "blk.N.attn_norm",
    ),
    (
        "blocks.N.attention.wq",
        "layers.N.attention.wq",
        "model.layers.N.self_attn.q_proj",
        "blk.N.attn_q",
    ),
    (
        "blocks.N.attention.wk",
        "layers.N.attention.wk",
        "model.layers.N.self_attn.k_proj",
        "blk.N.attn_k",
    ),
    (
        "blocks.N.attention.wv",
        "layers.N.attention.wv",
        "model.layers.N.self_attn.v_proj",
        "blk.N.attn_v",
    ),
    (
        "blocks.N.attention.wo",
        "layers.N.attention.wo",
        "model.layers.N.self_attn.o_proj",
        "blk.N.attn_output",
    ),
    (
        "blocks.N.ffn_norm",
        "layers.N.ffn_norm",
        "model.layers.N.post_attention_layernorm",
        "blk.N.ffn_norm",
    ),
    (
        "blocks.N.feed_forward.gate",
        "layers.N.feed_forward.w1",
        "model.layers.N.mlp.gate_proj",
        "blk.N.ffn_gate",
    ),
    (
        "blocks.N.feed_forward.up",
        "layers.N.feed_forward.w3",
        "model.layers.N.mlp.up_proj",
        "blk.N.ffn_up",
    ),
    (
        "blocks.N.feed_forward.down",
        "layers.N.feed_forward.w2",
        "model.layers.N.mlp.down_proj",
        "blk.N.ffn_down",
    ),
    ("norm", "norm", "model.norm", "output_norm"),
    ("head", "output", "lm_head", "output"),
)
META, HUGGING_FACE, GGUF = (
    {names[i] + ".weight": names[0] + ".weight" for names in NAMES} for i in (1, 2, 3)
)


def rename(name: str, table: dict[str, str]) -> str:
    """minillama's name of a tensor; CheckpointError if the format's table does not list it."""
    number = re.search(r"(?<=\.)(0|[1-9][0-9]{0,5})(?=\.)", name)
    pattern = name if number is None else name[: number.start()] + "N" + name[number.end() :]
    if pattern not in table or ".N." in name:
        raise CheckpointError(f"tensor {name!r} is not part of a Llama")
    return table[pattern] if number is None else table[pattern].replace("N", number[0])


SIZES = (  # LlamaConfig, Hugging Face, GGUF
    ("dim", "hidden_size", "llama.embedding_length"),
    ("n_layers", "num_hidden_layers", "llama.block_count"),
    ("n_heads", "num_attention_heads", "llama.attention.head_count"),
    ("n_kv_heads", "num_key_value_heads", "llama.attention.head_count_kv"),
    ("head_dim", "head_dim", "llama.attention.key_length"),
    ("ffn_dim", "intermediate_size", "llama.feed_forward_length"),
    ("vocab_size", "vocab_size", "llama.vocab_size"),
    ("norm_eps", "rms_norm_eps", "llama.attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope_theta", "llama.rope.freq_base"),
    ("max_seq_len", "max_position_embeddings", "llama.context_length"),
)


def sizes(column: int, values: dict, defaults: dict) -> dict:
    """LlamaConfig's sizes from a format's names (1 Hugging Face, 2 GGUF); KeyError for one that is
    missing.
    """
    names = {row[0]: row[column] for row in SIZES}
    values = defaults | {key: value for key, value in values.items() if value is not None}
    values.setdefault(names["n_kv_heads"], values[names["n_heads"]])
    if names["head_dim"] not in values:
        values[names["head_dim"]] = values[names["dim"]] // values[names["n_heads"]]
    return {ours: values[theirs] for ours, theirs in names.items()}
