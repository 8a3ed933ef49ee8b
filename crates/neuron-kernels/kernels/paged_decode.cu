// Attention of sequences with one new token each, over the paged cache: bound by the bytes of keys and values, each read once.
//
// A block of threads takes one part of the context of one sequence and one KV head, with all query heads of that KV head as the rows of
// a product on tensor cores. Each of its warps reads cache blocks of its own through a ring in shared memory. The parts of a context meet
// in memory, where the last block of threads to finish adds them up, in their order.
#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int SLOTS = 3;      // tiles of keys or values in the ring of a warp
constexpr int ROWS = 16;      // at most so many query heads share a KV head
constexpr int PART_BLOCKS = WARPS; // cache blocks that are worth a part of their own

// The maximum, to the base 2, and the sum of one row of a part.
struct Mass {
    float max, sum;
};

// q [S, heads, width] to out of the same shape. The grid is [parts, kv_heads, S]; `gathered` [S, kv_heads, parts, group, D] and `masses`
// [S, kv_heads, parts, group] hold what the parts found, `finished` [S, kv_heads] is zero before and after. Sequences whose query is not
// one token long are left alone, those with an empty context get zeros.
template <typename T, int D>
__device__ __forceinline__ void paged_decode(const T *q, const T *k_cache, const T *v_cache, const unsigned *query_starts,
                                             const unsigned *context_lens, const unsigned *block_tables, int table_width, int heads,
                                             int kv_heads, int width, float scale, float *gathered, Mass *masses, unsigned *finished,
                                             T *out) {
    extern __shared__ uint4 shared[];
    __shared__ Mass of_warps[WARPS][ROWS];
    __shared__ unsigned finished_before;
    constexpr int TILE = BLOCK * Tile<D>::STRIDE;
    static_assert(TILE * 16 >= ROWS * D * 4, "the values of a warp fit into one slot");

    allow_next_kernel();
    wait_for_previous_kernel();
    const int sequence = blockIdx.z, kv_head = blockIdx.y, part = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned token = query_starts[sequence];
    if (query_starts[sequence + 1] != token + 1) return;
    const int context = context_lens[sequence], group = heads / kv_heads, chunks = width / 8;
    const size_t first_head = (size_t)token * heads + kv_head * group;
    const int blocks = (context + BLOCK - 1) / BLOCK;
    const int part_blocks = max(PART_BLOCKS, (blocks + (int)gridDim.x - 1) / (int)gridDim.x);
    const int parts = (blocks + part_blocks - 1) / part_blocks;
    if (context == 0) {
        if (part == 0) {
            for (int i = threadIdx.x; i < group * width; i += WARPS * 32) out[first_head * width + i] = narrow<T>(0.f);
        }
        return;
    }
    if (part >= parts) return;

    // The warp's blocks: every fourth of the part. Lane i knows where the i-th of the next 32 lies.
    const int first = part * part_blocks + warp, end = min(blocks, (part + 1) * part_blocks);
    const int count = first < end ? (end - first + WARPS - 1) / WARPS : 0;
    const unsigned *table = block_tables + (size_t)sequence * table_width;
    unsigned places = lane < count ? table[first + WARPS * lane] : 0;
    uint4 *ring = shared + warp * SLOTS * TILE;
    int loads = 0;
    // Asks for the next tile: keys, values, keys, ...
    auto load_next = [&]() {
        const int i = loads / 2;
        if (i < count) {
            if (i > 0 && i % 32 == 0 && loads % 2 == 0) places = i + lane < count ? table[first + WARPS * (i + lane)] : 0;
            const size_t block = __shfl_sync(0xffffffffu, places, i % 32);
            const T *from = (loads % 2 ? v_cache : k_cache) + (block * kv_heads + kv_head) * BLOCK * width;
            load_block<T, D>(ring + loads % SLOTS * TILE, 0, from, width, context - (first + WARPS * i) * BLOCK, chunks, lane, 32);
        }
        commit_copies();
        loads++;
    };
    load_next();

    // The queries, straight into fragments; rows from `group` on are zeros.
    unsigned queries[Tile<D>::STEPS][4];
#pragma unroll
    for (int step = 0; step < Tile<D>::STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i % 2 * 8, column = step * 16 + i / 2 * 8 + lane % 4 * 2;
            const bool valid = row < group && column < width;
            queries[step][i] = valid ? *reinterpret_cast<const unsigned *>(q + (first_head + row) * width + column) : 0;
        }
    }
    load_next();
    load_next();

    Running<D> running;
    const float scale_2 = scale * LOG2_E;
    const int visible[2] = {context, context};
    for (int i = 0; i < count; i++) {
        float s[BLOCK / 8][4] = {};
        wait_for_copies<2>();
        __syncwarp();
        const uint4 *keys = ring + 2 * i % SLOTS * TILE, *values = ring + (2 * i + 1) % SLOTS * TILE;
#pragma unroll
        for (int step = 0; step < Tile<D>::STEPS; step++) score_step<T, D>(s, queries[step], keys, step, lane);
        __syncwarp();
        load_next();
        const int position = (first + WARPS * i) * BLOCK;
        if (position + BLOCK > context) hide(s, position, visible, lane);
        running.soften(s, scale_2);
        wait_for_copies<2>();
        __syncwarp();
#pragma unroll
        for (int step = 0; step < BLOCK / 16; step++) {
            unsigned p[4];
            weights_of<T>(p, s, step);
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                unsigned v[4];
                load_matrices_transposed(v, values + Tile<D>::at(step * 16 + lane % 16, n + lane / 16));
                multiply_add<T>(running.values[n], p, v[0], v[1]);
                multiply_add<T>(running.values[n + 1], p, v[2], v[3]);
            }
        }
        __syncwarp();
        load_next();
    }
    running.close();

    // The warps meet in shared memory, each in its first slot.
    wait_for_copies<0>();
    __syncwarp();
    float *mine = reinterpret_cast<float *>(ring);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = lane / 4 + half * 8;
        if (row < group) {
            if (lane % 4 == 0) of_warps[warp][row] = {running.max[half] * scale_2, running.sum[half]};
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                float2 pair = make_float2(running.values[n][2 * half], running.values[n][2 * half + 1]);
                *reinterpret_cast<float2 *>(mine + row * D + n * 8 + lane % 4 * 2) = pair;
            }
        }
    }
    __syncthreads();
    const size_t pair = (size_t)sequence * kv_heads + kv_head, slot = (pair * gridDim.x + part) * group;
    for (int i = threadIdx.x; i < group * D / 4; i += WARPS * 32) {
        const int row = i / (D / 4), column = i % (D / 4) * 4;
        float top = -INFINITY;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, of_warps[w][row].max);
        float sum = 0.f;
        float4 value = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float weight = exp2_fast(of_warps[w][row].max - top);
            const float4 part_of = *reinterpret_cast<const float4 *>(reinterpret_cast<const float *>(shared + w * SLOTS * TILE) + i * 4);
            sum += weight * of_warps[w][row].sum;
            add(value, weight, part_of);
        }
        if (parts == 1) {
            if (column < width) store4(out + (first_head + row) * width + column, value, 1.f / sum);
        } else {
            *reinterpret_cast<float4 *>(gathered + slot * D + i * 4) = value;
            if (column == 0) masses[slot + row] = {top, sum};
        }
    }
    if (parts == 1) return;

    // The last part to finish adds all of them up.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) finished_before = atomicAdd(finished + pair, 1u);
    __syncthreads();
    if (finished_before != parts - 1) return;
    __threadfence();
    if (threadIdx.x == 0) finished[pair] = 0;
    const float *all = gathered + pair * gridDim.x * group * D;
    float2 *weights = reinterpret_cast<float2 *>(shared);
    for (int i = threadIdx.x; i < parts * group; i += WARPS * 32) {
        weights[i] = __ldcg(reinterpret_cast<const float2 *>(masses) + pair * gridDim.x * group + i);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < group * D / 4; i += WARPS * 32) {
        const int row = i / (D / 4), column = i % (D / 4) * 4;
        float top = -INFINITY;
        for (int p = 0; p < parts; p++) top = fmaxf(top, weights[p * group + row].x);
        float sum = 0.f;
        float4 value = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
        for (int p = 0; p < parts; p++) {
            const float4 part_of = __ldcg(reinterpret_cast<const float4 *>(all + (size_t)p * group * D) + i);
            const float weight = exp2_fast(weights[p * group + row].x - top);
            sum += weight * weights[p * group + row].y;
            add(value, weight, part_of);
        }
        if (column < width) store4(out + (first_head + row) * width + column, value, 1.f / sum);
    }
}

#define INSTANCE(name, T, D)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                                            \
        paged_decode_##name##_##D(const T *q, const T *k_cache, const T *v_cache, const unsigned *query_starts,                         \
                                  const unsigned *context_lens, const unsigned *block_tables, int table_width, int heads,               \
                                  int kv_heads, int width, float scale, float *gathered, Mass *masses, unsigned *finished, T *out) {    \
        paged_decode<T, D>(q, k_cache, v_cache, query_starts, context_lens, block_tables, table_width, heads, kv_heads, width, scale,   \
                           gathered, masses, finished, out);                                                                           \
    }
#define WIDTHS(name, T) INSTANCE(name, T, 32) INSTANCE(name, T, 64) INSTANCE(name, T, 128)
WIDTHS(bf16, bf16)
WIDTHS(f16, f16)
