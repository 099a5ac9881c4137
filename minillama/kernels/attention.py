"""11b. A kernel for attention: one warp, then many with one tile.

Written by notebooks/11b_attention_kernels.ipynb: edit it there.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch

from minillama.inference.attention_backends import empty_output
from minillama.kernels.cuda import C_NAMES, LANES, TYPES_CPP, CudaError, Kernel, struct


PROBLEM_CPP = r"""
struct Problem {
    const void *q, *k, *v;
    void *out;
    const int *length;                  // keys in use, on the device
    float *partial;                     // (B, K, splits, 16, W + 2): only where keys are split
    long long q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, o_batch, o_head, o_token;
    int group, queries, splits;         // G, T, parts that the keys are split into
    float scale;                        // log2(e) / sqrt(W): exp(x) is exp2(x log2(e)), and exp2 is one instruction
};

#define MINUS_INFINITY (-__int_as_float(0x7f800000))  // minus infinity: the largest of no scores

// The rows of a kv head: its G query heads are more queries to the same keys; row = t * G + g
template <typename N> struct Rows {
    const N *q, *k, *v;
    N *out;
    int n, visible_to_first;
    const Problem &p;
    __device__ Rows(const Problem &p) : p(p) {
        int head = blockIdx.y, batch = blockIdx.z;
        q = (const N *)p.q + batch * p.q_batch + head * p.group * p.q_head;
        k = (const N *)p.k + batch * p.k_batch + head * p.k_head;
        v = (const N *)p.v + batch * p.v_batch + head * p.v_head;
        out = (N *)p.out + batch * p.o_batch + head * p.group * p.o_head;
        n = p.queries * p.group;
        visible_to_first = *p.length - p.queries + 1;
    }
    __device__ const N *query(int row) const { return q + row % p.group * p.q_head + row / p.group * p.q_token; }
    __device__ N *output(int row) const { return out + row % p.group * p.o_head + row / p.group * p.o_token; }
    __device__ int visible(int row) const { return visible_to_first + min(row, n - 1) / p.group; }  // keys before this
};

