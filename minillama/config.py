"""The whole Llama: sizes, and one sentence from text to text.

Written by notebooks/00_the_whole_llama.ipynb: edit it there.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 slows the slow rotations so that 8,192 positions become 131,072 (chapter 3)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value < float("inf")
            ):
                raise ValueError(
                    f"rope_scaling.{field.name} must be a positive number, not {value!r}"
                )
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("rope_scaling.high_freq_factor must be greater than low_freq_factor")


@dataclass(frozen=True)
class LlamaConfig:
    """Every number that fixes a Llama's architecture; ValueError for one that is invalid.

    Letters used for these sizes in shapes, equations and figures of the whole series:
    B batch, T tokens (queries), S positions they may look at (keys), D dim, L n_layers, H n_heads,
    K n_kv_heads, G = H/K heads per group, W head_dim, F ffn_dim, V vocab_size.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    max_seq_len: int = 8192
    tied_embeddings: bool = False

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be a positive whole number, not {value!r}")
            if field.type is float and (
                type(value) not in (int, float) or not 0 < value < float("inf")
            ):
                raise ValueError(f"{field.name} must be a positive number, not {value!r}")
            if field.type is bool and type(value) is not bool:
                raise ValueError(f"{field.name} must be True or False, not {value!r}")
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise ValueError(
                f"rope_scaling must be a RopeScaling or None, not {self.rope_scaling!r}"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} heads cannot share {self.n_kv_heads} kv heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (RoPE rotates pairs), not {self.head_dim}")

    @classmethod
    def named(cls, name: str) -> "LlamaConfig":
        """The published size of that exact name; ValueError lists the names otherwise."""
        if name not in SIZES:
            raise ValueError(f"no size is named {name!r}; the names are {', '.join(SIZES)}")
        return cls(**SIZES[name])


LLAMA_31 = dict(
    head_dim=128, n_kv_heads=8, vocab_size=128_256, rope_scaling=RopeScaling(), max_seq_len=131_072
)
SIZES = {
    "llama-3.1-8b": dict(dim=4096, n_layers=32, n_heads=32, ffn_dim=14_336, **LLAMA_31),
    "llama-3.1-70b": dict(dim=8192, n_layers=80, n_heads=64, ffn_dim=28_672, **LLAMA_31),
    "llama-3.1-405b": dict(dim=16_384, n_layers=126, n_heads=128, ffn_dim=53_248, **LLAMA_31),
    "smollm2-135m": dict(
        dim=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, ffn_dim=1536, vocab_size=49_152,
        rope_theta=100_000.0, tied_embeddings=True,
    ),
    "debug": dict(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=192, vocab_size=512,
        rope_scaling=RopeScaling(), max_seq_len=131_072,
    ),
}  # fmt: skip
