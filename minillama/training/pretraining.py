"""Pretraining: from random numbers to a model.

Written by notebooks/13_pretraining.ipynb: edit it there.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from minillama.attention import AttentionMask, causal_mask
from minillama.checkpoints.assemble import progress_bar
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.training.runs import Run, TrainingError


IGNORE = -100  # ignored: no loss is computed there (ignore_index)


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats over the targets that are not -100: (B, T, V), (B, T) -> ()"""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def count_targets(batch) -> int:
    """How many targets there are in a batch whose second part holds them."""
    return int((batch[1] != IGNORE).sum())


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

    The first id of a document is nobody's target: nothing before it belongs to it.
    """
    same = documents[:, 1:] == documents[:, :-1]
    return rows[:, :-1], rows[:, 1:].masked_fill(~same, IGNORE), documents[:, :-1]


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """True where a query may look: back, and within its own document. (B, T) -> (B, 1, T, T)"""
    same = documents.unsqueeze(2) == documents.unsqueeze(1)  # (B, T, T)
    return (same & causal_mask(*same.shape[1:], same.device)).unsqueeze(1)


def document_positions(documents: torch.Tensor) -> torch.Tensor:
    """How far each token stands behind the first one of its document in the row: (B, T) -> (B,
    T)
    """
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    fresh = torch.ones_like(documents, dtype=torch.bool)
    fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - (places * fresh).cummax(dim=1).values


def packed_mask(documents: torch.Tensor) -> AttentionMask:
    """What the tokens of packed rows may see, and where each stands in its document: numbers of
    documents (B, T).
    """
    return AttentionMask(
        document_positions(documents).unsqueeze(1), documents.shape[1], document_mask(documents)
    )


def logits(model: Llama, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """The model on rows of packed documents, none of which sees another: twice (B, T) -> (B, T, V)
    float32
    """
    return model(tokens, mask=packed_mask(documents))


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run but the model and the data; ValueError for what cannot be
    meant.

    warmup, save_every, eval_every: in steps. min_lr_ratio: the last learning rate as a share of the
    peak. max_grad_norm: the largest norm of a gradient. gradient_accumulation_steps: batches per
    step. dtype: of the products, "float32" or "bfloat16". compiled: the loss as one program.
    activation_checkpointing: less memory, a third more work.
    """

    steps: int = 1000
    peak_lr: float = 3e-3
    warmup: int = 100
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    dtype: str = "float32"
    compiled: bool = False
    activation_checkpointing: bool = False
    seed: int = 0
    save_every: int = 200
    eval_every: int = 200

    def __post_init__(self):
        for name in ("steps", "gradient_accumulation_steps", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, not {self.dtype!r}")
        if not (
            0 < self.peak_lr < math.inf
            and 0 < self.max_grad_norm
            and 0 <= self.min_lr_ratio <= 1
            and 0 <= self.warmup
        ):
            raise ValueError(
                "peak_lr and max_grad_norm must be positive, min_lr_ratio from 0 to 1, warmup 0 or "
                "more"
            )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have gradients, by name; a shared one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone (Loshchilov and Hutter 2017, arXiv:1711.05101)."""
    parameters = trainable(model).values()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=settings.peak_lr, betas=settings.betas, fused=True
    )


def learning_rate(step: int, settings: Settings) -> float:
    """Up along a line to the peak, then down along half a cosine to min_lr_ratio times the peak.
    Steps count from 0.
    """
    if step < settings.warmup:
        return settings.peak_lr * (step + 1) / settings.warmup
    # 0 at the peak, 1 at the last step
    way = (step - settings.warmup) / max(1, settings.steps - 1 - settings.warmup)
    share = settings.min_lr_ratio + (1 - settings.min_lr_ratio) * (1 + math.cos(math.pi * way)) / 2
    return settings.peak_lr * share


def train_step(
    model, loss_of, batches, optimizer, settings: Settings, lr: float, weigh=None
) -> tuple[float, float]:
    """One change of the weights: (loss, norm of the gradient before clipping); unless one of them
    is not finite.

    weigh(batch) -> how much a batch counts in the mean, such as its targets; without it all count
    alike.
    """
    parameters, total = list(trainable(model).values()), 0.0
    device = parameters[0].device.type
    weights = [weigh(batch) if weigh else 1 for batch in batches]
    for batch, weight in zip(batches, weights, strict=True):
        if not weight:
            continue  # nothing is asked: the mean over nothing would be NaN
        with torch.autocast(device, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
            loss = loss_of(model, batch) * (weight / sum(weights))
        loss.backward()
        total += loss.item()
    norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm).item()
    if math.isfinite(total) and math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad()
    return total, norm


def flops_per_token(cfg: LlamaConfig, length: int) -> int:
    """Multiplications and additions of a step per token of a row: 6 per weight of a matrix, 12 per
    key and width.
    """
    heads = (2 * cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim
    weights = (
        cfg.n_layers * (heads * cfg.dim + 3 * cfg.dim * cfg.ffn_dim) + cfg.dim * cfg.vocab_size
    )
    return 6 * weights + 12 * cfg.n_layers * cfg.n_heads * cfg.head_dim * length


def peak_flops(dtype: torch.dtype, size: int = 1024) -> float:
    """Operations a second of one large product, the most that this machine gives: the best of
    five.
    """
    a, times = torch.ones(size, size, dtype=dtype), []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


Batch = tuple[torch.Tensor, ...]  # tokens first
BatchSource = Callable[[int], Batch]
Loss = Callable[[nn.Module, Batch], torch.Tensor]


def compiled(loss_of):
    """loss_of as one program, compiled when it is first called; TrainingError where that cannot be
    done.
    """
    program = torch.compile(loss_of)

    def call(model, batch):
        try:
            return program(model, batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise TrainingError(
                f"this machine cannot compile the model ({reason}): do without"
            ) from None

    return call


def stop_unless_finite(step: int, loss: float, norm: float, saved: int) -> None:
    """TrainingError that says what is kept."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        kept = f"the state after step {saved} is kept" if saved else "no state was saved yet"
        raise TrainingError(
            f"step {step}: the loss is {loss}, its gradient {norm}; {kept}. Try a lower peak_lr"
        )


def fit(
    model: nn.Module,
    loss_of: Loss,
    batch_at: BatchSource,
    settings: Settings,
    run: Run | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    weigh: Callable[[Batch], int] | None = None,
    progress: bool = True,
    callbacks: Sequence[Callable[[dict], None]] = (),
) -> list[dict]:
    """Train the parameters that require gradients, in place; returns a row of metrics per step.

    loss_of(model, batch) -> scalar. batch_at(i) -> the i-th batch, a function of i alone (that
    makes a resumed run exact); `gradient_accumulation_steps` of them make a step, whose loss is the
    mean of theirs, weighted by weigh(batch) (see `train_step`). Tokens are counted in a batch's
    first tensor. run: what keeps the files of the run and goes on from them; by default nothing is
    kept. validate(model) -> loss on held-out text. progress: whether to show a bar. callbacks: each
    is given each row. TrainingError if the loss or a gradient is not finite; the last state is
    kept.
    """
    run, optimizer, n = run or Run(), adamw(model, settings), settings.gradient_accumulation_steps
    first = run.resume(asdict(settings), trainable(model), optimizer)
    compute = compiled(loss_of) if settings.compiled else loss_of
    model.activation_checkpointing = settings.activation_checkpointing
    model.train()
    bar = progress_bar(total=settings.steps, initial=first, unit="step", shown=progress, leave=True)
    with bar, torch.random.fork_rng():
        for step in range(first, settings.steps):
            start, lr = time.perf_counter(), learning_rate(step, settings)
            # what a step draws depends on the step alone
            torch.manual_seed(settings.seed * settings.steps + step)
            batches = [batch_at(step * n + i) for i in range(n)]
            loss, norm = train_step(model, compute, batches, optimizer, settings, lr, weigh)
            stop_unless_finite(step, loss, norm, run.saved)
            speed = sum(next(iter(batch)).numel() for batch in batches) / (
                time.perf_counter() - start
            )
            row = dict(zip(Run.COLUMNS, (step, loss, lr, norm, speed, None), strict=True))
            last = step + 1 == settings.steps
            if validate and (last or (step + 1) % settings.eval_every == 0):
                with torch.no_grad():
                    row["validation_loss"] = float(validate(model))
            run.note(row)
            if last or (step + 1) % settings.save_every == 0:
                run.save(trainable(model), optimizer, step + 1)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            for callback in callbacks:
                callback(row)
    model.eval()
    return run.rows
