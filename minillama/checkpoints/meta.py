"""7b. Meta: a model in eight pieces.

Written by notebooks/07b_meta.ipynb: edit it there.
"""

from functools import partial
from pathlib import Path

from minillama.checkpoints.assemble import Checkpoint
from minillama.checkpoints.files import CheckpointError, RawFile, inside, read_json, reading
from minillama.checkpoints.meta_shards import cut_along, join, kv_heads, read_without_copies
from minillama.checkpoints.names import META, rename
from minillama.checkpoints.pth import open_pth
from minillama.checkpoints.tensors import StoredTensor, same_bytes
from minillama.config import LlamaConfig, RopeScaling
from minillama.tokenizer import Tokenizer


PARAMS = {  # the keys that may be missing, and what Meta's code assumes then
    "n_kv_heads": None,
    "vocab_size": -1,
    "multiple_of": 256,
    "ffn_dim_multiplier": None,
    "norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "use_scaled_rope": False,
    "rope_scaling_factor": None,
}


def read_params(folder: Path) -> dict:
    """params.json with all its keys; CheckpointError for unknown keys and for invalid
    values.
    """
    found = {
        key: value for key, value in read_json(folder, "params.json").items() if value is not None
    }
    if unknown := sorted(found.keys() - PARAMS.keys() - {"dim", "n_layers", "n_heads"}):
        raise CheckpointError(
            f"params.json has {unknown[0]!r}, which is not known here: is this a Llama for text?"
        )
    params = PARAMS | found
    with reading("params.json"):
        params["n_kv_heads"] = params["n_kv_heads"] or params["n_heads"]
        for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of"):
            if type(params[key]) is not int or not 1 <= params[key] < 2**31:
                raise ValueError(f"{key} is {params[key]!r}")
        if (
            type(params["use_scaled_rope"]) is not bool
            or type(params["ffn_dim_multiplier"]) is bool
        ):
            raise ValueError("use_scaled_rope must be true or false, ffn_dim_multiplier a number")
        if params["dim"] % params["n_heads"]:
            raise ValueError(f"{params['n_heads']} heads do not divide a width of {params['dim']}")
    return params


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Meta's rule for the width of the feed-forward layer."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def meta_config(params: dict, vocab_size: int, n_kv_heads: int, tied: bool) -> LlamaConfig:
    """LlamaConfig from params.json and what only the tensors tell; CheckpointError."""
    with reading("params.json"):
        if params["vocab_size"] not in (-1, vocab_size):
            raise ValueError(
                f"vocab_size is {params['vocab_size']!r}, the embedding has {vocab_size} rows: is "
                f"a file missing?"
            )
        scaled, theta = params["use_scaled_rope"], params["rope_theta"]
        scaling = (
            RopeScaling(params["rope_scaling_factor"] or (32.0 if tied else 8.0))
            if scaled
            else None
        )
        context = 131_072 if scaled else 8192 if theta == 500_000 else 4096  # Llama 3.1, 3, 2
        width = ffn_width(params["dim"], params["multiple_of"], params["ffn_dim_multiplier"])
        same = {
            key: params[key] for key in ("dim", "n_layers", "n_heads", "norm_eps", "rope_theta")
        }
        return LlamaConfig(
            **same,
            n_kv_heads=n_kv_heads,
            head_dim=params["dim"] // params["n_heads"],
            ffn_dim=width,
            vocab_size=vocab_size,
            rope_scaling=scaling,
            max_seq_len=context,
            tied_embeddings=tied,
        )


def rank_files(folder: Path) -> list[Path]:
    """consolidated.00.pth, .01., ...; CheckpointError if there is none, or a rank is missing."""
    found = sorted(path.name for path in folder.glob("consolidated.*.pth"))[:100]
    expected = [f"consolidated.{rank:02}.pth" for rank in range(max(1, len(found)))]
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(
            f"{missing[0]} is missing; the folder has {', '.join(found) or 'no such file'}"
        )
    return [inside(folder, name) for name in expected]


def open_ranks(paths: list[Path], dim: int) -> dict[str, StoredTensor]:
    """The tensors of all files together, under minillama's names, joined; no head if it repeats the
    embedding.
    """
    ranks, tensors = [open_pth(path) for path in paths], {}
    for path, rank in zip(paths, ranks, strict=True):
        if same_bytes(rank.get("output.weight"), rank.get("tok_embeddings.weight")):
            del rank["output.weight"]  # the model is tied
        if wrong := sorted(rank.keys() ^ ranks[0].keys()):
            raise CheckpointError(f"{wrong[0]!r} is only in one of {paths[0].name} and {path.name}")
    for theirs in ranks[0]:
        name, pieces = rename(theirs, META), [rank[theirs] for rank in ranks]
        tensors[name] = join(name, pieces, cut_along(name, pieces[0].shape, dim))
    return tensors


def meta_tokenizer(folder: Path) -> Tokenizer | None:
    """Llama 3's tokenizer.model; None if there is none, or only Llama 2's, which is a SentencePiece
    file.
    """
    if not (folder / "tokenizer.model").exists():
        return None
    file = RawFile(inside(folder, "tokenizer.model"))
    if file.read_small(0, 1) == b"\n":
        return None
    with reading("tokenizer.model"):
        if file.size > 4_000_000:
            raise ValueError(f"it has {file.size} bytes, Llama 3's has 2,183,982")
        return Tokenizer.from_file(file.path)


def open_meta(folder: Path) -> Checkpoint:
    """Read Meta's layout: params.json, consolidated.00.pth and further ranks, tokenizer.model if it
    is there.
    """
    folder = Path(folder)
    params, paths = read_params(folder), rank_files(folder)
    tensors, head_dim = open_ranks(paths, params["dim"]), params["dim"] // params["n_heads"]
    for name in ("embedding.weight", "blocks.0.attention.wk.weight"):
        if name not in tensors or len(tensors[name].shape) != 2:
            raise CheckpointError(f"{paths[0].name} has no matrix {name}")
    kv, copies = kv_heads(
        tensors["blocks.0.attention.wk.weight"], head_dim, params["n_kv_heads"], len(paths)
    )
    for name, stored in tensors.items() if copies > 1 else ():
        if name.endswith(("wk.weight", "wv.weight")) and stored.shape[0] == copies * kv * head_dim:
            shape = (kv * head_dim, *stored.shape[1:])
            tensors[name] = StoredTensor(
                shape, partial(read_without_copies, name, stored, head_dim, copies)
            )
    cfg = meta_config(
        params, tensors["embedding.weight"].shape[0], kv, tied="head.weight" not in tensors
    )
    return Checkpoint(cfg, tensors, meta_tokenizer(folder))
