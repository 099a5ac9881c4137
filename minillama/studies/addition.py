"""13c. Worked steps: what a model can write but not compute at once.

Written by notebooks/13c_worked_steps.ipynb: edit it there.
"""

import random
import zlib

import torch

from minillama.config import LlamaConfig
from minillama.generation import generate_batch
from minillama.inference.attention_backends import use_attention
from minillama.model import Llama
from minillama.training.loop import fit
from minillama.training.loss import IGNORE, token_loss
from minillama.training.optimizer import Settings
from minillama.training.packing import packed_logits


ALPHABET = "0123456789+=,\n"  # one token each; a newline ends a problem
END = ALPHABET.index("\n")


def encode(text: str) -> list[int]:
    """One id per character; ValueError for a character not in ALPHABET."""
    return [ALPHABET.index(character) for character in text]


def decode(ids) -> str:
    """The text of ids."""
    return "".join(ALPHABET[id] for id in ids)


def question(a: int, b: int) -> str:
    """The prompt: "57+68="."""
    return f"{a}+{b}="


def plain(a: int, b: int) -> str:
    """The sum as we write it: "125"."""
    return str(a + b)


def backwards(a: int, b: int) -> str:
    """The sum from the right: "521"."""
    return str(a + b)[::-1]


def steps(a: int, b: int) -> str:
    """Every column from the right with its carry, then the sum: "7+8+0=15,5+6+1=12,125"."""
    said, carry, length = "", 0, max(len(str(a)), len(str(b)))
    for x, y in zip(f"{a:0{length}}"[::-1], f"{b:0{length}}"[::-1], strict=True):
        total = int(x) + int(y) + carry
        said += f"{x}+{y}+{carry}={total:02},"
        carry = total // 10
    return said + str(a + b)


def answer(target, text: str) -> str:
    """The sum at the end of a text in the form of target, most significant digit first."""
    return text[::-1] if target is backwards else text.split(",")[-1]


def held_back(a: int, b: int) -> bool:
    """Whether a problem is held out for testing: one in ten, by a checksum of its question."""
    return zlib.crc32(question(a, b).encode()) % 10 == 0


def problem(rng: random.Random, length: int, test: bool = False) -> tuple[int, int]:
    """Two random numbers of that many digits: held out if test, else one of the others."""
    low = 0 if length == 1 else 10 ** (length - 1)
    while True:
        a, b = rng.randrange(low, 10**length), rng.randrange(low, 10**length)
        if held_back(a, b) == test:
            return a, b


def tests(length: int, count: int) -> list[tuple[int, int]]:
    """Different held-out problems; all of them if there are fewer than count."""
    if length == 1:
        return [(a, b) for a in range(10) for b in range(10) if held_back(a, b)][:count]
    rng, found = random.Random(f"test {length}"), {}
    while len(found) < count:
        found[problem(rng, length, test=True)] = True
    return list(found)


CONFIG = LlamaConfig(
    dim=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=176, vocab_size=len(ALPHABET),
    tied_embeddings=True, max_seq_len=256,
)  # fmt: skip
LENGTHS = range(1, 4)  # digits of the numbers to learn from
BATCH_SIZE, ROW_LENGTH = 8, 128  # 1,024 tokens a step


class Problems:
    """Batches of problems, whole ones one after another in rows, never the same twice."""

    def __init__(
        self,
        target,
        lengths=LENGTHS,
        mask_question: bool = True,
        seed: int = 0,
        rows: int = BATCH_SIZE,
    ):
        self.target, self.lengths, self.mask_question = target, list(lengths), mask_question
        self.seed, self.rows, self.solved = seed, rows, 0

    def __call__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The i-th batch: tokens, targets and documents, each (B, T); masked targets are -100."""
        rng = random.Random(f"{self.seed} {i}")
        return tuple(
            torch.tensor(part)
            for part in zip(*(self.row(rng) for _ in range(self.rows)), strict=True)
        )

    def row(self, rng: random.Random) -> tuple[list[int], list[int], list[int]]:
        tokens, targets, documents = [], [], []
        while True:
            a, b = problem(rng, rng.choice(self.lengths))
            asked, said = encode(question(a, b)), encode(self.target(a, b) + "\n")
            ids = asked + said
            if len(tokens) + len(ids) - 1 > ROW_LENGTH:
                break
            wanted = ids[1:]
            if self.mask_question:
                wanted[: len(asked) - 1] = [IGNORE] * (len(asked) - 1)
            documents += [self.solved] * len(wanted)
            tokens += ids[:-1]
            targets += wanted
            self.solved += 1
        rest = ROW_LENGTH - len(tokens)
        return tokens + [END] * rest, targets + [IGNORE] * rest, documents + [self.solved] * rest


def loss_of(model: Llama, batch) -> torch.Tensor:
    """Mean cross-entropy of the unmasked targets in a batch of Problems."""
    tokens, targets, documents = batch
    return token_loss(packed_logits(model, tokens, documents), targets)


def solve(model: Llama, target, problems: list[tuple[int, int]]) -> list[str]:
    """The model's greedy answer to each question, up to the newline."""
    longest = max(len(target(a, b)) for a, b in problems)
    prompts = [encode(question(a, b)) for a, b in problems]
    said = generate_batch(model, prompts, max_new_tokens=longest + 1, stop_ids=[END])
    return [decode(ids) for ids in said]


def accuracy(model: Llama, target, length: int, count: int = 200) -> float:
    """Exact match: the share of held-out problems whose sum is right to the last digit."""
    problems = tests(length, count)
    said = solve(model, target, problems)
    right = [
        answer(target, text) == str(a + b) for (a, b), text in zip(problems, said, strict=True)
    ]
    return sum(right) / len(right)


def train(
    batches: Problems, n_steps: int, cfg: LlamaConfig = CONFIG, validate=None, progress=False
):
    """(model, metrics) of a Llama trained on batches from scratch; validate(model) runs ten times
    during training.
    """
    settings = Settings(
        steps=n_steps,
        peak_lr=0.64 / cfg.dim,
        warmup=n_steps // 10,
        eval_every=max(1, n_steps // 10),
    )
    model = use_attention(Llama.from_scratch(cfg, batches.seed), "sdpa")
    return model, fit(model, loss_of, batches, settings, validate=validate, progress=progress)


def measure(target, mask_question: bool, n_steps: int, seed: int = 0, progress=False) -> dict:
    """Train on one form; accuracy at every length, and ten times during training at the longest
    one trained on.
    """
    batches, curve, longest = (
        Problems(target, mask_question=mask_question, seed=seed),
        [],
        LENGTHS[-1],
    )

    def validate(model):
        curve.append([batches.solved, accuracy(model, target, longest, 100)])
        return curve[-1][1]

    model, rows = train(batches, n_steps, validate=validate, progress=progress)
    loss = sum(row["loss"] for row in rows[-20:]) / 20
    right = {length: round(accuracy(model, target, length), 4) for length in range(1, longest + 3)}
    about = dict(form=target.__name__, mask_question=mask_question, steps=n_steps, seed=seed)
    seen = dict(tokens=n_steps * BATCH_SIZE * ROW_LENGTH, problems=batches.solved)
    return about | seen | dict(loss=round(loss, 4), accuracy=right, curve=curve)
