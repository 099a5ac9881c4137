"""Llama 3.1 from scratch. The names below follow the data: text, ids, vectors, blocks, logits,
sampled id.
"""

import minillama.kernels.tensor_cores  # noqa: F401  (tells PyTorch that attention has a kernel for CUDA; compiles nothing)
from minillama import chat
from minillama.attention import Attention
from minillama.checkpoints import hub
from minillama.checkpoints.files import CheckpointError
from minillama.checkpoints.hugging_face_writer import save_hugging_face as save
from minillama.config import LlamaConfig, RopeScaling
from minillama.feedforward import FeedForward
from minillama.generation import Statistics, generate, generate_batch, sample
from minillama.inference.loading import load
from minillama.inference.speculation import speculate
from minillama.kv_cache import KVCache
from minillama.model import Block, Llama
from minillama.rmsnorm import RMSNorm
from minillama.tokenizer import Tokenizer


__all__ = [
    "LlamaConfig",
    "RopeScaling",
    "Tokenizer",
    "chat",
    "hub",
    "RMSNorm",
    "Attention",
    "FeedForward",
    "Block",
    "Llama",
    "KVCache",
    "load",
    "save",
    "CheckpointError",
    "sample",
    "generate",
    "generate_batch",
    "speculate",
    "Statistics",
]
__version__ = "0.1.0"
