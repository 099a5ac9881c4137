"""Write a few tokens in a fresh process and say, as one line of JSON, what ran there.

    python tests/without_triton.py DEVICE graph|inductor refuse|allow

graph: the steps as chapter 11d's one graph; inductor: the same steps through PyTorch's own
compiler, the control that shows what this report looks like where Triton does run. refuse: no
import of Triton succeeds, from before PyTorch's on. TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR
name empty folders.
"""

import json
import os
import sys
from pathlib import Path


device, way, triton = sys.argv[1:]
if triton == "refuse":
    # to Python, a module that cannot be imported, nor anything inside it
    sys.modules["triton"] = None

import torch  # noqa: E402  (after the line above, on purpose)
from torch._inductor import metrics  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import minillama  # noqa: E402
from minillama.inference.attention_backends import use_attention  # noqa: E402
from minillama.inference.decode_graph import GraphStep, RecordedStep, through_block  # noqa: E402


def model_of_64_bit_heads() -> minillama.Llama:
    """Two random layers whose heads, 64 numbers wide, every kernel knows."""
    torch.manual_seed(0)
    cfg = minillama.LlamaConfig(256, 2, 4, 2, 64, 512, 128)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return minillama.Llama(cfg).eval().requires_grad_(False).to(device, dtype)


def write(model, cache, tokens=4) -> None:
    """A prompt of nine tokens, and greedily some more."""
    ids = torch.arange(9, device=device)[None]
    for _ in range(tokens):
        ids = model(ids, cache)[:, -1:].argmax(-1)


class ThroughInductor(GraphStep):
    """The same steps, each block compiled by PyTorch's own compiler."""

    def __init__(self, model):
        super().__init__(model)
        self.block = torch.compile(through_block, fullgraph=True, dynamic=False)


def files(variable: str) -> int:
    """How many files lie in the folder that the variable names."""
    return sum(path.is_file() for path in Path(os.environ[variable]).rglob("*"))


def main() -> None:
    model = use_attention(model_of_64_bit_heads(), "fused")
    model.decode_step = (GraphStep if way == "graph" else ThroughInductor)(model)
    cache = minillama.KVCache(model.cfg, 1, 32, model.dtype, device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    said = {"error": None}
    with torch.inference_mode(), profile(activities=activities) as seen:
        try:
            write(model, cache)
        except Exception as error:
            said["error"] = f"{type(error).__name__}: {error}"
    said["steps"] = sum(count for name, count in model.ran.items() if "graph" in name)
    said["graphs"] = sum(
        isinstance(step, RecordedStep) and step.graph is not None
        for step in model.decode_step.steps.values()
    )
    said["events"] = sorted({event.name for event in seen.events()})
    said["inductor_kernels"] = metrics.generated_kernel_count
    said["triton_files"], said["inductor_files"] = (
        files("TRITON_CACHE_DIR"),
        files("TORCHINDUCTOR_CACHE_DIR"),
    )
    said["triton_modules"] = sum(
        name.split(".")[0] == "triton" and bool(m) for name, m in list(sys.modules.items())
    )
    print(json.dumps(said))


if __name__ == "__main__":
    main()
