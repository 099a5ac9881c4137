"""Make the golden values of this folder with Meta's own code. Run once; the results are committed.

    python3 -m venv meta-env
    meta-env/bin/pip install torch==2.13.0 fairscale==0.4.13 gguf==0.19.0 tokenizers==0.23.3
    meta-env/bin/pip install --no-deps llama-models==0.3.0
    meta-env/bin/pip install tiktoken==0.14.0 httpx==0.28.1 pillow==13.0.0 termcolor==3.3.0
    meta-env/bin/python data/golden/make_meta_logits.py data/cache/SmolLM2-135M-Instruct.Q4_1.gguf

Nothing here uses minillama. It writes

- meta_smollm2.npz: real weights (read and dequantized by the gguf package), text.txt and a greedy continuation.
  All logits would be 70 MB; they are the final hidden states times the embedding, so the states are kept, with
  some of Meta's own logits and every top id as a check.
- meta_llama31.npz: Llama 3.1's scaled RoPE, and logits of a tiny model with it, at positions beyond 8192 too.
- provenance.json: versions, sha256 and what was measured on the way.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np


HERE = Path(__file__).resolve().parent
PROMPT = "The three most important things to know about growing tomatoes are"
TINY = dict(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=256, multiple_of=32, norm_eps=1e-5
)
TINY_SEED, TINY_LENGTH, CHUNK, KEPT = 31, 9216, 512, 32


def tiny_weights(shapes: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Weights of the tiny model from its names and shapes: a seeded stream of normals in order of
    name.
    """
    rng = np.random.default_rng(TINY_SEED)
    weights = {}
    for name in sorted(shapes):
        normal = rng.standard_normal(shapes[name])
        weights[name] = (1 + 0.1 * normal if "norm" in name else 0.125 * normal).astype(np.float32)
    return weights


def tiny_tokens() -> np.ndarray:
    """The tiny model's input: TINY_LENGTH seeded ids."""
    return np.random.default_rng(TINY_SEED + 1).integers(TINY["vocab_size"], size=TINY_LENGTH)


def meta_model(weights: dict[str, np.ndarray], max_seq_len: int, **args):
    """Meta's Transformer on one CPU process, float32, holding these weights under Meta's names."""
    import torch
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    model = Transformer(ModelArgs(max_batch_size=1, max_seq_len=max_seq_len, **args)).eval()
    model.load_state_dict(
        {name: torch.tensor(weight) for name, weight in weights.items()}, strict=True
    )
    return model


def start_meta():
    """The process group that Meta's layers insist on, with one member."""
    import fairscale.nn.model_parallel.initialize as parallel
    import torch

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29531", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo")
    parallel.initialize_model_parallel(1)


def read_gguf(path) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors under Meta's names, float32, and the header's fields."""
    import gguf

    reader = gguf.GGUFReader(path)
    names = {
        "token_embd": "tok_embeddings",
        "blk": "layers",
        "attn_norm": "attention_norm",
        "output_norm": "norm",
        "attn_q": "attention.wq",
        "attn_k": "attention.wk",
        "attn_v": "attention.wv",
        "attn_output": "attention.wo",
        "ffn_gate": "feed_forward.w1",
        "ffn_down": "feed_forward.w2",
        "ffn_up": "feed_forward.w3",
    }
    weights = {}
    for tensor in reader.tensors:
        name = ".".join(names.get(part, part) for part in tensor.name.split("."))
        weights[name] = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    weights["output.weight"] = weights["tok_embeddings.weight"]  # SmolLM2 ties its head
    return weights, {key: field.contents() for key, field in reader.fields.items()}


def encode(fields: dict, text: str) -> list[int]:
    """Ids by Hugging Face's tokenizers package, as SmolLM2's tokenizer.json sets it up."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {token: id for id, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer.encode(text).ids


