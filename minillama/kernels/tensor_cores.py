"""11c. Tensor cores: 16-row MMA tiles.

Written by notebooks/11c_tensor_cores.ipynb: edit it there.
"""

import torch

from minillama.inference.attention_backends import fused_attention
from minillama.kernels.attention import BASIC_KERNELS, MAX_SPLIT_ROWS, AttentionKernel, run_kernel
from minillama.kernels.flash_decoding import COMBINE_KERNEL, SPLIT
from minillama.kernels.mma import MMA_PREAMBLE, TILE_ATTENTION


TENSOR = r"""
template <typename N, int W, int M> __device__ void tensor_cores(const Problem &p) {
    const int KEYS = 64 / M, SIZE = 2 * KEYS * W / 8;             // SIZE: of a tile of keys and values, in 16 bytes
    uint4 *memory = shared_memory();                                 // two tiles: one is in use, one is being copied
    Rows<N> rows(p);
    int block = (gridDim.x - 1 - blockIdx.x) * 64 * M;               // the last rows see most: they go first
    int end = rows.visible(block + 64 * M - 1), tiles = (end + KEYS - 1) / KEYS;
    WarpAttention<N, W, M> warp(rows, block + threadIdx.x / 32 * 16 * M);
    load_tile_async<N, W, KEYS>(memory, rows, 0, end, threadIdx.x, 128);
    for (int i = 0; i < tiles; i++) {
        wait_groups<0>();
        __syncthreads();                                             // tile i is complete, and tile i - 1 done with
        uint4 *other = memory + (i + 1) % 2 * SIZE;
        if (i + 1 < tiles) load_tile_async<N, W, KEYS>(other, rows, (i + 1) * KEYS, end, threadIdx.x, 128);
        const uint4 *keys = memory + i % 2 * SIZE;
        warp.template attend_tile<KEYS>(keys, keys + SIZE / 2, i * KEYS);
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
                    *(unsigned *)(rows.output(row) + 8 * c + warp.lane % 4 * 2) =
                        pair<N>(share * warp.sum[m][c][2 * half], share * warp.sum[m][c][2 * half + 1]);
        }
}
"""


OPTIONS = {"preamble": MMA_PREAMBLE, "only_16_bits": True}
ATTENTION_KERNELS = BASIC_KERNELS | {
    "tensor": AttentionKernel(
        "tensor_cores<{}, {}, 1>", TILE_ATTENTION + TENSOR, 64, 64, **OPTIONS
    ),
    "wide": AttentionKernel("tensor_cores<{}, {}, 2>", TILE_ATTENTION + TENSOR, 128, 32, **OPTIONS),
    "split": AttentionKernel(
        "split<{}, {}>", TILE_ATTENTION + SPLIT, 0, 4 * 16, **OPTIONS, then=COMBINE_KERNEL
    ),
    "combine": COMBINE_KERNEL,
}


@fused_attention.register_kernel("cuda")
def fused_attention_cuda(q, k, v, length) -> torch.Tensor:
    """`fused_attention` on CUDA: split keys for few rows, tensor cores for many, tiles for float32."""
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    name = "tiles" if q.dtype == torch.float32 else "split" if rows <= MAX_SPLIT_ROWS else "wide"
    return run_kernel(ATTENTION_KERNELS[name], q, k, v, length)
