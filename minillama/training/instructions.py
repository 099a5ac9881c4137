"""14a. Instructions: which words are to be learned.

Written by notebooks/14a_instructions.ipynb: edit it there.
"""

import torch

from minillama.chat import encode_dialog, role_of
from minillama.chat_formats import MARKS, format_of, turn_ends
from minillama.inference.attention_backends import use_attention
from minillama.model import Llama
from minillama.tokenizer import Tokenizer
from minillama.training.batches import batches_per_epoch, shuffled_batch
from minillama.training.finetuning import lora_layers
from minillama.training.loop import fit
from minillama.training.loss import IGNORE, count_targets, token_loss
from minillama.training.optimizer import Settings
from minillama.training.packing import packed_mask, shift
from minillama.training.runs import Run, fingerprint


# of a message, as chat.encode_dialog takes it
MESSAGE_KEYS = {"role", "content", "calls", "tag", "end"}


def check_messages(messages) -> list[dict]:
    """The messages themselves; ValueError, with the number of the message, if they are no
    conversation.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("the messages are no list, or an empty one")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f'message {number} is no {{"role": ..., "content": text}}')
        if odd := sorted(message.keys() - MESSAGE_KEYS):
            raise ValueError(f"message {number} has {odd[0]!r}, which is not known here")
        calls = message.get("calls", [])
        if not isinstance(calls, list) or any(
            not isinstance(call, dict) or set(call) != {"name", "arguments"} for call in calls
        ):
            raise ValueError(
                f'the calls of message {number} are no list of {{"name": ..., "arguments": ...}}'
            )
        try:
            role_of(message)
            message["content"].encode()
        except UnicodeEncodeError:
            raise ValueError(f"message {number} holds half a character") from None
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    return messages


def dialog(value) -> list[dict]:
    """The messages of {"messages": [...]}, other keys ignored; ValueError if an answer or all of
    them are missing.
    """
    if not isinstance(value, dict) or "messages" not in value:
        raise ValueError('no object {"messages": [...]}')
    messages = check_messages(value["messages"])
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("no message of the assistant")
    for number, message in enumerate(messages, 1):
        if (
            message["role"] == "assistant"
            and not message["content"].strip()
            and not message.get("calls")
        ):
            raise ValueError(
                f"message {number} is an empty answer, which would teach to say nothing"
            )
    return messages


def answers(tokenizer: Tokenizer, messages: list[dict]) -> tuple[list[int], list[bool]]:
    """A finished conversation's ids, and which of them the assistant wrote: its text and the token
    that ends it.

    An answer begins where the assistant's header ends, with which `encode_dialog` asks for one.
    What follows the last answer is left out. ValueError if an answer begins with white space that
    tokenizes together with the header.
    """
    ids, ends = encode_dialog(tokenizer, messages), turn_ends(tokenizer)
    start = tokenizer.specials[MARKS[format_of(tokenizer).name][0]]
    place = max(i for i, id in enumerate(ids) if id == start)
    header, ids = ids[place:], ids[:place]
    wrote, writing, last = [], False, 0
    for i, id in enumerate(ids):
        writing = writing or (i >= len(header) and ids[i - len(header) : i] == header)
        wrote.append(writing)
        if writing and id in ends:
            writing, last = False, i + 1
    expected = sum(message["role"] == "assistant" for message in messages)
    if (
        sum(now and not before for before, now in zip([False, *wrote], wrote, strict=False))
        != expected
    ):
        raise ValueError(
            "an answer begins with white space that tokenizes together with the header before it: "
            "strip it"
        )
    return ids[:last], wrote[:last]


def pack_whole(dialogs, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Pairs of `answers` into rows, none of them cut: three of (N, <= length + 1), ids, document
    numbers, who wrote.

    A row is filled up with id 0 of document -1. The last number is how many pairs were longer than
    a row and left out; ValueError if that is all of them.
    """
    rows, sizes, left_out = [], [], 0
    for number, (ids, wrote) in enumerate(dialogs):
        if len(ids) > length + 1:
            left_out += 1
            continue
        # looking at all of them would take for ever
        open_rows = range(max(0, len(rows) - 64), len(rows))
        place = next((i for i in open_rows if sizes[i] + len(ids) <= length + 1), len(rows))
        if place == len(rows):
            rows.append([])
            sizes.append(0)
        rows[place].append((ids, [number] * len(ids), wrote))
        sizes[place] += len(ids)
    if not rows:
        raise ValueError(f"all {left_out} conversations are longer than a row of {length}")
    shape = len(rows), max(sizes)
    filled = (
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, -1),
        torch.zeros(shape, dtype=torch.bool),
    )
    for i, row in enumerate(rows):
        for tensor, parts in zip(filled, zip(*row, strict=True), strict=True):
            tensor[i, : sizes[i]] = torch.tensor(sum(parts, []), dtype=tensor.dtype)
    return *filled, left_out


class Dialogs:
    """Packed conversations, a few rows at a time in a seeded order, a new order each epoch."""

    def __init__(self, dialogs, length: int = 512, batch: int = 4, seed: int = 0):
        self.ids, self.documents, self.wrote, self.left_out = pack_whole(dialogs, length)
        self.batch, self.seed = batch, seed
        self.turns = batches_per_epoch(len(self.ids), batch)

    def __call__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The i-th batch: tokens, targets and documents, each (B, T)."""
        chosen = shuffled_batch(i, len(self.ids), self.batch, self.seed)
        tokens, targets, documents = shift(self.ids[chosen], self.documents[chosen])
        return tokens, targets.masked_fill(~self.wrote[chosen, 1:], IGNORE), documents

    def fingerprint(self) -> str:
        """A short name of what they hold."""
        return fingerprint(self.ids, self.documents, self.wrote)


def answer_loss(model: Llama, batch) -> torch.Tensor:
    """The loss on a batch of Dialogs: the mean over the assistant's tokens."""
    tokens, targets, documents = batch
    asked = targets != IGNORE
    x = model.hidden(tokens, mask=packed_mask(documents))[asked]  # (A, D)
    return token_loss(model.head(x)[None], targets[asked][None])


@torch.no_grad()
def mean_answer_loss(model: Llama, dialogs: Dialogs) -> float:
    """The loss on all of them, once, every token of the assistant counted alike."""
    batches = [dialogs(i) for i in range(dialogs.turns)]
    counts = [count_targets(batch) for batch in batches]
    losses = [
        answer_loss(model, batch).item() * n for batch, n in zip(batches, counts, strict=True) if n
    ]
    return sum(losses) / sum(counts)


def finetune(
    model: Llama, dialogs: Dialogs, held: Dialogs, settings: Settings, folder=None, progress=True
):
    """Train what can be trained of a model on conversations, in place: `fit`'s rows of metrics, and
    its errors.

    A run that goes on must have the same conversations, model and alpha.
    """
    scales = sorted({layer.alpha for layer in lora_layers(model).values()})
    data = f"{dialogs.fingerprint()}, model {fingerprint(model.norm.weight)}, alpha {scales}"
    model, validate = use_attention(model, "sdpa"), lambda m: mean_answer_loss(m, held)
    run = Run(folder, data)
    return fit(
        model, answer_loss, dialogs, settings, run, validate, weigh=count_targets, progress=progress
    )
