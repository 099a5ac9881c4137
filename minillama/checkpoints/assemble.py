"""Checkpoints: one model, several file formats, equal logits.

Written by notebooks/07_checkpoints.ipynb: edit it there.
"""

import sys
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.tensors import StoredTensor
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.tokenizer import Tokenizer


def build_tokenizer(
    ids, specials, merges, pattern, bos, stop, whole_chunks, plain=None
) -> Tokenizer:
    """Tokenizer.from_gpt2 for parts that came out of a file; ValueError for ids that cannot be."""
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    merged = (
        {token for left, right in merges for token in (left, right, left + right)}
        if plain
        else set()
    )
    merged &= (plain or {}).keys()  # added tokens that are ordinary ones as well
    vocab = {token: id for token, id in ids.items() if token not in specials or token in merged}
    stop = [id for id in dict.fromkeys(stop) if id is not None]
    used, control = {*vocab.values(), *specials.values()}, {bos, *stop} - {None}
    if not all(type(id) is int and id >= 0 for id in used):
        raise ValueError("a token's id is not a whole number from 0 on")
    if (
        not control <= used
        or any(type(id) is not int for id in control)
        or type(whole_chunks) is not bool
    ):
        raise ValueError(f"its control ids {bos!r} and {stop!r} are not in the vocabulary")
    eos = stop[0] if stop else None
    return Tokenizer.from_gpt2(
        vocab, specials, merges, pattern, bos, eos, stop, whole_chunks, plain
    )


@dataclass
class Checkpoint:
    """An opened file or folder: sizes, tensors under minillama's names, the tokenizer if it has
    one.
    """

    cfg: LlamaConfig
    tensors: dict[str, StoredTensor]
    tokenizer: Tokenizer | None

    def __post_init__(self):
        if self.tokenizer and self.tokenizer.vocab_size > (rows := self.cfg.vocab_size):
            raise CheckpointError(
                f"the tokenizer has ids up to {self.tokenizer.vocab_size - 1}, the embedding "
                f"{rows} rows"
            )


def progress_bar(items=None, label=None, shown=True, leave=False, **how) -> tqdm:
    """A bar on standard error; none where that is no terminal, or closed, or None as in a program
    without a console.
    """
    hidden = not shown or getattr(sys.stderr, "closed", True)
    return tqdm(items, label, disable=hidden or None, leave=leave, **how)


class SkipInit(TorchFunctionMode):
    """Skip initialization: while it is active, modules are built without drawing initial weights,
    which the checkpoint replaces.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(cfg: LlamaConfig, n_tensors: int) -> Llama:
    """A model whose parameters have shapes and no memory, unless that many tensors cannot fill
    it.
    """
    if 9 * cfg.n_layers > n_tensors or n_tensors > 2_000:
        raise CheckpointError(
            f"{n_tensors} tensors cannot be those of a Llama of {cfg.n_layers} layers"
        )
    try:
        with torch.device("meta"), SkipInit():
            return Llama(cfg)
    except (RuntimeError, TypeError, OverflowError):
        raise CheckpointError(
            f"an embedding of vocab_size {cfg.vocab_size}, dim {cfg.dim} fits no computer"
        ) from None


def assemble(checkpoint: Checkpoint, dtype=torch.float32, device="cpu", convert=None) -> Llama:
    """The model, filled one tensor at a time; CheckpointError for a missing, extra or misshapen
    tensor.

    convert(name, tensor) may return a layer to put instead of the one of that name (chapter
    12), or None.
    """
    model, tensors = skeleton(checkpoint.cfg, len(checkpoint.tensors)), checkpoint.tensors
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise CheckpointError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if extra := sorted(tensors.keys() - shapes.keys()):
        raise CheckpointError(f"{len(extra)} tensors too many, the first is {extra[0]}")
    if wrong := [name for name in shapes if tensors[name].shape != shapes[name]]:
        raise CheckpointError(
            f"{wrong[0]} has shape {tensors[wrong[0]].shape}, not {shapes[wrong[0]]}"
        )
    for name, tensor in progress_bar(tensors.items(), "loading", unit="tensor"):
        owner, _, leaf = name.rpartition(".")
        if convert and (layer := convert(owner, tensor)):
            model.set_submodule(owner, layer)
        else:
            setattr(
                model.get_submodule(owner),
                leaf,
                nn.Parameter(tensor.read().to(device=device, dtype=dtype)),
            )
    if checkpoint.cfg.tied_embeddings:
        model.head.weight = model.embedding.weight
    return model.eval()
