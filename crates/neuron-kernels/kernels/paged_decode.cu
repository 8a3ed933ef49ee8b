// Attention of sequences with one new token each, over the paged cache: bound by the bytes of keys and values, each read once.
//
// A block of threads takes one part of the context of one sequence and one KV head, with all query heads of that KV head as the rows of
// a product on tensor cores. Each of its warps reads cache blocks of its own through a ring in shared memory. The parts of a context meet
// in memory, where the last block of threads to finish adds them up, in their order.
//
// In a step in which every sequence has one new token, the same kernel begins with the QKV projection: each block turns the queries it
// needs, and the one that has the newest block of the cache turns the key and writes both key and value. The older blocks are asked for before
// the projection is there.
#include "attention.cuh"
#include "turned_heads.cuh"

constexpr int ROWS = 16;      // at most so many query heads share a KV head
constexpr int PART_BLOCKS = 8; // blocks of the cache that are worth a part of their own

// The maximum, to the base 2, and the sum of one row of a part.
struct Mass {
    float max, sum;
};

// Queries that were turned before, and whose keys and values are in the cache.
template <typename T> struct Turned {
    static constexpr bool FRESH = false;
    // Two warps share few tiles more evenly than four: with many sequences that is what counts.
    static constexpr int WARPS = 2;
    static constexpr int SLOTS = 3; // tiles of keys or values in the ring of a warp
    const T *q; // [T, heads, width]
};

// Queries, keys and values as they come from their projection.
template <typename T> struct Fresh {
    static constexpr bool FRESH = true;
    static constexpr int WARPS = 4;
    static constexpr int SLOTS = 4;
    const T *qkv;  // [T, heads + 2 kv_heads, width]
    HeadNorm<T> q_norm, k_norm;
    const float *cosines, *sines; // [T, width / 2]
    const unsigned *slots;        // [T]
};

// The newest key and value of a KV head and the queries that meet it, turned. Wide rows keep eight rows of a chunk in different banks.
template <typename T, int D> struct Heads {
    static constexpr int STRIDE = D + 8;
    T rows[ROWS + 2][STRIDE]; // the queries, then the key, then the value
};

// Turns the heads of one KV head, `D / 16` lanes each.
template <typename T, int D>
__device__ __forceinline__ void turn_heads(Heads<T, D> &heads_of, const Fresh<T> &from, size_t token, int kv_head, int heads, int kv_heads, int width) {
    constexpr int LANES = D / 16;
    const int group = heads / kv_heads, half = width / 2, first = threadIdx.x % LANES * 8;
    const T *row = from.qkv + token * (heads + 2 * kv_heads) * width + first;
    for (int i = threadIdx.x / LANES; i - (int)threadIdx.x / LANES < group + 2; i += Fresh<T>::WARPS * 32 / LANES) {
        const bool is_query = i < group, is_value = i == group + 1, mine = i < group + 2 && first < half;
        const int head = is_query ? kv_head * group + i : heads + (is_value ? kv_heads : 0) + kv_head;
        float a[8] = {}, b[8] = {};
        if (mine) {
            load8(row + (size_t)head * width, a);
            load8(row + (size_t)head * width + half, b);
        }
        turn_pairs<T>(a, b, is_query ? from.q_norm : from.k_norm, from.cosines + token * half, from.sines + token * half,
                      mine && !is_value ? first : half, width, LANES);
        if (mine) {
            T *to = heads_of.rows[is_query ? i : ROWS + is_value] + first;
            store8(to, a);
            store8(to + half, b);
        }
    }
    __syncthreads();
}

// q [S, heads, width] to out of the same shape. The grid is [parts, kv_heads, S]; `gathered` [S, kv_heads, parts, group, D] and `masses`
// [S, kv_heads, parts, group] hold what the parts found, `finished` [S, kv_heads] is zero before and after. Sequences whose query is not
// one token long are left alone, those with an empty context get zeros.
template <typename T, int D, typename Source>
__device__ __forceinline__ void paged_decode(const Source &source, T *k_cache, T *v_cache, const unsigned *query_starts,
                                             const unsigned *context_lens, const unsigned *block_tables, int table_width, int heads,
                                             int kv_heads, int width, float scale, float *gathered, Mass *masses, unsigned *finished,
                                             T *out) {
    constexpr int TILE = BLOCK * Tile<D>::STRIDE, SLOTS = Source::SLOTS, WARPS = Source::WARPS;
    extern __shared__ uint4 shared[];
    __shared__ Mass of_warps[WARPS][ROWS];
    __shared__ unsigned finished_before;
    __shared__ __align__(16) Heads<T, Source::FRESH ? D : 8> fresh;
    static_assert(TILE * 16 >= ROWS * D * 4, "the values of a warp fit into one slot");

    if (!Source::FRESH) wait_for_previous_kernel();
    const int sequence = blockIdx.z, kv_head = blockIdx.y, part = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned token = query_starts[sequence];
    if (query_starts[sequence + 1] != token + 1) return; // not with fresh queries
    const int context = context_lens[sequence], group = heads / kv_heads, chunks = width / 8;
    const size_t first_head = (size_t)token * heads + kv_head * group;
    const int blocks = (context + BLOCK - 1) / BLOCK;
    const int part_blocks = max(PART_BLOCKS, (blocks + (int)gridDim.x - 1) / (int)gridDim.x);
    const int parts = (blocks + part_blocks - 1) / part_blocks;
    if (context == 0) {
        if (Source::FRESH) wait_for_previous_kernel();
        if (part == 0) {
            for (int i = threadIdx.x; i < group * width; i += WARPS * 32) out[first_head * width + i] = narrow<T>(0.f);
        }
        return;
    }
    if (part >= parts) return;
    // So many tokens are in the cache already.
    const int cached = Source::FRESH ? context - 1 : context;

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
            load_block<T, D>(ring + loads % SLOTS * TILE, 0, from, width, cached - (first + WARPS * i) * BLOCK, chunks, lane, 32);
        }
        commit_copies();
        loads++;
    };
    load_next();
    if (Source::FRESH) {
#pragma unroll
        for (int i = 1; i < SLOTS; i++) load_next();
    }

    // The queries, as fragments; rows from `group` on are zeros.
    bool has_newest = false;
    const T *queries_of;
    int query_stride = width;
    if constexpr (Source::FRESH) {
        wait_for_previous_kernel();
        turn_heads<T, D>(fresh, source, token, kv_head, heads, kv_heads, width);
        queries_of = fresh.rows[0];
        query_stride = Heads<T, D>::STRIDE;
        const int newest = cached / BLOCK;
        has_newest = newest >= first && newest < end && (newest - first) % WARPS == 0;
        if (has_newest) {
            const unsigned slot = source.slots[token];
            const size_t at = (((size_t)(slot / BLOCK) * kv_heads + kv_head) * BLOCK + slot % BLOCK) * width;
            for (int i = lane; i < 2 * chunks; i += 32) {
                T *to = (i < chunks ? k_cache : v_cache) + at + i % chunks * 8;
                *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(fresh.rows[ROWS + i / chunks] + i % chunks * 8);
            }
        }
    } else {
        queries_of = source.q + first_head * width;
    }
    unsigned queries[Tile<D>::STEPS][4];
