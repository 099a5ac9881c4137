"""Scaling: from 8B to 405B, on paper first.

Written by notebooks/17_scaling.ipynb: edit it there.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil, prod

from minillama.checkpoints.meta import cut_along
from minillama.config import LlamaConfig
from minillama.generation import PREFILL_CHUNK


@cache
def tensors(cfg: LlamaConfig) -> dict[str, tuple[int, ...]]:
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


def in_eight_bits(cfg: LlamaConfig, name: str) -> bool:
    """Whether Meta's FP8 model has that weight in 8 bits: feed-forward layers, but for the first
    and last block's.
    """
    return ".feed_forward." in name and int(name.split(".")[1]) not in (0, cfg.n_layers - 1)


def stored_bytes(cfg: LlamaConfig, name: str, shape: tuple[int, ...], form: str) -> int:
    """Bytes of a tensor, or of a rank's piece of it, as float32, bfloat16, fp8, int8 or int4."""
    numbers, matrix = prod(shape), name.startswith("blocks.") and len(shape) == 2
    head = name == ("embedding.weight" if cfg.tied_embeddings else "head.weight")
    if form == "float32":
        return 4 * numbers
    if form == "int4" and matrix:
        return numbers // 2 + 4 * (numbers // 32)
    if form in ("int8", "int4") and (matrix or head):
        return numbers + 2 * shape[0]
    if form == "fp8" and in_eight_bits(cfg, name):
        return numbers + 4 * shape[0]
    return 2 * numbers


@dataclass(frozen=True)
class Layout:
    """How GPUs share the work: tensor ranks cut each matrix, stages share the layers, copies share
    the rows.
    """

    tensor: int = 1
    pipeline: int = 1
    copies: int = 1


def stages(n_layers: int, pipeline: int) -> list[range]:
    """The layers of each stage. What does not divide goes to the middle: the ends have embedding
    and head besides.
    """
    least, extra = divmod(n_layers, pipeline)
    order = [*range(1, pipeline - 1), 0, pipeline - 1][:extra]  # who gets one more
    counts = [least + (stage in order) for stage in range(pipeline)]
    return [range(sum(counts[:stage]), sum(counts[: stage + 1])) for stage in range(pipeline)]


