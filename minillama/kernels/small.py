"""11a. CUDA: one program, a thousand threads.

Written by notebooks/11a_cuda.ipynb: edit it there.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F

from minillama.kernels.cuda import LANES, Kernel, c_name, struct
from minillama.rope import apply_rope


SWIGLU = r"""
struct Problem { const void *gate, *up; void *out; long long n; };

template <typename N> __device__ void swiglu(const Problem &p) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.n) return;
    float gate = to_float(((const N *)p.gate)[i]), up = to_float(((const N *)p.up)[i]);
    N rounded;                                     // as in PyTorch, where silu is a separate operation
    store(&rounded, gate / (1 + expf(-gate)));
    store((N *)p.out + i, to_float(rounded) * up);
}
"""


NORM = r"""
struct Problem { const void *x, *weight; void *out; int dim; float eps; };

template <typename N> __device__ void norm(const Problem &p) {
    __shared__ float sums[8];
    const N *x = (const N *)p.x + (long long)blockIdx.x * p.dim, *weight = (const N *)p.weight;
    N *out = (N *)p.out + (long long)blockIdx.x * p.dim;
    float sum = 0;
    for (int i = threadIdx.x; i < p.dim; i += 256) { float y = to_float(x[i]); sum += y * y; }
    sum = over_lanes_sum(sum, 32);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < 8; w++) sum += sums[w];
    float scale = rsqrtf(sum / p.dim + p.eps);
    for (int i = threadIdx.x; i < p.dim; i += 256) {
        N rounded;
        store(&rounded, to_float(x[i]) * scale);
        store(out + i, to_float(rounded) * to_float(weight[i]));
    }
}
"""


ROPE = r"""
struct Problem {
    const void *x; const float *cos, *sin; void *out;
    long long batch, head, token;                  // strides of x; out lies (B, T, heads, W)
    int heads, tokens, half;                       // half: W / 2 pairs
};

template <typename N> __device__ void rope(const Problem &p) {
    int t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, i = threadIdx.x;
    const N *x = (const N *)p.x + b * p.batch + h * p.head + t * p.token + 2 * i;
    N *out = (N *)p.out + (((long long)b * p.tokens + t) * p.heads + h) * 2 * p.half + 2 * i;
    float even = to_float(x[0]), odd = to_float(x[1]), c = p.cos[t * p.half + i], s = p.sin[t * p.half + i];
    store(out, even * c - odd * s);
    store(out + 1, even * s + odd * c);
}
"""


@cache
def swiglu_kernel(dtype) -> Kernel:
    """SwiGLU for one type."""
    return Kernel(
        SWIGLU, f"swiglu<{c_name(dtype)}>", struct(pointers="gate up out", longs="n"), 256
    )


@torch.library.custom_op("minillama::swiglu", mutates_args=(), device_types="cpu")
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, element by element, in one pass over memory."""
    return F.silu(gate) * up


@swiglu.register_fake
def _(gate, up):
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@swiglu.register_kernel("cuda")
def _(gate, up):
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    with torch.cuda.device(gate.device):
        swiglu_kernel(gate.dtype).launch(
            (math.ceil(gate.numel() / 256), 1, 1), gate, up, out, gate.numel()
        )
    return out


@cache
def norm_kernel(dtype) -> Kernel:
    """RMSNorm for one type."""
    problem = struct(pointers="x weight out", ints="dim", floats="eps")
    return Kernel(LANES + NORM, f"norm<{c_name(dtype)}>", problem, 256)


@torch.library.custom_op("minillama::norm", mutates_args=(), device_types="cpu")
def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of the last dimension (..., D) by weight (D,), in one kernel."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


@norm.register_fake
def _(x, weight, eps):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@norm.register_kernel("cuda")
def _(x, weight, eps):
    x = x.contiguous()
    out, dim = torch.empty_like(x), x.shape[-1]
    with torch.cuda.device(x.device):
        norm_kernel(x.dtype).launch((x.numel() // dim, 1, 1), x, weight, out, dim, eps)
    return out


@cache
def rope_kernel(dtype, width: int) -> Kernel:
    """RoPE for one type and width of heads."""
    problem = struct(pointers="x cos sin out", longs="batch head token", ints="heads tokens half")
    return Kernel(ROPE, f"rope<{c_name(dtype)}>", problem, width // 2)


@torch.library.custom_op("minillama::rope", mutates_args=(), device_types="cpu")
def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """apply_rope in one kernel: x (B, heads, T, W), cos and sin (T, W/2) float32 -> (B, heads, T,
    W)
    """
    return empty_rotated(x).copy_(apply_rope(x, cos, sin))


@rope.register_fake
def empty_rotated(x, cos=None, sin=None):
    """An uninitialized output of rope (B, heads, T, W), a token's heads contiguous in memory."""
    B, heads, T, W = x.shape
    return x.new_empty(B, T, heads, W).transpose(1, 2)


@rope.register_kernel("cuda")
def _(x, cos, sin):
    B, heads, T, W = x.shape
    x, cos, sin, out = (
        x if x.stride(-1) == 1 else x.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        empty_rotated(x),
    )
    with torch.cuda.device(x.device):
        values = (x, cos, sin, out, *x.stride()[:3], heads, T, W // 2)
        rope_kernel(x.dtype, W).launch((T, heads, B), *values)
    return out
