"""The files of a training run: metrics.csv, and state.pt, from which it goes on as if nothing had
happened.
"""

import csv
import hashlib
import io
from pathlib import Path

import torch
from torch import nn

from minillama.checkpoints.atomic import write_whole


class TrainingError(ValueError):
    """A run that cannot go on: one line that says at which step, why, and what is kept."""


def fingerprint(*tensors: torch.Tensor) -> str:
    """A short name of what tensors hold."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


RENAMED = {  # settings, as states call them that were written before
    "max_grad_norm": "clip",
    "min_lr_ratio": "floor",
    "gradient_accumulation_steps": "accumulate",
    "activation_checkpointing": "recompute",
}


class Run:
    """The files of a run: state.pt, from which it goes on, and metrics.csv, a row per step."""

    COLUMNS = ("step", "loss", "lr", "gradient_norm", "tokens_per_second", "validation_loss")
    keeps_metrics = True  # this process does, and no other (chapter 17a has several)

    def __init__(self, folder=None, data: str = ""):
        """folder: None keeps nothing. data: a fingerprint of what is learned from."""
        self.folder, self.rows = Path(folder) if folder else None, []
        self.saved = 0  # steps in state.pt
        self.about = {"data": data}  # what must not change while the run goes on, and the settings

    def resume(self, settings: dict, parameters: dict[str, nn.Parameter], optimizer) -> int:
        """Take up the run that the folder holds; the number of steps done.

        TrainingError if that is another run, with other settings or other data.
        """
        self.about |= {name: str(value) for name, value in settings.items()}
        if self.folder is None:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.saved = self.restore(parameters, optimizer)
        self.rows = [
            row for row in read_metrics(self.folder / "metrics.csv") if row["step"] < self.saved
        ]
        if self.keeps_metrics:
            write_whole(self.folder / "metrics.csv", as_csv(self.COLUMNS, self.rows))
        return self.saved

    def restore(self, parameters: dict[str, nn.Parameter], optimizer) -> int:
        """Fill both from the folder's state; how many steps it has. TrainingError if it is another
        run's or damaged.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return 0
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            self.compare(state["about"])
            return fill(parameters, optimizer, state)
        except TrainingError:
            raise
        except Exception as error:  # subtle: a damaged file can raise nearly anything
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise TrainingError(
                f"{path} cannot be used ({reason}): move it away to start anew"
            ) from None

    def compare(self, about: dict) -> None:
        """TrainingError if the folder's run had other settings or other data."""
        for name, now in self.about.items():
            before = about.get(name, about.get(RENAMED.get(name), now))
            if before != now:
                raise TrainingError(
                    f"{self.folder} holds a run with {name} {before}, and now it is {now}: choose "
                    f"another folder"
                )

    def note(self, row: dict) -> None:
        """Add a row to the metrics."""
        self.rows.append(row)
        if self.folder and self.keeps_metrics:
            with open(self.folder / "metrics.csv", "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.COLUMNS).writerow(row)

    def save(self, parameters: dict[str, nn.Parameter], optimizer, steps: int) -> None:
        """Keep everything that the next step needs. TrainingError if the disk refuses; the older
        state stays.
        """
        if self.folder is None:
            return
        try:
            self.write(parameters, optimizer, steps)
        except OSError as error:
            kept = (
                f"the state after step {self.saved} is kept"
                if self.saved
                else "there is no older one"
            )
            raise TrainingError(
                f"the state after step {steps} cannot be saved ({error.strerror}); {kept}"
            ) from None
        self.saved = steps

    def write(self, parameters: dict[str, nn.Parameter], optimizer, steps: int) -> None:
        """Put the state into the folder, whole or not at all. OSError."""
        moments = {
            name: [optimizer.state[p][key] for key in MOMENTS] for name, p in parameters.items()
        }
        weights, content = {name: p.detach() for name, p in parameters.items()}, io.BytesIO()
        torch.save(
            {"about": self.about, "steps": steps, "parameters": weights, "moments": moments},
            content,
        )
        write_whole(self.folder / "state.pt", content.getvalue())


MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's memory of a parameter


def fill(parameters: dict[str, nn.Parameter], optimizer, state: dict) -> int:
    """Weights and moments of a saved state into model and optimizer; the number of steps done.
    ValueError.
    """
    if {n: p.shape for n, p in parameters.items()} != {
        n: t.shape for n, t in state["parameters"].items()
    }:
        raise ValueError("it belongs to a model of another shape")
    for name, parameter in parameters.items():
        parameter.data.copy_(state["parameters"][name])
        kept = zip(MOMENTS, state["moments"][name], strict=True)
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in kept}
    return state["steps"]


def as_csv(columns, rows: list[dict]) -> bytes:
    """Rows below a line with the names of the columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.csv as numbers, None where nothing was measured; what a kill cut short
    is left out.

    TrainingError if it is no such file.
    """
    if not Path(path).exists():
        return []
    number = {"step": int}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        return [
            {
                name: number.get(name, float)(row[name]) if row[name] else None
                for name in Run.COLUMNS
            }
            for row in rows
        ]
    except (ValueError, KeyError, csv.Error):
        raise TrainingError(
            f"{path} is not what a run has written: move it away to go on"
        ) from None
