"""13b. Scaling laws: what a larger run would give, before you pay for it.

Written by notebooks/13b_scaling_laws.ipynb: edit it there.
"""

import itertools
import math
from dataclasses import dataclass

import torch

from minillama.config import LlamaConfig
from minillama.inference.attention_backends import use_attention
from minillama.model import Llama
from minillama.training.loop import fit
from minillama.training.optimizer import Settings


@dataclass(frozen=True)
class Law:
    """The loss that a model of N weights reaches on D tokens: E + A / N**a + B / D**b, in nats per
    token.
    """

    E: float
    A: float
    a: float
    B: float
    b: float

    def __call__(self, N, D):
        return self.E + self.A / N**self.a + self.B / D**self.b

    def best(self, C):
        """(N, D) of least loss among those with 6 * N * D = C operations."""
        G = (self.a * self.A / (self.b * self.B)) ** (1 / (self.a + self.b))
        N = G * (C / 6) ** (self.b / (self.a + self.b))
        return N, C / (6 * N)


class World:
    """Facts: each pair of symbols has an answer, a third one. A few are frequent, most are rare.

    The fact of rank r is stated with probability in proportion to r**-zipf; a share of `wrong`
    of the statements has a random symbol instead of the answer.
    """

    def __init__(self, symbols: int = 128, zipf: float = 1.5, wrong: float = 0.05, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        self.symbols, self.wrong = symbols, wrong
        self.answers = torch.randint(symbols, (symbols**2,), generator=g)
        rank = torch.randperm(symbols**2, generator=g) + 1
        self.chances = rank.double() ** -zipf / (rank.double() ** -zipf).sum()

    def pairs(self, fact: torch.Tensor) -> torch.Tensor:
        """The two symbols that identify a fact: (n,) -> (n, 2)"""
        return torch.stack([fact // self.symbols, fact % self.symbols], dim=1)

    def batch(self, i: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The i-th n statements: pairs (n, 2) and their supposed answers (n,)"""
        g = torch.Generator().manual_seed(1_000_000 * seed + i)
        fact = torch.multinomial(self.chances, n, replacement=True, generator=g)
        slips = torch.rand(n, generator=g) < self.wrong
        return self.pairs(fact), torch.where(
            slips, torch.randint(self.symbols, (n,), generator=g), self.answers[fact]
        )

    def entropy(self) -> float:
        """The loss of a perfect model, in nats per statement."""
        slip = self.wrong / self.symbols  # one particular wrong answer
        right = 1 - self.wrong + slip
        return -right * math.log(right) - (self.symbols - 1) * slip * math.log(slip)

    def loss(self, model: Llama) -> float:
        """The model's mean loss over all facts, weighted by probability: exact, not sampled."""
        with torch.no_grad():
            log_p = model(self.pairs(torch.arange(self.symbols**2)))[:, 1].log_softmax(-1).double()
        known = log_p.gather(1, self.answers[:, None])[:, 0]
        return (
            -(self.chances * ((1 - self.wrong) * known + self.wrong * log_p.mean(1))).sum().item()
        )


def sized(dim: int, n_layers: int = 2) -> LlamaConfig:
    """A Llama of that width and depth for the symbols of a World, with heads of 16 numbers."""
    return LlamaConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=dim // 16,
        n_kv_heads=max(1, dim // 32),
        head_dim=16,
        ffn_dim=dim * 11 // 4,
        vocab_size=128,
        tied_embeddings=True,
    )


def count(cfg: LlamaConfig) -> tuple[int, int]:
    """Parameters (in blocks and last norm, in embedding and head)."""
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in Llama(cfg).named_parameters()}
    table = sum(size for name, size in sizes.items() if name.startswith(("embedding", "head")))
    return sum(sizes.values()) - table, table


BATCH_SIZE = 256  # facts a step, two tokens each


def answer_loss(model: Llama, batch) -> torch.Tensor:
    """Mean cross-entropy at the second symbol of each pair, where the answer is predicted."""
    pairs, answers = batch
    return torch.nn.functional.cross_entropy(model(pairs)[:, 1], answers)


def measure(world: World, dim: int, steps: int, seed: int = 0, progress=False) -> dict:
    """Train a model of that width, every statement seen once: its weights N, tokens D, loss, and
    intermediate losses.
    """
    cfg = sized(dim)
    settings = Settings(
        steps=steps,
        peak_lr=0.32 / dim,
        warmup=steps // 10,
        weight_decay=0.0,
        seed=seed,
        eval_every=max(1, steps // 10),
    )
    model = use_attention(Llama.from_scratch(cfg, seed), "sdpa")
    rows = fit(
        model,
        answer_loss,
        lambda i: world.batch(i, BATCH_SIZE, seed),
        settings,
        validate=world.loss,
        progress=progress,
    )
    asked = [row for row in rows if row["validation_loss"]]
    curve = [
        [2 * BATCH_SIZE * (row["step"] + 1), round(row["validation_loss"], 4)] for row in asked
    ]
    N, table = count(cfg)
    return dict(
        dim=dim,
        seed=seed,
        N=N,
        table=table,
        D=2 * BATCH_SIZE * steps,
        loss=curve[-1][1],
        curve=curve,
    )


def descend(badness, start: torch.Tensor, steps: int = 500) -> torch.Tensor:
    """The parameters that minimise badness, starting from start, after at most that many steps."""
    p = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([p], max_iter=steps, tolerance_grad=1e-12, tolerance_change=1e-14,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = badness(p) * 1e4
        value.backward()
        return value

    optimizer.step(closure)
    return p.detach()


def fit_law(N, D, loss, irreducible: bool = True, delta: float = 1e-3) -> Law:
    """The law closest to measured losses (n,), by the Huber loss of the differences of logarithms.

    irreducible: False leaves E out. delta: where the Huber loss turns from squares to lines.
    """
    n, d, y = (torch.as_tensor(values, dtype=torch.float64).log() for values in (N, D, loss))
    # subtle: centred, or the constants and the exponents pull at each other
    n0, d0 = n.mean(), d.mean()

    def predicted(p):
        terms = [p[1] - p[2].exp() * (n - n0), p[3] - p[4].exp() * (d - d0)]
        return torch.logsumexp(
            torch.stack([p[0].expand_as(n), *terms] if irreducible else terms), dim=0
        )

    def badness(p):
        return torch.nn.functional.huber_loss(predicted(p), y, delta=delta)

    lowest = y.min().item()
    starts = itertools.product(
        (lowest - 2, lowest - 0.2), (lowest - 1,), (-1.5, 0.0), (lowest - 1,), (-1.5, 0.0)
    )
    found = [
        descend(badness, torch.tensor(start, dtype=torch.float64), steps=40) for start in starts
    ]
    e, A, a, B, b = descend(badness, min(found, key=lambda p: badness(p).item()))
    a, b = a.exp(), b.exp()
    E = e.exp().item() if irreducible else 0.0
    return Law(E, (A + a * n0).exp().item(), a.item(), (B + b * d0).exp().item(), b.item())
