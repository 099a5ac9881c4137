"""Pretraining: from random numbers to a model.

Written by notebooks/13_pretraining.ipynb: edit it there.
"""

import torch

from minillama.attention import AttentionMask, causal_mask
from minillama.model import Llama
from minillama.training.loss import IGNORE


def pack(documents: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents' ids one after another, cut into rows: twice (N, length + 1) int64, ids and
    document numbers.

    The last id of a row is the first of the next one, so that every id but the first is a target
    once. What does not fill a row at the end is left out; ValueError if that is everything.
    """
    ids = torch.tensor([id for document in documents for id in document])
    numbers = torch.arange(len(documents)).repeat_interleave(
        torch.tensor([len(document) for document in documents])
    )
    if len(ids) <= length:
        raise ValueError(f"{len(ids)} ids do not fill a row of {length} and its last target")
    return ids.unfold(0, length + 1, length), numbers.unfold(0, length + 1, length)


def shift(
    rows: torch.Tensor, documents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What goes in, what should come out, and the document of each: rows (B, T + 1) -> three of (B,
    T).

    The first id of a document is never a target: nothing before it belongs to its document.
    """
    same = documents[:, 1:] == documents[:, :-1]
    return rows[:, :-1], rows[:, 1:].masked_fill(~same, IGNORE), documents[:, :-1]


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """True where a query may look: back, and within its own document. (B, T) -> (B, 1, T, T)"""
    same = documents.unsqueeze(2) == documents.unsqueeze(1)  # (B, T, T)
    return (same & causal_mask(*same.shape[1:], same.device)).unsqueeze(1)


def document_positions(documents: torch.Tensor) -> torch.Tensor:
    """The distance of each token from the first one of its document in the row: (B, T) -> (B, T)"""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    fresh = torch.ones_like(documents, dtype=torch.bool)
    fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - (places * fresh).cummax(dim=1).values


def packed_mask(documents: torch.Tensor) -> AttentionMask:
    """What the tokens of packed rows may see, and the position of each in its document: document
    numbers (B, T).
    """
    return AttentionMask(
        document_positions(documents).unsqueeze(1), documents.shape[1], document_mask(documents)
    )


def packed_logits(model: Llama, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """The model on rows of packed documents, none of which sees another: twice (B, T) -> (B, T, V)
    float32
    """
    return model(tokens, mask=packed_mask(documents))
