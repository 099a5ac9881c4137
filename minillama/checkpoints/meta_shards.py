"""7b. Meta: a model in eight pieces.

Written by notebooks/07b_meta.ipynb: edit it there.
"""

from functools import partial

import torch

from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.tensors import StoredTensor


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
