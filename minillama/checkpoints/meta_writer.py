"""7b. Meta: a model in eight pieces.

Written by notebooks/07b_meta.ipynb: edit it there.
"""

import base64
import json

import torch

from minillama.checkpoints.atomic import new_folder
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.meta_shards import cut_along
from minillama.checkpoints.names import META, rename
from minillama.config import LlamaConfig, RopeScaling
from minillama.model import Llama
from minillama.tokenizer import Tokenizer


def params_of(cfg: LlamaConfig, ranks: int) -> dict:
    """What params.json says about a model; CheckpointError for one that Meta's code cannot build,
    or cut like this.
    """
    scaling, kv = cfg.rope_scaling, max(ranks, cfg.n_kv_heads)
    if cfg.head_dim * cfg.n_heads != cfg.dim or scaling and scaling != RopeScaling(scaling.factor):
        raise CheckpointError(
            "Meta's layout cannot say this head_dim or rope_scaling; a Hugging Face folder can"
        )
    if ranks < 1 or any(n % ranks for n in (cfg.dim, cfg.n_heads, cfg.ffn_dim, cfg.vocab_size, kv)):
        raise CheckpointError(f"the sizes of this model do not divide into {ranks} equal parts")
    if kv % cfg.n_kv_heads:
        raise CheckpointError(
            f"{cfg.n_kv_heads} kv heads cannot be stored equally often in {ranks} files"
        )
    names = ("dim", "n_layers", "n_heads", "vocab_size", "norm_eps", "rope_theta")
    params = {name: getattr(cfg, name) for name in names} | {
        "n_kv_heads": kv,
        "multiple_of": cfg.ffn_dim,
    }
    params["ffn_dim_multiplier"] = min(1.0, cfg.ffn_dim / int(2 * 4 * cfg.dim / 3))
    params["use_scaled_rope"] = scaling is not None
    return params | ({"rope_scaling_factor": scaling.factor} if scaling else {})


def piece_of(
    name: str, weight: torch.Tensor, rank: int, ranks: int, cfg: LlamaConfig
) -> torch.Tensor:
    """What one rank stores of a tensor, in a storage of its own size."""
    along = cut_along(name, tuple(weight.shape), cfg.dim)
    if name.endswith(("wk.weight", "wv.weight")) and ranks > cfg.n_kv_heads:
        rank, ranks = rank * cfg.n_kv_heads // ranks, cfg.n_kv_heads
    piece = weight if along is None else weight.chunk(ranks, along)[rank]
    piece = piece.detach().cpu().contiguous()
    return piece if piece.untyped_storage().nbytes() == piece.nbytes else piece.clone()


def vocabulary(tokenizer: Tokenizer) -> str:
    """The text of Llama 3's tokenizer.model; CheckpointError for a tokenizer of another kind."""
    again = Tokenizer.llama3(tokenizer.vocab) if tokenizer.merges is None else None
    if again is None or (again.specials, again.bos_id) != (tokenizer.specials, tokenizer.bos_id):
        raise CheckpointError(
            "Meta's layout holds only Llama 3's kind of tokenizer; a Hugging Face folder holds "
            "others"
        )
    ranks = sorted(tokenizer.vocab.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks)


def save_meta(model: Llama, tokenizer: Tokenizer | None, folder, ranks: int = 1) -> None:
    """Write params.json, one consolidated.NN.pth per rank, and tokenizer.model, as Meta's code
    reads them.

    A tied head is written twice. The folder appears when all is written; an older checkpoint in it
    stays until then. CheckpointError for a model or tokenizer that this layout cannot hold, and if
    the folder cannot be written.
    """
    params, theirs = params_of(model.cfg, ranks), {ours: name for name, ours in META.items()}
    weights = dict(model.named_parameters(remove_duplicate=False))
    texts = {"params.json": json.dumps(params, indent=2) + "\n"}
    texts |= {"tokenizer.model": vocabulary(tokenizer)} if tokenizer else {}
    with new_folder(folder) as new:
        for rank in range(ranks):
            pieces = {
                n: piece_of(n, weight, rank, ranks, model.cfg) for n, weight in weights.items()
            }
            torch.save(
                {rename(n, theirs): piece for n, piece in pieces.items()},
                new / f"consolidated.{rank:02}.pth",
            )
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
