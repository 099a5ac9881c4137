"""7b. Meta: a model in eight pieces.

Written by notebooks/07b_meta.ipynb: edit it there.
"""

import base64
import json
from functools import partial
from pathlib import Path

import torch

from minillama.checkpoints.assemble import Checkpoint
from minillama.checkpoints.atomic import new_folder
from minillama.checkpoints.files import CheckpointError, RawFile, inside, read_json, reading
from minillama.checkpoints.names import META, rename
from minillama.checkpoints.pth import open_pth
from minillama.checkpoints.tensors import StoredTensor, n_bytes
from minillama.config import LlamaConfig, RopeScaling
from minillama.model import Llama
from minillama.tokenizer import Tokenizer


def cut_along(name: str, shape: tuple[int, ...], dim: int) -> int | None:
    """The dimension along which Meta cuts a tensor for several ranks; None for one that every rank
    has whole.

    name: minillama's; shape: of the tensor or of one rank's piece; dim: the width of the stream.
    """
    if "norm" in name:
        return None
    if name == "embedding.weight":
        return 0 if shape[-1] == dim else 1  # Llama 3: by tokens; before, by the vector's entries
    return 1 if name.endswith(("wo.weight", "down.weight")) else 0


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def join(name: str, pieces: list[StoredTensor], along: int | None) -> StoredTensor:
    """The tensor whose pieces lie in one file each; CheckpointError for pieces that cannot belong
    together.
    """
    shape = list(pieces[0].shape)
    if any(piece.shape != pieces[0].shape or piece.kind != pieces[0].kind for piece in pieces):
        raise CheckpointError(f"the files' pieces of {name} differ in shape or type")
    if len(pieces) == 1:
        return pieces[0]
    if along is None:
        return StoredTensor(pieces[0].shape, partial(read_equal, name, pieces))
    if len(shape) != 2:
        raise CheckpointError(
            f"{name} has shape {pieces[0].shape}, which cannot be a piece of a matrix"
        )
    shape[along] *= len(pieces)
    return StoredTensor(tuple(shape), partial(read_joined, pieces, tuple(shape), along))


def read_joined(pieces: list[StoredTensor], shape: tuple[int, ...], along: int) -> torch.Tensor:
    """The whole matrix, with no more than one piece beside it in memory."""
    whole = torch.empty(shape, dtype=DTYPES[pieces[0].kind])
    for stored, place in zip(pieces, whole.chunk(len(pieces), along), strict=True):
        place.copy_(stored.read())
    return whole


def read_equal(name: str, pieces: list[StoredTensor]) -> torch.Tensor:
    """A tensor that every rank has whole; CheckpointError if they do not have the same."""
    first = pieces[0].read()
    if not all(same_bits(first, piece.read()) for piece in pieces[1:]):
        raise CheckpointError(f"{name} is not the same in every file: do they come from one model?")
    return first


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit, NaN too."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def read_without_copies(
    name: str, stored: StoredTensor, head_dim: int, copies: int
) -> torch.Tensor:
    """Rows of wk or wv, each kv head once where the files have it `copies` times; CheckpointError
    if those differ.
    """
    heads = stored.read().view(-1, copies, head_dim, stored.shape[1])
    once = heads[:, :1]
    if not same_bits(heads, once.expand_as(heads)):
        raise CheckpointError(
            f"{name} should have each kv head {copies} times, but the copies are not equal"
        )
    return once.reshape(-1, stored.shape[1])


def kv_heads(wk: StoredTensor, head_dim: int, n_kv_heads: int, n_ranks: int) -> tuple[int, int]:
    """(kv heads of the model, how many times the files have each), from the first block's wk."""
    stored, rest = divmod(wk.shape[0], head_dim)
    if stored > n_kv_heads and stored % n_kv_heads == 0 and not rest:
        return n_kv_heads, stored // n_kv_heads
    if stored != n_kv_heads or n_ranks != stored or n_ranks == 1 or rest:
        return n_kv_heads, 1
    heads = wk.read().view(stored, -1)
    for copies in range(stored, 1, -1):
        groups = heads.view(-1, copies, heads.shape[1]) if stored % copies == 0 else None
        if groups is not None and same_bits(groups, groups[:, :1].expand_as(groups)):
            return stored // copies, copies
    return n_kv_heads, 1


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
    """params.json with all its keys; CheckpointError for unknown keys and for numbers that cannot
    be meant.
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
    """consolidated.00.pth, .01., ...; CheckpointError if there is none, or a number is missing."""
    found = sorted(path.name for path in folder.glob("consolidated.*.pth"))[:100]
    expected = [f"consolidated.{rank:02}.pth" for rank in range(max(1, len(found)))]
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(
            f"{missing[0]} is missing; the folder has {', '.join(found) or 'no such file'}"
        )
    return [inside(folder, name) for name in expected]


def is_tied(rank: dict[str, StoredTensor]) -> bool:
    """Whether a file's output has the bytes of its embedding, read a little at a time until they
    differ.
    """
    first, second = rank.get("tok_embeddings.weight"), rank.get("output.weight")
    if not (first and second) or (first.shape, first.kind) != (second.shape, second.kind):
        return False
    size, block = n_bytes(first.shape, first.kind), 2**22
    return all(
        torch.equal(first.raw(at, at + block), second.raw(at, at + block))
        for at in range(0, size, block)
    )


def open_ranks(paths: list[Path], dim: int) -> dict[str, StoredTensor]:
    """The tensors of all files together, under minillama's names, joined; no head if it repeats the
    embedding.
    """
    ranks, tensors = [open_pth(path) for path in paths], {}
    for path, rank in zip(paths, ranks, strict=True):
        if is_tied(rank):
            del rank["output.weight"]
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
