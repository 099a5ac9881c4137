"""A model by name or path: in which dtype, on which device, quantized, with which attention
backend, compiled.
"""

import contextlib
import sys
import threading
import warnings
from functools import partial

import torch
from tqdm import tqdm

from minillama.checkpoints.assemble import Checkpoint, assemble
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.formats import open_checkpoint
from minillama.checkpoints.hub import cache_dir, locate
from minillama.inference import quantization
from minillama.inference.attention_backends import use_attention, use_fastest_attention
from minillama.inference.compilation import CompiledStep, CompileError
from minillama.inference.decode_graph import GraphStep


QUANTIZE = {"int8": 8, "int4": 4}  # bits
COMPILED = (False, True, "max")


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of a file's weights; float32 where there are several, or they are
    quantized.
    """
    kinds = {tensor.kind for tensor in checkpoint.tensors.values()} - {None}
    return {("BF16",): torch.bfloat16, ("F16",): torch.float16}.get(tuple(kinds), torch.float32)


def load(
    name_or_path, dtype=torch.float32, device="cpu", quantize=None, compiled=False, attention=None
):
    """(model, tokenizer) of a .gguf file, a folder (open_checkpoint), a name in ARTEFACTS, or a
    fetched ORG/NAME.

    dtype: of the weights in memory; None for that of the file, or float32 if it is quantized.
    quantize: None, "int8" or "int4" for linear layers of 8 or 4 bits (chapter 12; CPU only).
    compiled: True for decode steps through one compiled block (made once per machine in some 15
    seconds, then kept on disk), "max" for all blocks as one function (a minute or two); on CUDA
    both are one graph (chapter 11d). A machine that cannot says so and falls back.
    attention: a name of attention_backends.BACKENDS; None for chapter 4's or, if compiled, the
    fastest that works here.
    CheckpointError for a file that cannot be used or a name that means nothing; FetchError if
    fetching fails; ValueError for a device, quantization, compilation or backend that there is not.
    """
    device = known_device(device)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"there is no {device} here: PyTorch {torch.__version__} sees {count} CUDA devices"
        )
    if compiled not in COMPILED:
        raise ValueError(
            f"compiled must be one of {', '.join(map(repr, COMPILED))}, not {compiled!r}"
        )
    if quantize not in (None, *QUANTIZE) or (quantize and device.type != "cpu"):
        raise ValueError(
            f"quantize must be None or, on the CPU, one of {', '.join(QUANTIZE)}, not {quantize!r}"
        )
    path = locate(name_or_path)
    try:
        checkpoint = open_checkpoint(path)
        convert = partial(quantization.convert, bits=QUANTIZE[quantize]) if quantize else None
        model = assemble(checkpoint, dtype or stored_dtype(checkpoint), device, convert)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    model = quantization.quantize_head(model) if quantize else model
    if attention:
        use_attention(model, attention)
    if compiled:
        compile_or_say(model, compiled, attention)
    return model, checkpoint.tokenizer


def known_device(name) -> torch.device:
    """The device of that name; ValueError if PyTorch knows none."""
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:1, not {name!r}") from None


def compile_or_say(model, level, attention=None) -> None:
    """Compile decode steps; if that is not the fastest there is, a warning says what is missing and
    what is used.
    """
    cuda, part = model.norm.weight.is_cuda, "all blocks" if level == "max" else "a block"
    with waiting(
        f"compiling {'a graph' if cuda else part} for this {'GPU' if cuda else 'processor'}, once"
    ):
        missing = [] if attention else use_fastest_attention(model)
        used = [f"{model.attention_backend.name} attention"] if missing else []
        try:
            folder = cache_dir() / "compiled"
            model.decode_step = (
                GraphStep(model) if cuda else CompiledStep(model, folder, level == "max")
            )
        except (CompileError, OSError) as error:
            used.append("uncompiled")
            # one thing may be missed by both
            missing += [str(error)] * (str(error) not in "; ".join(missing))
    if missing:
        warnings.warn(f"falling back to {', '.join(used)}: {'; '.join(missing)}", stacklevel=3)


@contextlib.contextmanager
def waiting(text: str):
    """A line on standard error that counts the seconds, from the second second on, while something
    takes its time.
    """
    done = threading.Event()
    with tqdm(
        bar_format=f"{text}: {{elapsed}}",
        leave=False,
        delay=1,
        disable=getattr(sys.stderr, "closed", True),
    ) as line:

        def tick():
            while not done.wait(1):
                line.update()

        clock = threading.Thread(target=tick, daemon=True)
        clock.start()
        try:
            yield
        finally:
            done.set()
            clock.join()