#pragma unroll
    for (int step = 0; step < Tile<D>::STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i % 2 * 8, column = step * 16 + i / 2 * 8 + lane % 4 * 2;
            const bool valid = row < group && column < width;
            queries[step][i] = valid ? *reinterpret_cast<const unsigned *>(queries_of + (size_t)row * query_stride + column) : 0;
        }
    }
    if (!Source::FRESH) {
#pragma unroll
        for (int i = 1; i < SLOTS; i++) load_next();
    }
    // Puts the newest key or value into the last tile of its warp.
    auto complete = [&](uint4 *tile, int which) {
        if constexpr (Source::FRESH) {
            if (lane < chunks) tile[Tile<D>::at(cached % BLOCK, lane)] = *reinterpret_cast<const uint4 *>(fresh.rows[ROWS + which] + lane * 8);
            __syncwarp();
        }
    };

    Running<D> running;
    const float scale_2 = scale * LOG2_E;
    const int visible[2] = {context, context};
    for (int i = 0; i < count; i++) {
        float s[BLOCK / 8][4] = {};
        wait_for_copies<SLOTS - 1>();
        __syncwarp();
        uint4 *keys = ring + 2 * i % SLOTS * TILE, *values = ring + (2 * i + 1) % SLOTS * TILE;
        if (has_newest && i == count - 1) complete(keys, 0);
#pragma unroll
        for (int step = 0; step < Tile<D>::STEPS; step++) score_step<T, D>(s, queries[step], keys, step, lane);
        __syncwarp();
        load_next();
        const int position = (first + WARPS * i) * BLOCK;
        if (position + BLOCK > context) hide(s, position, visible, lane);
        running.soften(s, scale_2);
        wait_for_copies<SLOTS - 1>();
        __syncwarp();
        if (has_newest && i == count - 1) complete(values, 1);
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
    extern "C" __global__ void __launch_bounds__(Turned<T>::WARPS * 32)                                                                 \
        paged_decode_##name##_##D(const T *q, T *k_cache, T *v_cache, const unsigned *query_starts, const unsigned *context_lens,       \
                                  const unsigned *block_tables, int table_width, int heads, int kv_heads, int width, float scale,       \
                                  float *gathered, Mass *masses, unsigned *finished, T *out) {                                         \
        paged_decode<T, D>(Turned<T>{q}, k_cache, v_cache, query_starts, context_lens, block_tables, table_width, heads, kv_heads,      \
                           width, scale, gathered, masses, finished, out);                                                             \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(Fresh<T>::WARPS * 32)                                                                  \
        fresh_decode_##name##_##D(const T *qkv, const T *q_norm, const T *k_norm, float eps, const float *cosines, const float *sines,  \
                                  const unsigned *slots, T *k_cache, T *v_cache, const unsigned *query_starts,                         \
                                  const unsigned *context_lens, const unsigned *block_tables, int table_width, int heads,               \
                                  int kv_heads, int width, float scale, float *gathered, Mass *masses, unsigned *finished, T *out) {    \
        const Fresh<T> source = {qkv, {q_norm, eps}, {k_norm, eps}, cosines, sines, slots};                                            \
        paged_decode<T, D>(source, k_cache, v_cache, query_starts, context_lens, block_tables, table_width, heads, kv_heads, width,     \
                           scale, gathered, masses, finished, out);                                                                    \
    }
#define WIDTHS(name, T) INSTANCE(name, T, 32) INSTANCE(name, T, 64) INSTANCE(name, T, 128)
WIDTHS(bf16, bf16)
WIDTHS(f16, f16)