def run(model, ids, chunk=CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """Meta's logits (T, V) and final normalised hidden states (T, D), the sequence fed in
    chunks.
    """
    import torch

    states, logits = [], []
    hook = model.norm.register_forward_hook(
        lambda module, inputs, output: states.append(output[0].numpy())
    )
    for start in range(0, len(ids), chunk):
        logits.append(model(torch.tensor([ids[start : start + chunk]]), start)[0].numpy())
    hook.remove()
    return np.concatenate(logits), np.concatenate(states)


def greedy(model, prompt: list[int], count: int) -> list[int]:
    """Meta's `count` most likely next ids, one after another, with Meta's own cache."""
    import torch

    ids, fed = list(prompt), 0
    while len(ids) < len(prompt) + count:
        logits = model(torch.tensor([ids[fed:]]), fed)[0, -1]
        fed = len(ids)
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


def make_smollm2(path) -> dict:
    """Write meta_smollm2.npz; returns what was measured."""
    weights, fields = read_gguf(path)
    model = meta_model(
        weights,
        512,
        dim=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        vocab_size=49_152,
        multiple_of=256,
        norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=fields["llama.rope.freq_base"],
    )
    ids = encode(fields, (HERE / "text.txt").read_text(encoding="utf-8"))
    logits, states = run(model, ids)
    rebuilt = states.astype(np.float64) @ weights["tok_embeddings.weight"].astype(np.float64).T
    off = float(np.abs(rebuilt - logits).max())
    assert off < 1e-4, off
    sample = np.random.default_rng(2).integers(logits.shape[1], size=(len(ids), 64))
    prompt = encode(fields, PROMPT)
    np.savez_compressed(
        HERE / "meta_smollm2.npz", ids=np.int32(ids), hidden=states, sample_ids=np.uint16(sample),
        sample_logits=np.take_along_axis(logits, sample, 1), top1=np.int32(logits.argmax(1)),
        prompt=np.int32(prompt), greedy=np.int32(greedy(model, prompt, 64)),
    )  # fmt: skip
    return {
        "positions": len(ids),
        "largest |logit|": float(np.abs(logits).max()),
        "|hidden @ embedding in float64 - Meta's float32 logits| at most": off,
    }


def make_llama31() -> None:
    """Write meta_llama31.npz."""
    import torch
    from llama_models.llama3.model import apply_scaling, precompute_freqs_cis

    freqs = 1 / 500_000 ** (torch.arange(0, 128, 2).float() / 128)
    positions = np.array([0, 1, 2, 100, 2047, 8191, 8192, 65_536, 131_071])
    table = precompute_freqs_cis(128, 131_072, 500_000.0, True)[positions]
    scaled = dict(use_scaled_rope=True, rope_theta=500_000.0, **TINY)
    logits, _ = run(
        meta_model(tiny_weights(meta_model_shapes()), TINY_LENGTH, **scaled), tiny_tokens().tolist()
    )
    np.savez_compressed(
        HERE / "meta_llama31.npz", freqs=freqs, scaled=apply_scaling(freqs), positions=positions,
        cos=table.real, sin=table.imag, first=logits[:KEPT], last=logits[-KEPT:],
    )  # fmt: skip


def meta_model_shapes() -> dict[str, tuple]:
    """Names and shapes of the tiny model's weights."""
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    model = Transformer(ModelArgs(max_batch_size=1, max_seq_len=1, **TINY))
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def main(path) -> None:
    start_meta()
    measured = make_smollm2(path)
    make_llama31()
    packages = ("llama-models", "fairscale", "torch", "gguf", "tokenizers", "numpy")
    provenance = {
        "made by": "data/golden/make_meta_logits.py",
        "date": datetime.date.today().isoformat(),
        "gguf sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in packages},
        "text": "text.txt, written for this project",
        "prompt": PROMPT,
        "measured": measured,
        "sha256": {
            f.name: hashlib.sha256(f.read_bytes()).hexdigest()
            for f in sorted(HERE.glob("meta_*.npz"))
        },
    }
    (HERE / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(provenance, indent=2))


if __name__ == "__main__":
    main(sys.argv[1])
