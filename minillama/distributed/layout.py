"""Scaling: from 8B to 405B, on paper first.

Written by notebooks/17_scaling.ipynb: edit it there.
"""

from dataclasses import dataclass
from functools import cache
from math import prod

from minillama.checkpoints.meta_shards import cut_along
from minillama.config import LlamaConfig


@cache
def weight_shapes(cfg: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of the model's state_dict; a tied head is not
    there twice.
    """
    D, q, kv = cfg.dim, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    block = {
        "attention_norm": (D,),
        "attention.wq": (q, D),
        "attention.wk": (kv, D),
        "attention.wv": (kv, D),
        "attention.wo": (D, q),
        "ffn_norm": (D,),
        "feed_forward.gate": (cfg.ffn_dim, D),
        "feed_forward.up": (cfg.ffn_dim, D),
        "feed_forward.down": (D, cfg.ffn_dim),
    }
    found = {"embedding.weight": (cfg.vocab_size, D)}
    for layer in range(cfg.n_layers):
        found |= {f"blocks.{layer}.{name}.weight": shape for name, shape in block.items()}
    found["norm.weight"] = (D,)
    return found if cfg.tied_embeddings else found | {"head.weight": (cfg.vocab_size, D)}


@dataclass(frozen=True)
class Layout:
    """How GPUs share the work: tensor ranks shard each matrix, pipeline stages share the layers,
    copies share the rows.
    """

    tensor: int = 1
    pipeline: int = 1
    copies: int = 1


def stages(n_layers: int, pipeline: int) -> list[range]:
    """The layers of each stage. What does not divide goes to the middle: the ends have embedding
    and head besides.
    """
    least, extra = divmod(n_layers, pipeline)
    order = [*range(1, pipeline - 1), 0, pipeline - 1][:extra]  # stages with one more layer
    counts = [least + (stage in order) for stage in range(pipeline)]
    return [range(sum(counts[:stage]), sum(counts[: stage + 1])) for stage in range(pipeline)]


def shard_shape(cfg: LlamaConfig, name: str, ranks: int) -> tuple[int, ...]:
    """Shape of one rank's shard under tensor parallelism; kv heads fewer than ranks are
    replicated.
    """
    shape = weight_shapes(cfg)[name]
    if name.endswith(("wk.weight", "wv.weight")):
        return max(cfg.n_kv_heads // ranks, 1) * cfg.head_dim, cfg.dim
    along = cut_along(name, shape, cfg.dim)
    return tuple(size // ranks if place == along else size for place, size in enumerate(shape))


def indivisible(cfg: LlamaConfig, ranks: int) -> str | None:
    """Why the model cannot be cut for that many ranks; None if it can."""
    counts = {
        "heads": cfg.n_heads,
        "features of the feed-forward layer": cfg.ffn_dim,
        "tokens": cfg.vocab_size,
    }
    for what, count in counts.items():
        if count % ranks:
            return f"{count:,} {what} do not divide among {ranks} ranks"
    if cfg.n_kv_heads % ranks and ranks % cfg.n_kv_heads:
        return (
            f"{cfg.n_kv_heads} kv heads do not divide among {ranks} ranks, nor the ranks among them"
        )


def shard_shapes(cfg: LlamaConfig, layout: Layout, stage: int = 0) -> dict[str, tuple[int, ...]]:
    """Shapes of all shards that a rank of a stage holds: of its layers, and of embedding and head
    at the ends.
    """
    layers, last = stages(cfg.n_layers, layout.pipeline)[stage], stage == layout.pipeline - 1
    names = [
        n for n in weight_shapes(cfg) if n.startswith("blocks.") and int(n.split(".")[1]) in layers
    ]
    first = ["embedding.weight"] if stage == 0 or (last and cfg.tied_embeddings) else []
    names = [
        *first,
        *names,
        *[n for n in ("norm.weight", "head.weight") if last and n in weight_shapes(cfg)],
    ]
    return {name: shard_shape(cfg, name, layout.tensor) for name in names}


def collectives(cfg: LlamaConfig, tokens: int, itemsize: int = 2) -> dict[str, tuple[int, int]]:
    """A forward pass under tensor parallelism: kind -> (count, bytes of all their whole
    tensors).
    """
    sums, each = 2 * cfg.n_layers + 1, tokens * itemsize
    return {"all_reduce": (sums, sums * each * cfg.dim), "all_gather": (1, each * cfg.vocab_size)}


def sharded_collectives(
    cfg: LlamaConfig, itemsize: int = 2, gradient: int = 4
) -> dict[str, tuple[int, int]]:
    """A step under FSDP, a group for each block and one for the ends: kind -> (count, bytes of
    whole tensors).
    """
    L, everything = cfg.n_layers, sum(prod(shape) for shape in weight_shapes(cfg).values())
    blocks = sum(
        prod(shape) for name, shape in weight_shapes(cfg).items() if name.startswith("blocks.")
    )
    gathered = (2 * L + 1, (blocks + everything) * itemsize)
    return {"all_gather": gathered, "reduce_scatter": (L + 1, everything * gradient)}
