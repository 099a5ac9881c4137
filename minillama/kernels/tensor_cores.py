"""11c. Tensor cores: sixteen rows at a stroke.

Written by notebooks/11c_tensor_cores.ipynb: edit it there.
"""

import torch

from minillama.inference.attention_backends import fused
from minillama.kernels.attention import BASIC_KERNELS, FEW, AttentionKernel, run_kernel


TENSOR_CORES = r"""// c (16, 8) += a (16, 16) b (16, 8), by the 32 lanes of a warp together
template <typename N> __device__ void multiply(float *c, const unsigned *a, unsigned b0, unsigned b1);
#define MULTIPLY(N, TYPE)                                                                                   \
    template <> __device__ void multiply<N>(float *c, const unsigned *a, unsigned b0, unsigned b1) {        \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                                  \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                               \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                \
    }
MULTIPLY(bf16, "bf16")
MULTIPLY(f16, "f16")

__device__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// four 8 x 8 matrices of 16-bit numbers: lane l names row l % 8 of matrix l / 8, and gets of each matrix
// the numbers 2 (l % 4) and the next of row l / 4; turned: of its transpose
__device__ void fetch(unsigned *b, const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(shared_address(row)) : "memory");
}
__device__ void fetch_turned(unsigned *b, const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(shared_address(row)) : "memory");
}

// 16 bytes on their way into shared memory while the thread goes on; zeros instead if not wanted
__device__ void copy_later(uint4 *to, const uint4 *from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(wanted ? 16 : 0) : "memory");
}
__device__ void end_of_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory");
}

__device__ uint4 *shared_memory() { extern __shared__ uint4 memory[]; return memory; }
"""


LOOKING = r"""
// Row r of a tile in shared memory is W / 8 pieces of 16 bytes. Piece c lies at c ^ r % 8, so that the eight rows
// of a matrix, read at the same c, come from different banks.
template <int W> __device__ int place(int r, int c) { return r * (W / 8) + (c ^ (r & 7)); }

// What one warp knows of 16 * M rows: queries, weighted sums, the largest score and the total of the weights.
// Lane l holds, of 8 columns, numbers 2 (l % 4) and the next, in rows l / 4 and l / 4 + 8 of each 16.
template <typename N, int W, int M> struct Looking {
    unsigned q[M][W / 16][4];
    float sum[M][W / 8][4], largest[M][2], total[M][2];
    int visible[M][2], lane, least;
    float scale;

    __device__ Looking(const Rows<N> &rows, int first) {
        lane = threadIdx.x % 32;
        scale = rows.p.scale;
        least = rows.visible(first);
        #pragma unroll
        for (int m = 0; m < M; m++) {
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = first + 16 * m + 8 * half + lane / 4;
                const N *query = rows.query(min(row, rows.n - 1)) + 2 * (lane % 4);
                #pragma unroll
                for (int c = 0; c < W / 16; c++) {
                    q[m][c][half] = *(const unsigned *)(query + 16 * c);
                    q[m][c][half + 2] = *(const unsigned *)(query + 16 * c + 8);
                }
                visible[m][half] = rows.visible(row);
                largest[m][half] = NOTHING;
                total[m][half] = 0;
            }
            #pragma unroll
            for (int c = 0; c < W / 8; c++) for (int i = 0; i < 4; i++) sum[m][c][i] = 0;
        }
    }

    // look at KEYS keys from key s on, which lie with their values in shared memory
    template <int KEYS> __device__ void at(const uint4 *keys, const uint4 *values, int s) {
        float scores[M][KEYS / 8][4] = {};
        #pragma unroll
        for (int c = 0; c < W / 16; c++)
            #pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                unsigned b[4];
                fetch(b, keys + place<W>(16 * j + lane % 8 + lane / 16 * 8, 2 * c + lane / 8 % 2));
                #pragma unroll
                for (int m = 0; m < M; m++) {
                    multiply<N>(scores[m][2 * j], q[m][c], b[0], b[1]);
                    multiply<N>(scores[m][2 * j + 1], q[m][c], b[2], b[3]);
                }
            }
        if (s + KEYS > least) hide<KEYS>(scores, s);
        #pragma unroll
        for (int m = 0; m < M; m++) to_weights<KEYS>(scores[m], m);
        #pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            unsigned a[M][4];
            #pragma unroll
            for (int m = 0; m < M; m++)
                for (int i = 0; i < 4; i++) {
                    const float *two = scores[m][2 * j + i / 2] + i % 2 * 2;
                    a[m][i] = pair<N>(two[0], two[1]);
                }
            #pragma unroll
            for (int c = 0; c < W / 16; c++) {
                unsigned b[4];
                fetch_turned(b, values + place<W>(16 * j + lane % 16, 2 * c + lane / 16));
                #pragma unroll
                for (int m = 0; m < M; m++) {
                    multiply<N>(sum[m][2 * c], a[m], b[0], b[1]);
                    multiply<N>(sum[m][2 * c + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    template <int KEYS> __device__ void hide(float (*scores)[KEYS / 8][4], int s) const {
        #pragma unroll
        for (int m = 0; m < M; m++)
            #pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
                #pragma unroll
                for (int i = 0; i < 4; i++)
                    if (s + 8 * j + lane % 4 * 2 + i % 2 >= visible[m][i / 2]) scores[m][j][i] = NOTHING;
    }

    // scores become weights, relative to the largest so far; what was summed before shrinks
    template <int KEYS> __device__ void to_weights(float (*scores)[4], int m) {
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            float next = NOTHING;
            #pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
                next = fmaxf(next, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
            next = fmaxf(largest[m][half], over_lanes_max(next, 4));
            float shift = scale * finite(next), shrink = exp2f(scale * largest[m][half] - shift), added = 0;
            #pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
                #pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    scores[j][i] = exp2f(scale * scores[j][i] - shift);
                    added += scores[j][i];
                }
            total[m][half] = shrink * total[m][half] + added;       // of this lane's keys; summed over lanes at the end
            largest[m][half] = next;
            #pragma unroll
            for (int c = 0; c < W / 8; c++) {
                sum[m][c][2 * half] *= shrink;
                sum[m][c][2 * half + 1] *= shrink;
            }
        }
    }
};

// KEYS rows of keys and of values from row s on into shared memory, by `workers` threads; zeros from row `end` on
template <typename N, int W, int KEYS>
__device__ void load_later(uint4 *to, const Rows<N> &rows, int s, int end, int worker, int workers) {
    for (int i = worker; i < 2 * KEYS * W / 8; i += workers) {
        bool is_value = i >= KEYS * W / 8;
        int r = i / (W / 8) % KEYS, c = i % (W / 8);
        bool there = s + r < end;
        long long slot = there ? s + r : 0;
        const N *from = is_value ? rows.v + slot * rows.p.v_token : rows.k + slot * rows.p.k_token;
        copy_later(to + is_value * KEYS * W / 8 + place<W>(r, c), (const uint4 *)from + c, there);
    }
    end_of_group();
}

"""