def cache_bytes(
    cfg: LlamaConfig, rows: int, tokens: int, layout=Layout(), stage=0, number=2
) -> int:
    """Bytes of a rank's keys and values: rows x tokens slots, its layers, its kv heads; number:
    bytes of each.
    """
    layers = len(stages(cfg.n_layers, layout.pipeline)[stage])
    heads = max(cfg.n_kv_heads // layout.tensor, 1)
    return 2 * layers * rows * heads * tokens * cfg.head_dim * number


def pass_bytes(cfg: LlamaConfig, rows: int, new: int, seen: int, tensor=1, number=2) -> int:
    """Peak of the activations while rows x new tokens go through the blocks and look at `seen`
    (fused attention).
    """
    ffn = cfg.ffn_dim // tensor
    vectors = rows * new * number * (3 * cfg.dim + max(3 * ffn, ffn + cfg.dim))
    mask = seen if seen > new else 0  # fused attention of a whole text needs no table
    return vectors + new * (4 * cfg.head_dim + mask + 8)


def saved_bytes(cfg: LlamaConfig, tensor=1, number=2) -> int:
    """What a block keeps of each token for the backward pass, in bytes on each of `tensor` ranks
    (fused attention).
    """
    kv, heads = max(cfg.n_kv_heads // tensor, 1), cfg.n_heads // tensor
    norms = 2 * (4 * cfg.dim + 4 + 2 * number * cfg.dim)  # every rank has the whole stream
    return (
        norms
        + number * ((3 * heads + 2 * kv) * cfg.head_dim + 4 * cfg.ffn_dim // tensor)
        + 4 * heads
    )


@dataclass(frozen=True)
class Accelerator:
    """A data sheet: bytes of memory, bytes/s of it, dense operations/s in bf16 and fp8, bytes/s one
    way of a link.
    """

    memory: float
    bandwidth: float
    bf16: float
    fp8: float
    link: float
    source: str


ACCELERATORS = {
    "a100-80gb": Accelerator(
        80e9, 2.039e12, 312e12, 312e12, 300e9, "NVIDIA A100 data sheet, 80GB SXM; it has no fp8"
    ),
    "h100-80gb": Accelerator(
        80e9, 3.35e12, 989e12, 1979e12, 450e9, "NVIDIA H100 data sheet, SXM, without sparsity"
    ),
    "h200-141gb": Accelerator(
        141e9, 4.8e12, 989e12, 1979e12, 450e9, "NVIDIA H200 data sheet, SXM, without sparsity"
    ),
    "b200-180gb": Accelerator(
        180e9, 8e12, 2250e12, 4500e12, 900e9, "NVIDIA DGX B200 data sheet / 8, without sparsity"
    ),
    "mi300x-192gb": Accelerator(
        192e9, 5.3e12, 1307e12, 2615e12, 448e9, "AMD MI300X data sheet, without sparsity"
    ),
    "l40s-48gb": Accelerator(
        48e9, 0.864e12, 362e12, 733e12, 32e9, "NVIDIA L40S data sheet; PCIe 4"
    ),
}
USABLE = 0.9  # share of a card's memory that is planned with; the rest is the runtime's
SERVER, NETWORK = 8, 50e9  # cards that share a server; bytes/s from card to card between servers
# seconds that a message takes even if it is empty, in a server and between: assumed
DELAY, FAR = 10e-6, 30e-6


def piece(cfg: LlamaConfig, name: str, ranks: int) -> tuple[int, ...]:
    """Shape of one rank's piece under tensor parallelism; kv heads fewer than ranks are kept
    several times.
    """
    shape = tensors(cfg)[name]
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


def held(cfg: LlamaConfig, layout: Layout, stage: int = 0) -> dict[str, tuple[int, ...]]:
    """What a rank of a stage holds: its layers' tensors and those of the ends, with the shapes of
    its pieces.
    """
    layers, last = stages(cfg.n_layers, layout.pipeline)[stage], stage == layout.pipeline - 1
    names = [n for n in tensors(cfg) if n.startswith("blocks.") and int(n.split(".")[1]) in layers]
    first = ["embedding.weight"] if stage == 0 or (last and cfg.tied_embeddings) else []
    names = [
        *first,
        *names,
        *[n for n in ("norm.weight", "head.weight") if last and n in tensors(cfg)],
    ]
    return {name: piece(cfg, name, layout.tensor) for name in names}


def weight_bytes(
    cfg: LlamaConfig, form: str = "bfloat16", layout: Layout = Layout(), stage: int = 0
) -> int:
    """Bytes of what a rank of a stage holds of the weights."""
    return sum(
        stored_bytes(cfg, name, shape, form) for name, shape in held(cfg, layout, stage).items()
    )


def collectives(cfg: LlamaConfig, tokens: int, number: int = 2) -> dict[str, tuple[int, int]]:
    """A forward pass under tensor parallelism: kind -> (count, bytes of all their whole
    tensors).
    """
    sums, each = 2 * cfg.n_layers + 1, tokens * number
    return {"all_reduce": (sums, sums * each * cfg.dim), "all_gather": (1, each * cfg.vocab_size)}


def sharded_collectives(
    cfg: LlamaConfig, number: int = 2, gradient: int = 4
) -> dict[str, tuple[int, int]]:
    """A step under FSDP, a group for each block and one for the ends: kind -> (count, bytes of
    whole tensors).
    """
    L, everything = cfg.n_layers, sum(prod(shape) for shape in tensors(cfg).values())
    blocks = sum(prod(shape) for name, shape in tensors(cfg).items() if name.startswith("blocks."))
    gathered = (2 * L + 1, (blocks + everything) * number)
    return {"all_gather": gathered, "reduce_scatter": (L + 1, everything * gradient)}


@dataclass(frozen=True)
class Job:
    """What is asked for: rows together, tokens in each, the weights' form; training, with or
    without recomputing.
    """

    rows: int = 1
    context: int = 8192
    form: str = "bfloat16"
    train: bool = False
    activation_checkpointing: bool = True


def memory(cfg: LlamaConfig, layout: Layout, job: Job, stage: int = 0) -> dict[str, float]:
    """Bytes of a rank of a stage, by part."""
    if job.train:
        return training_memory(cfg, layout, job, stage)
    rows, new = ceil(job.rows / layout.copies), min(PREFILL_CHUNK, job.context)
    return {
        "weights": weight_bytes(cfg, job.form, layout, stage),
        "cache": cache_bytes(cfg, rows, job.context, layout, stage),
        "activations": pass_bytes(
            cfg, ceil(rows / layout.pipeline), new, job.context, layout.tensor
        ),
    }


def training_memory(cfg: LlamaConfig, layout: Layout, job: Job, stage: int) -> dict[str, float]:
    """The same for a training step of chapter 13's kind, with FSDP over the copies."""
    rows = ceil(job.rows / layout.copies)
    everything = sum(map(prod, held(cfg, layout, stage).values()))
    layers, share = len(stages(cfg.n_layers, layout.pipeline)[stage]), everything / layout.copies
    block = sum(
        prod(piece(cfg, n, layout.tensor)) for n in tensors(cfg) if n.startswith("blocks.0.")
    )
    ends = everything - layers * block
    under_way = min(layout.pipeline - stage, rows) * job.context  # tokens
    whole = saved_bytes(cfg, layout.tensor)
    kept = (
        layers * 2 * cfg.dim * under_way + whole * job.context
        if job.activation_checkpointing
        else layers * whole * under_way
    )
    if stage == layout.pipeline - 1:
        kept += 4 * job.context * cfg.vocab_size // layout.tensor  # of the loss
    state = {"weights": 4 * share, "gradients": 4 * share, "optimizer": 8 * share}
    return state | {"gathered": 2 * (2 * block + ends) * (layout.copies > 1), "activations": kept}


def fullest(cfg: LlamaConfig, layout: Layout, job: Job) -> dict[str, float]:
    """The parts of the fullest rank."""
    each = [memory(cfg, layout, job, stage) for stage in range(layout.pipeline)]
    return max(each, key=lambda parts: sum(parts.values()))


def obstacle(cfg: LlamaConfig, gpu: Accelerator, layout: Layout, job: Job) -> str | None:
    """Why a layout cannot do the job; None if it can."""
    if layout.pipeline > cfg.n_layers:
        return f"{cfg.n_layers} layers are too few for {layout.pipeline} stages"
    if layout.copies > job.rows:
        return f"{layout.copies} copies would share a batch of {job.rows}"
    if reason := indivisible(cfg, layout.tensor):
        return reason
    parts = {name: size / 1e9 for name, size in fullest(cfg, layout, job).items() if size}
    if (total := sum(parts.values())) > USABLE * gpu.memory / 1e9:
        largest = ", ".join(
            f"{name} {size:.1f}" for name, size in sorted(parts.items(), key=lambda p: -p[1])[:2]
        )
        return f"{total:.1f} GB of {USABLE * gpu.memory / 1e9:.1f} ({largest})"
