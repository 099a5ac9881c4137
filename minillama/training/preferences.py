"""14b. Preferences: which of two answers is better?

Written by notebooks/14b_preferences.ipynb: edit it there.
"""

from functools import partial

import torch
import torch.nn.functional as F

from minillama.chat import encode_dialog
from minillama.chat_formats import turn_ends
from minillama.inference.attention_backends import use_attention
from minillama.model import Llama
from minillama.tokenizer import Tokenizer
from minillama.training.batches import batches_per_epoch, shuffled_batch
from minillama.training.finetuning import lora_layers, without_lora
from minillama.training.instructions import check_messages
from minillama.training.jsonl import read_jsonl
from minillama.training.loop import fit
from minillama.training.loss import IGNORE
from minillama.training.optimizer import Settings
from minillama.training.runs import Run, fingerprint


def dpo_loss(rewards: torch.Tensor) -> torch.Tensor:
    """Minus the log of the chance that the chosen answer wins, mean over pairs: (2, P), chosen
    first -> ()
    """
    chosen, rejected = rewards
    return -F.logsigmoid(chosen - rejected).mean()


def pad(pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """P triples of ids (prompt, chosen, rejected) -> tokens and targets (2P, T): all chosen
    answers, then all rejected.

    Targets are -100 but for an answer's ids. ValueError if a prompt or an answer is empty.
    """
    if not all(part for pair in pairs for part in pair):
        raise ValueError("a prompt and an answer have at least one id each")
    rows = [(prompt, chosen) for prompt, chosen, _ in pairs] + [
        (prompt, rejected) for prompt, _, rejected in pairs
    ]
    shape = len(rows), max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    tokens, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer) - 1
        tokens[i, :end] = torch.tensor([*prompt, *answer][:-1])
        targets[i, len(prompt) - 1 : end] = torch.tensor(answer)
    return tokens, targets


def answer_log_probs(model: Llama, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The log-probability of each row's answer, summed over its tokens, in nats: twice (R, T) ->
    (R,)
    """
    asked = targets != IGNORE
    x = model.hidden(tokens)[asked]  # (A, D)
    each = -F.cross_entropy(model.head(x).float(), targets[asked], reduction="none")  # (A,)
    return (
        torch.zeros(targets.shape, dtype=each.dtype, device=each.device)
        .masked_scatter(asked, each)
        .sum(1)
    )


def rewards(model: Llama, batch, beta: float = 0.1) -> torch.Tensor:
    """Each answer's implicit reward, beta times the log-ratio of the model with its adapter to the
    model without it: a batch of `pad` -> (2, P), chosen first.

    ValueError if the model has no adapter.
    """
    with torch.no_grad(), without_lora(model):
        before = answer_log_probs(model, *batch)
    return beta * (answer_log_probs(model, *batch) - before).view(2, -1)


def preference_loss(model: Llama, batch, beta: float = 0.1) -> torch.Tensor:
    """DPO's loss on a batch of `pad`, for `fit`. Rafailov et al. 2023, arXiv:2305.18290."""
    return dpo_loss(rewards(model, batch, beta))


def pair(value) -> dict:
    """The pair {"prompt": messages or text, "chosen": text, "rejected": text} itself; ValueError if
    it is none.
    """
    if not isinstance(value, dict) or not {"prompt", "chosen", "rejected"} <= value.keys():
        raise ValueError('no object {"prompt": [messages], "chosen": text, "rejected": text}')
    texts = [
        value["chosen"],
        value["rejected"],
        *([value["prompt"]] if isinstance(value["prompt"], str) else []),
    ]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("an answer or the prompt is no text, or an empty one")
    if value["chosen"] == value["rejected"]:
        raise ValueError("both answers are the same, so none is preferred")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character") from None
    if (
        not isinstance(value["prompt"], str)
        and check_messages(value["prompt"])[-1]["role"] == "assistant"
    ):
        raise ValueError("the prompt ends with the assistant: its words belong to the answers")
    return value


def read_pairs(path, skip_bad: bool = False) -> tuple[list[dict], list[str]]:
    """The pairs of a JSONL file, and a complaint for every bad line; errors as `read_jsonl`'s."""
    return read_jsonl(path, pair, skip_bad)


def encode_pair(tokenizer: Tokenizer, value: dict) -> tuple[list[int], list[int], list[int]]:
    """The ids of prompt, chosen and rejected, each answer with the token that ends it; ValueError
    if there is none.
    """
    if isinstance(value["prompt"], str):
        prompt, end = (
            tokenizer.encode(value["prompt"], bos=tokenizer.bos_id is not None),
            tokenizer.eos_id,
        )
    else:
        prompt = encode_dialog(tokenizer, value["prompt"])
        end = turn_ends(tokenizer)[0]
    if end is None:
        raise ValueError("this tokenizer has no token that ends an answer")
    return (
        prompt,
        [*tokenizer.encode(value["chosen"]), end],
        [*tokenizer.encode(value["rejected"]), end],
    )


class Pairs:
    """Triples of ids, a few pairs at a time in a seeded order, a new order each epoch."""

    def __init__(self, pairs, batch: int = 4, seed: int = 0, length: int = 512):
        """length: pairs with a longer row are left out, and counted in left_out; ValueError if none
        is left.
        """
        pairs = list(pairs)
        self.pairs = [
            pair for pair in pairs if len(pair[0]) + max(map(len, pair[1:])) <= length + 1
        ]
        self.batch, self.seed, self.left_out = batch, seed, len(pairs) - len(self.pairs)
        if not self.pairs:
            raise ValueError(f"all {self.left_out} pairs are longer than a row of {length}")
        self.turns = batches_per_epoch(len(self.pairs), batch)

    def __call__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The i-th batch: tokens and targets, (2P, T)."""
        chosen = shuffled_batch(i, len(self.pairs), self.batch, self.seed)
        return pad([self.pairs[k] for k in chosen])

    def fingerprint(self) -> str:
        """A short name of what they hold."""
        return fingerprint(*pad(self.pairs))


@torch.no_grad()
def measure(model: Llama, pairs: Pairs, beta: float = 0.1) -> dict[str, float]:
    """On all pairs, once: the loss, the share whose chosen answer is ahead (a tie is half), and
    both mean rewards.
    """
    both = torch.cat([rewards(model, pairs(i), beta) for i in range(pairs.turns)], dim=1)  # (2, N)
    ahead = (both[0] - both[1]).sign().add(1).div(2).mean()
    chosen, rejected = both.mean(1).tolist()
    return {
        "loss": dpo_loss(both).item(),
        "accuracy": ahead.item(),
        "chosen": chosen,
        "rejected": rejected,
    }


def prefer(
    model,
    pairs: Pairs,
    held: Pairs,
    settings: Settings,
    folder=None,
    progress=True,
    beta: float = 0.1,
):
    """Train a model's adapter on pairs, in place; the loss on `held` is its validation. `fit`'s
    rows and errors.

    A run that goes on must have the same pairs, model, alpha and beta.
    """
    scales = sorted({layer.alpha for layer in lora_layers(model).values()})
    weights = fingerprint(model.norm.weight)
    data = f"{pairs.fingerprint()}, model {weights}, alpha {scales}, beta {beta}"
    return fit(
        use_attention(model, "sdpa"),
        partial(preference_loss, beta=beta),
        pairs,
        settings,
        Run(folder, data),
        validate=lambda m: measure(m, held, beta)["loss"],
        progress=progress,
    )
