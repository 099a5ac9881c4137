"""Another processor, pretended: the last digits of floating-point results are turned over.

As PYTHONSTARTUP of a notebook's kernel, with MINILLAMA_ROUNDING=1 (or 2, 3 ...: other digits), it
changes whatever a cell prints or asserts beyond what holds on every processor. Sums and products
differ by up to three units in the last place, functions such as exp by one, equal numbers alike.
Numbers that end in eight zero bits stay: what is exact on one processor (toy numbers, whole
numbers) is exact on all.
"""

import os

import torch
from torch.utils._python_dispatch import TorchDispatchMode


SUMS = "mm addmm bmm baddbmm mv dot sum mean var std linalg_vector_norm nll_loss_forward".split()
SUMS += [
    "_scaled_dot_product_flash_attention_for_cpu",
    "_weight_int4pack_mm_for_cpu",
    "_weight_int8pack_mm",
]
FUNCTIONS = "_softmax _log_softmax logsumexp exp log sin cos rsqrt pow silu silu_backward sigmoid tanh".split()
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


class OtherRounding(TorchDispatchMode):
    """Every operation of the two lists, forward and backward, rounds a little differently."""

    def __init__(self, salt: int):
        super().__init__()
        self.salt, self.units = salt, dict.fromkeys(SUMS, 3) | dict.fromkeys(FUNCTIONS, 1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        units = self.units.get(func._schema.name.partition("::")[2])
        for tensor in result if isinstance(result, tuple) else (result,):
            if units and isinstance(tensor, torch.Tensor) and tensor.dtype in BITS:
                self.turn(tensor, units)
        return result

    def turn(self, tensor: torch.Tensor, units: int) -> None:
        """Change up to the last two bits, in place, but not those of what looks exact."""
        bits = tensor.detach().view(BITS[tensor.dtype])
        mixed = ((bits >> 2) ^ self.salt) * 1_640_531_513 >> 13
        bits ^= (mixed & units) * (bits & 255 != 0)


if os.environ.get("MINILLAMA_ROUNDING"):
    OtherRounding(int(os.environ["MINILLAMA_ROUNDING"])).__enter__()
