"""Evaluation: from one number to a judgement.

Written by notebooks/15_evaluation.ipynb: edit it there.
"""

from minillama.generation import generate
from minillama.model import Llama


def write_until(
    model: Llama, tokenizer, ids: list[int], stops=("\n",), max_new_tokens=64, **sampling
) -> str:
    """The text that the model writes, up to the first of the stop strings, an ending or the limit.

    sampling: as for `generate`.
    """
    ids = ids[-(model.cfg.max_seq_len - max_new_tokens) :]
    stream = generate(model, ids, max_new_tokens, stop_ids=tokenizer.stop_ids, **sampling)
    text = ""
    for part in tokenizer.decode_stream(stream):
        text += part
        if (cut := cut_at(text, stops)) != text:
            return cut
    return text


def cut_at(text: str, stops) -> str:
    """The text before the first occurrence of any stop string."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]


def normalise(text: str) -> str:
    """What is left of an answer when spaces, case and a full stop do not count."""
    return " ".join(text.lower().split()).removesuffix(".").strip()


def exact_match(said: str, answer: str) -> bool:
    """Whether two answers are the same, but for spaces, case and a full stop."""
    return normalise(said) == normalise(answer)
