"""Evaluation: from one number to a judgement.

Written by notebooks/15_evaluation.ipynb: edit it there.
"""

import math
from dataclasses import dataclass

import torch

from minillama.generation import next_logits
from minillama.kv_cache import KVCache
from minillama.model import Llama


def windows(n_ids: int, window: int, stride: int):
    """Iterate over (start, first, end): ids[start:end - 1] are read, and ids[first:end] are scored.

    Every id but the first is scored once, at most `stride` of them in a pass of at most `window`
    ids. ValueError unless 1 <= stride <= window.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"the stride must be between 1 and the window {window}, not {stride}")
    for first in range(1, n_ids, stride):
        end = min(first + stride, n_ids)
        yield max(0, end - 1 - window), first, end


@torch.no_grad()
def token_losses(model: Llama, ids: list[int], window: int, stride: int) -> torch.Tensor:
    """Minus the log-probability, in nats, of every id but the first: (len(ids) - 1,)"""
    losses = [torch.zeros(0)]
    for start, first, end in windows(len(ids), window, stride):
        tokens = torch.tensor([ids[start : end - 1]], device=model.device)  # (1, T)
        logits = model(tokens, last=end - first)[0]  # (scored, V)
        wanted = torch.tensor(ids[first:end], device=model.device)
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").cpu())
    return torch.cat(losses)


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """The loss of a whole text, spread over its bytes: comparable between tokenizers."""
    return nats / math.log(2) / n_bytes


@dataclass(frozen=True)
class AnswerScore:
    """How likely an answer is: log-probability in nats, and whether greedy decoding would write
    it.
    """

    logprob: float
    greedy: bool
    n_tokens: int


class AnswerScorer:
    """Log-probabilities of answers. What a context has in common with the one before it is read
    once; a context's answers share its keys and values.
    """

    CHUNK = 64  # tokens of all answers that go through the model at once

    def __init__(self, model: Llama):
        self.model, self.ids, self.cache = model, [], None

    @torch.no_grad()
    def __call__(self, context: list[int], answers: list[list[int]]) -> list[AnswerScore]:
        """One score per answer. ValueError for an empty context or answer, and for one too long."""
        if not context or not all(answers):
            raise ValueError("a context and its answers need at least one token each")
        longest = max(map(len, answers))
        if len(context) + longest - 1 > self.model.cfg.max_seq_len:
            raise ValueError(
                f"{len(context)} + {longest} tokens exceed the context window of "
                f"{self.model.cfg.max_seq_len}"
            )
        device = self.model.device
        wanted = torch.tensor([ids + [0] * (longest - len(ids)) for ids in answers], device=device)
        logits = self.read(context).expand(len(answers), 1, -1)  # (B, 1, V): after the context
        parts = [judge(logits, wanted[:, :1])]
        if longest > 1:
            cache = fork(self.model, self.cache, len(answers), longest - 1)
            for i in range(0, longest - 1, self.CHUNK):
                tokens = wanted[:, i : min(i + self.CHUNK, longest - 1)]
                following = wanted[:, i + 1 : i + 1 + tokens.shape[1]]
                parts.append(judge(self.model(tokens, cache), following))
        logprobs, greedy = (torch.cat(each, 1).cpu() for each in zip(*parts, strict=True))
        return [
            AnswerScore(logprobs[b, :n].sum().item(), greedy[b, :n].all().item(), n)
            for b, n in enumerate(map(len, answers))
        ]

    def read(self, ids: list[int]) -> torch.Tensor:
        """Logits after the ids (1, 1, V); the cache then holds them, and keeps what it had of
        them.
        """
        shared = common(self.ids, ids[:-1])
        if self.cache is None or len(ids) > self.cache.max_seq_len:
            size, shared = min(2 * len(ids), self.model.cfg.max_seq_len), 0
            self.cache = KVCache(self.model.cfg, 1, size, self.model.dtype, self.model.device)
        self.cache.truncate(shared)
        self.ids = list(ids)
        tokens = torch.tensor([ids[shared:]], device=self.model.device)
        return next_logits(self.model, tokens, self.cache)


def common(a: list[int], b: list[int]) -> int:
    """How many first ids two lists share."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def fork(model: Llama, cache: KVCache, batch_size: int, room: int) -> KVCache:
    """A cache of so many rows that begin as the one row of `cache`, with room for more tokens."""
    n = cache.length
    rows = KVCache(model.cfg, batch_size, n + room, model.dtype, model.device)
    rows.keys[:, :, :, :n] = cache.keys[:, :, :, :n]  # one row is written to all
    rows.values[:, :, :, :n] = cache.values[:, :, :, :n]
    rows.length = n
    return rows


def judge(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of wanted ids (B, T), logits (B, T, V): log-probabilities, and whether they are the
    likeliest.
    """
    logprobs = logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    return logprobs, logits.argmax(-1) == wanted