TENSOR = r"""
template <typename N, int W, int M> __device__ void tensor_cores(const Problem &p) {
    const int KEYS = 64 / M, SIZE = 2 * KEYS * W / 8;             // SIZE: of a tile of keys and values, in 16 bytes
    uint4 *memory = shared_memory();                                 // two tiles: one is looked at, one is on its way
    Rows<N> rows(p);
    int block = (gridDim.x - 1 - blockIdx.x) * 64 * M;               // the last rows see most: they go first
    int end = rows.visible(block + 64 * M - 1), tiles = (end + KEYS - 1) / KEYS;
    Looking<N, W, M> warp(rows, block + threadIdx.x / 32 * 16 * M);
    load_later<N, W, KEYS>(memory, rows, 0, end, threadIdx.x, 128);
    for (int i = 0; i < tiles; i++) {
        wait_for_groups<0>();
        __syncthreads();                                             // tile i is complete, and tile i - 1 done with
        uint4 *other = memory + (i + 1) % 2 * SIZE;
        if (i + 1 < tiles) load_later<N, W, KEYS>(other, rows, (i + 1) * KEYS, end, threadIdx.x, 128);
        const uint4 *keys = memory + i % 2 * SIZE;
        warp.template at<KEYS>(keys, keys + SIZE / 2, i * KEYS);
    }
    #pragma unroll
    for (int m = 0; m < M; m++)
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = block + threadIdx.x / 32 * 16 * M + 16 * m + 8 * half + warp.lane / 4;
            float total = over_lanes_sum(warp.total[m][half], 4), share = total ? 1 / total : 0;
            if (row < rows.n)
                #pragma unroll
                for (int c = 0; c < W / 8; c++)
                    *(unsigned *)(rows.answer(row) + 8 * c + warp.lane % 4 * 2) =
                        pair<N>(share * warp.sum[m][c][2 * half], share * warp.sum[m][c][2 * half + 1]);
        }
}
"""