__device__ float finite(float x) { return x == MINUS_INFINITY ? 0 : x; }
"""


WARP = r"""
template <typename N, int W> __device__ void warp_per_query(const Problem &p) {
    Rows<N> rows(p);
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows.n) return;
    float q[W / 32], sum[W / 32] = {}, largest = MINUS_INFINITY, total = 0;
    for (int i = 0; i < W / 32; i++) q[i] = p.scale * to_float(rows.query(row)[lane + 32 * i]);
    for (int s = 0; s < rows.visible(row); s++) {
        const N *key = rows.k + s * p.k_token, *value = rows.v + s * p.v_token;
        float score = 0;
        for (int i = 0; i < W / 32; i++) score += q[i] * to_float(key[lane + 32 * i]);
        score = over_lanes_sum(score, 32);
        float next = fmaxf(largest, score);
        float shrink = exp2f(largest - next), weight = exp2f(score - next);
        total = shrink * total + weight;
        for (int i = 0; i < W / 32; i++) sum[i] = shrink * sum[i] + weight * to_float(value[lane + 32 * i]);
        largest = next;
    }
    for (int i = 0; i < W / 32; i++) store(rows.output(row) + lane + 32 * i, total ? sum[i] / total : 0);
}
"""


TILES = r"""
template <typename N, int W> __device__ void tiles(const Problem &p) {
    const int KEYS = 32, MINE = 4;                                   // keys of a tile; rows of a warp
    __shared__ float queries[4 * MINE][W], keys[KEYS][W + 1], values[KEYS][W];  // + 1: lanes read different banks
    Rows<N> rows(p);
    int lane = threadIdx.x % 32, first = blockIdx.x * 4 * MINE, mine = threadIdx.x / 32 * MINE;
    float sum[MINE][W / 32] = {}, largest[MINE], total[MINE] = {};
    for (int r = 0; r < MINE; r++) largest[r] = MINUS_INFINITY;
    for (int i = threadIdx.x; i < 4 * MINE * W; i += 128)
        queries[i / W][i % W] = first + i / W < rows.n ? p.scale * to_float(rows.query(first + i / W)[i % W]) : 0;
    int end = rows.visible(first + 4 * MINE - 1);
    for (int s = 0; s < end; s += KEYS) {
        __syncthreads();                                             // everyone is done with the last tile
        for (int i = threadIdx.x; i < KEYS * W; i += 128) {
            bool there = s + i / W < end;
            keys[i / W][i % W] = there ? to_float(rows.k[(s + i / W) * p.k_token + i % W]) : 0;
            values[i / W][i % W] = there ? to_float(rows.v[(s + i / W) * p.v_token + i % W]) : 0;
        }
        __syncthreads();                                             // the tile is complete
        #pragma unroll
        for (int r = 0; r < MINE; r++) {
            float score = 0;                                         // this lane's key, all its elements
            for (int i = 0; i < W; i++) score += queries[mine + r][i] * keys[lane][i];
            if (s + lane >= rows.visible(first + mine + r)) score = MINUS_INFINITY;
            float next = fmaxf(largest[r], over_lanes_max(score, 32));
            float shrink = exp2f(largest[r] - finite(next)), weight = exp2f(score - finite(next));
            total[r] = shrink * total[r] + over_lanes_sum(weight, 32);
            for (int i = 0; i < W / 32; i++) sum[r][i] *= shrink;
            for (int j = 0; j < KEYS; j++) {
                float w = __shfl_sync(~0u, weight, j);               // key j's weight; this lane's elements of its value
                for (int i = 0; i < W / 32; i++) sum[r][i] += w * values[j][lane + 32 * i];
            }
            largest[r] = next;
        }
    }
    #pragma unroll
    for (int r = 0; r < MINE; r++)
        if (first + mine + r < rows.n)
            for (int i = 0; i < W / 32; i++)
                store(rows.output(first + mine + r) + lane + 32 * i, total[r] ? sum[r][i] / total[r] : 0);
}
"""


@dataclass(frozen=True)
class AttentionKernel:
    """One of the attention kernels: its C++ entry point, its source and what a launch needs."""

    entry: str
    source: str
    rows: int = 0  # rows of a block; 0: a block looks at all rows, and at one part of the keys
    keys: int = 0  # keys of its tiles in dynamic shared memory
    threads: int | None = 128  # None: as many as a head is wide
    preamble: str = ""  # C++ before its source, after TYPES_CPP
    only_16_bits: bool = False
    then: "AttentionKernel | None" = None  # the kernel that finishes its work


BASIC_KERNELS = {
    "warp": AttentionKernel("warp_per_query<{}, {}>", WARP, rows=4),
    "tiles": AttentionKernel("tiles<{}, {}>", TILES, rows=16),
}
WIDTHS, MAX_SPLIT_ROWS = (64, 128), 16  # widths of a head; rows up to which the keys can be split

PROBLEM = struct(
    pointers="q k v out length partial",
    longs=" ".join(f"{x}_{step}" for x in "qkvo" for step in ("batch", "head", "token")),
    ints="group queries splits",
    floats="scale",
)


@cache
def instantiate(variant: AttentionKernel, dtype: torch.dtype, width: int) -> Kernel:
    """The template for one type and width of heads, not yet compiled."""
    shared = 2 * 2 * variant.keys * width * 2  # two tiles of keys and of values, 16 bits each
    body = LANES + PROBLEM_CPP + variant.source
    return Kernel(
        body,
        variant.entry.format(C_NAMES[dtype], width),
        PROBLEM,
        variant.threads or width,
        shared,
        TYPES_CPP + variant.preamble,
    )


def check_problem(q, k, v, length, variant: AttentionKernel) -> None:
    """CudaError for arguments that a kernel does not support."""
    name, width, rows = (
        variant.entry.partition("<")[0],
        q.shape[-1],
        q.shape[1] // k.shape[1] * q.shape[2],
    )
    narrow = (torch.bfloat16, torch.float16)
    types = narrow if variant.only_16_bits else (*narrow, torch.float32)
    if width not in WIDTHS or q.dtype not in types or not q.dtype == k.dtype == v.dtype:
        bits = "16 bits" if variant.only_16_bits else "16 or 32 bits"
        raise CudaError(
            f"the {name} kernel supports heads of {WIDTHS} elements with {bits}, not {width} of "
            f"{q.dtype}"
        )
    if not variant.rows and rows > MAX_SPLIT_ROWS:
        raise CudaError(f"the {name} kernel takes up to {MAX_SPLIT_ROWS} rows, not {rows}")
    if length.dtype != torch.int32 or any(x.device != q.device for x in (k, v, length)):
        raise CudaError(
            "the length must be int32, and lie on the device of the queries, keys and values"
        )
    for x in (q, k, v):
        steps, item = x.stride(), x.element_size()
        if steps[-1] != 1 or any(step * item % 16 for step in steps[:3]) or x.data_ptr() % 16:
            raise CudaError(
                "a head's elements must be contiguous in memory and start at a multiple of 16 bytes"
            )


def launches(variant: AttentionKernel, q, k, v, length, splits=1) -> tuple[torch.Tensor, list]:
    """The output, not yet filled, and what to launch: (kernel, grid, values of its Problem), ..."""
    check_problem(q, k, v, length, variant)
    B, H, T, W, K = *q.shape, k.shape[1]
    rows, out = H // K * T, empty_output(q)
    partial = q.new_empty(
        (B, K, splits, MAX_SPLIT_ROWS, W + 2) if variant.then else 0, dtype=torch.float32
    )
    steps = [step for x in (q, k, v, out) for step in x.stride()[:3]]
    values = (
        q,
        k,
        v,
        out,
        length,
        partial,
        *steps,
        H // K,
        T,
        splits,
        math.log2(math.e) / math.sqrt(W),
    )
    variants = [each for each in (variant, variant.then) if each]
    blocks = [math.ceil(rows / each.rows) if each.rows else splits for each in variants]
    return out, [
        (instantiate(each, q.dtype, W), (n, K, B), values)
        for each, n in zip(variants, blocks, strict=True)
    ]


def run_kernel(variant: AttentionKernel, q, k, v, length) -> torch.Tensor:
    """Attention by one kernel, as `fused_attention`: q (B, H, T, W), k and v (B, K, S, W), length
    (1,) int32, all on one GPU.
    """
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    # so that each has two blocks to work on
    splits = max(1, 2 * processors // (len(q) * k.shape[1]))
    with torch.cuda.device(q.device):
        out, todo = launches(variant, q, k, v, length, splits)
        for each, grid, values in todo:
            each.launch(grid, *values)
    return out
