// What a CUDA kernel needs of the hardware, emulated on the CPU: the threads of a block are fibers that run one after
// the other, in an order drawn from a seed, each until it has to wait for others. Asynchronous copies arrive as late as they may.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;
using std::min; using std::max;

struct Copy { uint4 *to; const uint4 *from; bool wanted; };
struct Fiber {
    ucontext_t context; bool done = false;
    int barrier = 0, meeting = 0;                       // how many it has arrived at
    std::vector<std::vector<Copy>> groups{1};
};
struct Meeting { unsigned in[32][12]; const uint4 *row[32]; };
static std::vector<Fiber> fibers; static std::vector<char> stacks;  // 64 KiB each
static Meeting meetings[32];
static ucontext_t scheduler;
static int current, fault;                              // fault: 0, or a number of FAULTS in cuda_on_cpu.py
static std::mt19937 drawn;
static std::function<void()> body;

static void pause_here() { int me = current; swapcontext(&fibers[me].context, &scheduler); current = me; threadIdx = {(unsigned)me, 0, 0}; }
static void all_arrive(int Fiber::*where, int first, int n) {
    int mine = ++(fibers[current].*where);
    for (;;) {
        bool all = true;
        for (int i = first; i < first + n && i < (int)fibers.size(); i++) {
            if (fibers[i].done && fibers[i].*where < mine) fault = 1;
            all = all && (fibers[i].*where >= mine || fibers[i].done);
        }
        if (all) return;
        pause_here();
    }
}
static void __syncthreads() { all_arrive(&Fiber::barrier, 0, fibers.size()); }
static void __syncwarp() { all_arrive(&Fiber::meeting, current / 32 * 32, 32); }

static float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static unsigned as_bits(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static float rsqrtf(float x) { return 1 / sqrtf(x); }
static float __int_as_float(int x) { return __uint_as_float(x); }
static float __shfl_sync(unsigned, float x, int from) {
    Meeting &m = meetings[current / 32];
    m.in[current % 32][0] = as_bits(x);
    __syncwarp();
    float y = __uint_as_float(m.in[from & 31][0]);
    __syncwarp();
    return y;
}
static float __shfl_xor_sync(unsigned mask, float x, int step) { return __shfl_sync(mask, x, current % 32 ^ step); }

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };
static float to_float(float x) { return x; }
static float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
static float to_float(f16 x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
static bf16 narrow(bf16, float x) {
    unsigned u = as_bits(x);
    if (std::isnan(x)) return {0x7fff};
    return {(unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
static f16 narrow(f16, float x) { _Float16 h = (_Float16)x; f16 y; memcpy(&y, &h, 2); return y; }
template <typename N> unsigned pair(float low, float high) { return narrow(N{}, low).bits | (unsigned)narrow(N{}, high).bits << 16; }
static void store(float *to, float x) { *to = x; }
template <typename N> void store(N *to, float x) { *to = narrow(N{}, x); }

template <typename N> float part(unsigned two, int i) { return to_float(N{(unsigned short)(two >> 16 * i)}); }
template <typename N> void mma(float *c, const unsigned *a, unsigned b0, unsigned b1) {
    Meeting &m = meetings[current / 32];
    int lane = current % 32;
    memcpy(m.in[lane], a, 16);
    m.in[lane][4] = b0; m.in[lane][5] = b1;
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            int of_a = row % 8 * 4 + k % 8 / 2, of_b = column * 4 + k % 8 / 2;
            sum += part<N>(m.in[of_a][row / 8 + k / 8 * 2], k % 2) * part<N>(m.in[of_b][4 + k / 8], k % 2);
        }
        c[i] += sum;
    }
    __syncwarp();
}
static void load_any_matrix(unsigned *b, const uint4 *row, bool transposed) {
    Meeting &m = meetings[current / 32];
    int lane = current % 32;
    m.row[lane] = row;
    __syncwarp();
    unsigned got[4];
    for (int i = 0; i < 4; i++) {
        unsigned short two[2];
        for (int e = 0; e < 2; e++) {
            int r = lane / 4, c = lane % 4 * 2 + e;
            if (transposed) std::swap(r, c);
            two[e] = ((const unsigned short *)m.row[8 * i + r])[c];
        }
        got[i] = two[0] | (unsigned)two[1] << 16;
    }
    __syncwarp();
    memcpy(b, got, 16);
}
static void load_matrix(unsigned *b, const uint4 *row) { load_any_matrix(b, row, false); }
static void load_matrix_transposed(unsigned *b, const uint4 *row) { load_any_matrix(b, row, true); }

static void copy_async(uint4 *to, const uint4 *from, bool wanted) {
    if ((uintptr_t)from % 16 || (uintptr_t)to % 16) fault = 2;
    fibers[current].groups.back().push_back({to, from, wanted});
}
static void commit_group() { fibers[current].groups.emplace_back(); }
template <int LEFT> void wait_groups() {
    auto &groups = fibers[current].groups;
    while ((int)groups.size() - 1 > LEFT) {
        for (Copy &c : groups.front()) *c.to = c.wanted ? *c.from : uint4{0, 0, 0, 0};
        groups.erase(groups.begin());
    }
}
static uint4 dynamic[1 << 14];  // 256 KiB
static uint4 *shared_memory() { return dynamic; }

static void start() { threadIdx = {(unsigned)current, 0, 0}; body(); fibers[current].done = true; }
static int emulate(dim3 grid, int threads, int seed, std::function<void()> kernel) {
    body = kernel; drawn.seed(seed); fault = 0; gridDim = grid; blockDim = {(unsigned)threads, 1, 1};
    for (unsigned z = 0; z < grid.z; z++) for (unsigned y = 0; y < grid.y; y++) for (unsigned x = 0; x < grid.x; x++) {
        blockIdx = {x, y, z};
        memset(dynamic, 0xff, sizeof dynamic);          // NaN: nothing may be read before it is written
        fibers.assign(threads, Fiber()); stacks.resize((size_t)threads << 16);
        for (Fiber &f : fibers) {
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = &stacks[(&f - &fibers[0]) << 16];
            f.context.uc_stack.ss_size = 1 << 16;
            f.context.uc_link = &scheduler;
            makecontext(&f.context, start, 0);
        }
        std::vector<int> order(threads);
        for (int i = 0; i < threads; i++) order[i] = i;
        for (bool left = true; left;) {
            left = false;
            std::shuffle(order.begin(), order.end(), drawn);
            for (int i : order) if (!fibers[i].done) { left = true; current = i; swapcontext(&scheduler, &fibers[i].context); }
        }
    }
    return fault;
}
