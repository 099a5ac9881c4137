"""11c. Tensor cores: 16-row MMA tiles.

Written by notebooks/11c_tensor_cores.ipynb: edit it there.
"""

MMA_PREAMBLE = r"""// c (16, 8) += a (16, 16) b (16, 8), by the 32 lanes of a warp together
template <typename N> __device__ void mma(float *c, const unsigned *a, unsigned b0, unsigned b1);
#define DEFINE_MMA(N, TYPE)                                                                                   \
    template <> __device__ void mma<N>(float *c, const unsigned *a, unsigned b0, unsigned b1) {        \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                                  \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                               \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                \
    }
DEFINE_MMA(bf16, "bf16")
DEFINE_MMA(f16, "f16")

__device__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// four 8 x 8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8, and gets of each matrix
// the elements 2 (l % 4) and the next of row l / 4, or of its transpose
__device__ void load_matrix(unsigned *b, const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(shared_address(row)) : "memory");
}
__device__ void load_matrix_transposed(unsigned *b, const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(shared_address(row)) : "memory");
}

// copy 16 bytes into shared memory asynchronously; zeros instead if not wanted
__device__ void copy_async(uint4 *to, const uint4 *from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(wanted ? 16 : 0) : "memory");
}
__device__ void commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ void wait_groups() {
    asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory");
}

__device__ uint4 *shared_memory() { extern __shared__ uint4 memory[]; return memory; }
"""


TILE_ATTENTION = r"""
// Row r of a tile in shared memory is W / 8 pieces of 16 bytes. Piece c lies at c ^ r % 8, so that the eight rows
// of a matrix, read at the same c, come from different banks.
template <int W> __device__ int place(int r, int c) { return r * (W / 8) + (c ^ (r & 7)); }

// The online softmax of one warp's 16 * M rows: queries, weighted sums, largest scores and totals of weights.
// Lane l holds, of 8 columns, elements 2 (l % 4) and the next, in rows l / 4 and l / 4 + 8 of each 16.
template <typename N, int W, int M> struct WarpAttention {
    unsigned q[M][W / 16][4];
    float sum[M][W / 8][4], largest[M][2], total[M][2];
    int visible[M][2], lane, least;
    float scale;

    __device__ WarpAttention(const Rows<N> &rows, int first) {
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
                largest[m][half] = MINUS_INFINITY;
                total[m][half] = 0;
            }
            #pragma unroll
            for (int c = 0; c < W / 8; c++) for (int i = 0; i < 4; i++) sum[m][c][i] = 0;
        }
    }

    // attend to KEYS keys from key s on, which lie with their values in shared memory
    template <int KEYS> __device__ void attend_tile(const uint4 *keys, const uint4 *values, int s) {
        float scores[M][KEYS / 8][4] = {};
        #pragma unroll
        for (int c = 0; c < W / 16; c++)
            #pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                unsigned b[4];
                load_matrix(b, keys + place<W>(16 * j + lane % 8 + lane / 16 * 8, 2 * c + lane / 8 % 2));
                #pragma unroll
                for (int m = 0; m < M; m++) {
                    mma<N>(scores[m][2 * j], q[m][c], b[0], b[1]);
                    mma<N>(scores[m][2 * j + 1], q[m][c], b[2], b[3]);
                }
            }
        if (s + KEYS > least) mask_scores<KEYS>(scores, s);
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
                load_matrix_transposed(b, values + place<W>(16 * j + lane % 16, 2 * c + lane / 16));
                #pragma unroll
                for (int m = 0; m < M; m++) {
                    mma<N>(sum[m][2 * c], a[m], b[0], b[1]);
                    mma<N>(sum[m][2 * c + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    template <int KEYS> __device__ void mask_scores(float (*scores)[KEYS / 8][4], int s) const {
        #pragma unroll
        for (int m = 0; m < M; m++)
            #pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
                #pragma unroll
                for (int i = 0; i < 4; i++)
                    if (s + 8 * j + lane % 4 * 2 + i % 2 >= visible[m][i / 2]) scores[m][j][i] = MINUS_INFINITY;
    }

    // scores become weights, relative to the largest so far; what was summed before shrinks
    template <int KEYS> __device__ void to_weights(float (*scores)[4], int m) {
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            float next = MINUS_INFINITY;
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
__device__ void load_tile_async(uint4 *to, const Rows<N> &rows, int s, int end, int worker, int workers) {
    for (int i = worker; i < 2 * KEYS * W / 8; i += workers) {
        bool is_value = i >= KEYS * W / 8;
        int r = i / (W / 8) % KEYS, c = i % (W / 8);
        bool there = s + r < end;
        long long slot = there ? s + r : 0;
        const N *from = is_value ? rows.v + slot * rows.p.v_token : rows.k + slot * rows.p.k_token;
        copy_async(to + is_value * KEYS * W / 8 + place<W>(r, c), (const uint4 *)from + c, there);
    }
    commit_group();
}

"""
