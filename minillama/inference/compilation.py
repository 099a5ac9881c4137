"""12a. Compilation: a step as one program.

Written by notebooks/12a_compilation.ipynb: edit it there.
"""

import hashlib
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import minillama
from minillama.checkpoints.atomic import put_in_place
from minillama.inference.block_step import BlockStep, BlockSteps, named_weights
from minillama.kv_cache import KVCache
from minillama.model import Llama


class WithWeights(nn.Module):
    """A module whose weights are arguments, so that one compiled function serves all modules of its
    form.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.hidden = [module]  # subtle: in a list, so that its weights are not found

    def forward(self, weights: dict[str, torch.Tensor], *args):
        return torch.func.functional_call(self.hidden[0], weights, args)


def export(steps: BlockSteps, example: tuple) -> torch.export.ExportedProgram:
    """The graph of `steps`, good for every length, capacity and weight. example: inputs of
    BlockSteps.forward.
    """
    capacity, weights = torch.export.Dim("capacity", min=2), named_weights(steps)
    shapes = ({name: None for name in weights}, (None, None, {2: capacity}, {2: capacity}))
    with torch.no_grad():
        return torch.export.export(WithWeights(steps), (weights, *example), dynamic_shapes=shapes)


class CompileError(RuntimeError):
    """This machine cannot compile, or not this model; one line that says why."""


def build(steps: BlockSteps, example: tuple, path: Path) -> None:
    """Compile for this processor and write the package; CompileError leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about PyTorch's own insides
            made = torch._inductor.aoti_compile_and_package(
                export(steps, example), package_path=f"{scratch}/steps.pt2"
            )
            put_in_place(Path(made), path)
    except Exception as error:  # subtle: the compilers' errors have no type in common
        raise CompileError(str(error).strip().partition("\n")[0] or type(error).__name__) from error


def package_name(steps: BlockSteps, dtype: torch.dtype) -> str:
    """A file name, another one wherever the code may be: sources, PyTorch, processor, threads,
    types, shapes.
    """
    sources = [path.read_bytes() for path in sorted(Path(minillama.__file__).parent.rglob("*.py"))]
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    machine = (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        flags,
        torch.get_num_threads(),
    )
    forms = [(name, t.dtype, tuple(t.shape)) for name, t in named_weights(steps).items()]
    return (
        hashlib.sha256(repr((machine, dtype, steps.cfg, forms, sources)).encode()).hexdigest()[:24]
        + ".pt2"
    )


class CompiledStep:
    """A model's decode step, compiled for the processor."""

    def __init__(self, model: Llama, folder: Path, whole: bool = False):
        """Compile one block, to serve as every block, or all blocks as one function (`whole`).

        What lies compiled in the folder is not compiled again. CompileError; the model works as
        before.
        """
        self.model, self.dtype = model, model.dtype
        if model.device.type != "cpu":
            raise CompileError("only models on the CPU are compiled")
        steps = [BlockStep(block) for block in model.blocks]
        self.size = len(steps) if whole else 1
        parts = [
            BlockSteps(model.cfg, steps[i : i + self.size]) for i in range(0, len(steps), self.size)
        ]
        self.weights = [list(named_weights(part).values()) for part in parts]
        names = {package_name(part, self.dtype) for part in parts}
        if len(names) > 1:
            raise CompileError("the blocks have weights of different forms")
        self.run = self.load(folder / names.pop(), parts[0])

    def load(self, path: Path, steps: BlockSteps):
        """The compiled function of a package, which is made if it is not there or damaged."""
        cache = KVCache(self.model.cfg, 1, 64, self.dtype)
        example = self.model.embedding(torch.tensor([0])).detach(), torch.tensor([9])
        past = [t[: self.size, 0] for t in (cache.keys, cache.values)]
        for fresh in (False, True):
            if fresh or not path.exists():
                build(steps, (*example, *past), path)
            try:
                return torch._inductor.aoti_load_package(str(path)).loader.run
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
        raise CompileError(f"{path} cannot be loaded: {reason}")

    def supports(self, cache: KVCache) -> bool:
        """Whether compiled code can read it: one row without padding, a past, the type, the order
        in memory.
        """
        keys, one_row = cache.keys, cache.keys.shape[1] == 1 and cache.padding is None
        return one_row and cache.length > 0 and keys.dtype == self.dtype and keys.is_contiguous()

    def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """One token after a past: (1, 1) -> (1, 1, D)"""
        cache.reserve(1, 1)
        x, length = self.model.embedding(token[0]), torch.tensor([cache.length])
        keys, values = cache.keys[:, 0], cache.values[:, 0]  # (L, K, capacity, W)
        for weights, k, v in zip(
            self.weights, keys.split(self.size), values.split(self.size), strict=True
        ):
            x, k[:, :, cache.length], v[:, :, cache.length] = self.run([*weights, x, length, k, v])
        cache.length += 1
        self.model.ran["compiled"] += 1
        return self.model.norm(x)[None]
