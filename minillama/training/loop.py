"""Pretraining: from random numbers to a model.

Written by notebooks/13_pretraining.ipynb: edit it there.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import nn

from minillama.checkpoints.assemble import progress_bar
from minillama.training.optimizer import Settings, adamw, learning_rate, train_step, trainable
from minillama.training.runs import Run, TrainingError


Batch = tuple[torch.Tensor, ...]  # tokens first
BatchSource = Callable[[int], Batch]
Loss = Callable[[nn.Module, Batch], torch.Tensor]


def compile_loss(loss_of):
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


def measured_step(
    model: nn.Module,
    loss_of: Loss,
    batch_at: BatchSource,
    optimizer,
    settings: Settings,
    step: int,
    weigh: Callable[[Batch], int] | None = None,
) -> dict:
    """Step number `step` of a run: its row of metrics, without a validation loss."""
    start, n = time.perf_counter(), settings.gradient_accumulation_steps
    # what a step draws depends on the step alone
    torch.manual_seed(settings.seed * settings.steps + step)
    batches = [batch_at(step * n + i) for i in range(n)]
    lr = learning_rate(step, settings)
    loss, norm = train_step(model, loss_of, batches, optimizer, settings, lr, weigh)
    tokens = sum(next(iter(batch)).numel() for batch in batches)
    speed = tokens / (time.perf_counter() - start)
    return dict(zip(Run.COLUMNS, (step, loss, lr, norm, speed, None), strict=True))


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
    first tensor. run: keeps the files of the run and resumes from them; by default nothing is kept.
    validate(model) -> loss on held-out text. progress: whether to show a bar. callbacks: each is
    given each row. TrainingError if the loss or a gradient is not finite; the last state is kept.
    """
    run, optimizer = run or Run(), adamw(model, settings)
    first = run.resume(asdict(settings), trainable(model), optimizer)
    compute = compile_loss(loss_of) if settings.compiled else loss_of
    model.activation_checkpointing = settings.activation_checkpointing
    model.train()
    bar = progress_bar(total=settings.steps, initial=first, unit="step", shown=progress, leave=True)
    with bar, torch.random.fork_rng():
        for step in range(first, settings.steps):
            row = measured_step(model, compute, batch_at, optimizer, settings, step, weigh)
            stop_unless_finite(step, row["loss"], row["gradient_norm"], run.saved)
            last = step + 1 == settings.steps
            if validate and (last or (step + 1) % settings.eval_every == 0):
                with torch.no_grad():
                    row["validation_loss"] = float(validate(model))
            run.note(row)
            if last or (step + 1) % settings.save_every == 0:
                run.save(trainable(model), optimizer, step + 1)
            bar.update()
            bar.set_postfix_str(
                f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s", refresh=False
            )
            for callback in callbacks:
                callback(row)
    model.eval()
    return run.rows
