"""11c. Tensor cores: 16-row MMA tiles.

Written by notebooks/11c_tensor_cores.ipynb: edit it there.
"""

from minillama.kernels.attention import AttentionKernel


SPLIT = r"""
// At most 16 rows, as in decoding. Each block takes a part of the keys, each of its warps every fourth tile of it.
template <typename N, int W> __device__ void split(const Problem &p) {
    const int KEYS = 16, SIZE = 2 * KEYS * W / 8;
    Rows<N> rows(p);
    int lane = threadIdx.x % 32, w = threadIdx.x / 32;
    uint4 *memory = shared_memory() + 2 * SIZE * w;                  // each warp has two tiles of its own
    int end = rows.visible(rows.n - 1), tiles = (end + KEYS - 1) / KEYS;
    int part = (tiles + p.splits - 1) / p.splits, last = min(tiles, (int)(blockIdx.x + 1) * part);
    WarpAttention<N, W, 1> warp(rows, 0);
    int i = blockIdx.x * part + w, turn = 0;
    if (i < last) load_tile_async<N, W, KEYS>(memory, rows, i * KEYS, end, lane, 32);
    for (; i < last; i += 4, turn ^= 1) {
        bool more = i + 4 < last;
        if (more) load_tile_async<N, W, KEYS>(memory + (turn ^ 1) * SIZE, rows, (i + 4) * KEYS, end, lane, 32);
        if (more) wait_groups<1>(); else wait_groups<0>();
        __syncwarp();
        warp.template attend_tile<KEYS>(memory + turn * SIZE, memory + turn * SIZE + SIZE / 2, i * KEYS);
        __syncwarp();
    }
    __syncthreads();                                                 // from here on the memory holds the warps' partial results
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
        float largest = MINUS_INFINITY, sum = 0;
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
// Combine the partial results of all parts of the keys: a block per row, a thread per element
template <typename N, int W> __device__ void combine(const Problem &p) {
    Rows<N> rows(p);
    int row = blockIdx.x, column = threadIdx.x;
    const float *parts = p.partial + (blockIdx.z * gridDim.y + blockIdx.y) * p.splits * 16 * (W + 2) + row * (W + 2);
    float largest = MINUS_INFINITY, total = 0, sum = 0;
    for (int i = 0; i < p.splits; i++) largest = fmaxf(largest, parts[i * 16 * (W + 2) + W]);
    for (int i = 0; i < p.splits; i++) {
        const float *part = parts + i * 16 * (W + 2);
        float share = exp2f(part[W] - finite(largest));
        sum += share * part[column];
        total += share * part[W + 1];
    }
    store(rows.output(row) + column, total ? sum / total : 0);
}
"""


COMBINE_KERNEL = AttentionKernel("combine<{}, {}>", COMBINE, 1, threads=None)
