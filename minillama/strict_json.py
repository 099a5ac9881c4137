"""Checkpoints: one model, several file formats, equal logits.

Written by notebooks/07_checkpoints.ipynb: edit it there.
"""


def unique(pairs: list[tuple]) -> dict:
    """An object of JSON, as `object_pairs_hook`; ValueError if a key occurs twice."""
    if len(value := dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return value