SPLIT = r"""
// At most 16 rows, as in decoding. Each block takes a part of the keys, each of its warps every fourth tile of it.
template <typename N, int W> __device__ void split(const Problem &p) {
    const int KEYS = 16, SIZE = 2 * KEYS * W / 8;
    Rows<N> rows(p);
    int lane = threadIdx.x % 32, w = threadIdx.x / 32;
    uint4 *memory = shared_memory() + 2 * SIZE * w;                  // each warp has two tiles of its own
    int end = rows.visible(rows.n - 1), tiles = (end + KEYS - 1) / KEYS;
    int part = (tiles + p.splits - 1) / p.splits, last = min(tiles, (int)(blockIdx.x + 1) * part);
    Looking<N, W, 1> warp(rows, 0);
    int i = blockIdx.x * part + w, turn = 0;
    if (i < last) load_later<N, W, KEYS>(memory, rows, i * KEYS, end, lane, 32);
    for (; i < last; i += 4, turn ^= 1) {
        bool more = i + 4 < last;
        if (more) load_later<N, W, KEYS>(memory + (turn ^ 1) * SIZE, rows, (i + 4) * KEYS, end, lane, 32);
        if (more) wait_for_groups<1>(); else wait_for_groups<0>();
        __syncwarp();
        warp.template at<KEYS>(memory + turn * SIZE, memory + turn * SIZE + SIZE / 2, i * KEYS);
        __syncwarp();
    }
    __syncthreads();                                                 // from here on the memory holds what warps found
    float *found = (float *)shared_memory();                         // (4 warps, 16 rows, W + 2)
    for (int half = 0; half < 2; half++) {
        float *mine = found + (w * 16 + 8 * half + lane / 4) * (W + 2);
        float total = over_lanes_sum(warp.total[0][half], 4);
        #pragma unroll
        for (int c = 0; c < W / 8; c++)
            for (int e = 0; e < 2; e++) mine[8 * c + lane % 4 * 2 + e] = warp.sum[0][c][2 * half + e];
        if (lane % 4 == 0) { mine[W] = p.scale * warp.largest[0][half]; mine[W + 1] = total; }
    }
    __syncthreads();
    float *partial = p.partial + ((blockIdx.z * gridDim.y + blockIdx.y) * p.splits + blockIdx.x) * 16 * (W + 2);
    for (int i = threadIdx.x; i < rows.n * (W + 2); i += 128) {
        int row = i / (W + 2), column = i % (W + 2);
        float largest = NOTHING, sum = 0;
        for (int w = 0; w < 4; w++) largest = fmaxf(largest, found[(w * 16 + row) * (W + 2) + W]);
        for (int w = 0; w < 4; w++) {
            const float *theirs = found + (w * 16 + row) * (W + 2);
            sum += exp2f(theirs[W] - finite(largest)) * theirs[column];
        }
        partial[i] = column == W ? largest : sum;
    }
}
"""


COMBINE = r"""
// What the parts of the keys found becomes one answer: a block per row, a thread per number
template <typename N, int W> __device__ void combine(const Problem &p) {
    Rows<N> rows(p);
    int row = blockIdx.x, column = threadIdx.x;
    const float *parts = p.partial + (blockIdx.z * gridDim.y + blockIdx.y) * p.splits * 16 * (W + 2) + row * (W + 2);
    float largest = NOTHING, total = 0, sum = 0;
    for (int i = 0; i < p.splits; i++) largest = fmaxf(largest, parts[i * 16 * (W + 2) + W]);
    for (int i = 0; i < p.splits; i++) {
        const float *part = parts + i * 16 * (W + 2);
        float share = exp2f(part[W] - finite(largest));
        sum += share * part[column];
        total += share * part[W + 1];
    }
    store(rows.answer(row) + column, total ? sum / total : 0);
}
"""


PUT_TOGETHER = AttentionKernel("combine<{}, {}>", COMBINE, 1, threads=None)
CORES = {"machine": TENSOR_CORES, "only_16_bits": True}
ATTENTION_KERNELS = BASIC_KERNELS | {
    "tensor": AttentionKernel("tensor_cores<{}, {}, 1>", LOOKING + TENSOR, 64, 64, **CORES),
    "wide": AttentionKernel("tensor_cores<{}, {}, 2>", LOOKING + TENSOR, 128, 32, **CORES),
    "split": AttentionKernel(
        "split<{}, {}>", LOOKING + SPLIT, 0, 4 * 16, **CORES, then=PUT_TOGETHER
    ),
    "combine": PUT_TOGETHER,
}


@fused.register_kernel("cuda")
def fused_on_cuda(q, k, v, length) -> torch.Tensor:
    """The rung that fits: split keys for few rows, tensor cores for many, tiles for float32."""
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    name = "tiles" if q.dtype == torch.float32 else "split" if rows <= FEW else "wide"
    return run_kernel(ATTENTION_KERNELS[name], q, k, v, length)
