// Attention of many queries on Hopper: what `prefill_attention` computes, for heads exactly D wide.
//
// A block of threads takes 128 rows, 64 for each of two warp groups that compute. A third one fills a ring of tiles of 128 keys or values and
// keeps few registers; barriers tell which tiles are full and which empty, so that the two drift apart and one uses the tensor cores while
// the other softens its scores.
#include "attention.cuh"
#include "sequences.cuh"
#include "warp_groups.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int GROUP = 128;                 // threads of a warp group
constexpr int COMPUTING = 2;               // warp groups
constexpr int ROWS = 64 * COMPUTING;       // of a block of threads
constexpr int KEYS = 128;                  // of a tile
constexpr int SLOTS = 4;                   // tiles in the ring: keys, values, keys, ...
constexpr int FILLING_REGISTERS = 40, COMPUTING_REGISTERS = 232;

// Tiles of 64 columns.
constexpr int row_bytes = 128;
template <int D> struct Sizes {
    static constexpr int HALVES = D / 64, QUERIES = HALVES * ROWS * row_bytes, TILE = HALVES * KEYS * row_bytes;
};

// Byte of a 16-byte chunk of a row, in tiles with `rows` rows.
__device__ __forceinline__ int place(int rows, int row, int chunk) { return (chunk / 8 * rows + row) * row_bytes + (chunk % 8 ^ row % 8) * 16; }

struct Barriers {
    Barrier queries, full[SLOTS], empty[SLOTS];
};

// The queries of one KV head of one sequence, rows of [T, heads, D], and how much of the context they see.
template <typename T, int D> struct Rows {
    const T *q;
    T *out;
    int first, count; // of this block, of all
    int group;        // query heads of the KV head
    int stride;       // elements from one token to the next
    int length, past; // tokens of the context, and of those before the first query

    __device__ __forceinline__ size_t at(int row) const { return (size_t)(row / group) * stride + row % group * D; }
    __device__ __forceinline__ int sees(int row) const { return min(past + row / group + 1, length); }
    __device__ __forceinline__ int tiles() const { return (sees(min(first + ROWS, count) - 1) + KEYS - 1) / KEYS; }
};

// One KV head in the paged cache [blocks, kv_heads, BLOCK, D].
template <typename T> struct Cache {
    const T *keys, *values;
    const unsigned *table;
    int block_stride, head_offset;
};

// The filling warp group: queries, then keys and values in turn. A tile is announced when the one after it is on its way.
template <typename T, int D> __device__ __forceinline__ void fill(char *shared, Barriers &barriers, const Rows<T, D> &rows, const Cache<T> &cache) {
    constexpr int CHUNKS = D / 8, AT_ONCE = GROUP / CHUNKS; // rows
    const int chunk = threadIdx.x % CHUNKS, line = threadIdx.x / CHUNKS;
    for (int row = line; row < ROWS; row += AT_ONCE) {
        const bool valid = rows.first + row < rows.count;
        copy_16_async(shared + place(ROWS, row, chunk), valid ? rows.q + rows.at(rows.first + row) + chunk * 8 : rows.q, valid);
    }
    commit_copies();
    Barrier *announced = &barriers.queries;
    const int items = 2 * rows.tiles();
    for (int item = 0; item < items; item++) {
        const int slot = item % SLOTS, first = item / 2 * KEYS;
        if (item >= SLOTS) wait(&barriers.empty[slot], (item / SLOTS - 1) % 2);
        char *tile = shared + Sizes<D>::QUERIES + slot * Sizes<D>::TILE;
        const T *from = (item % 2 ? cache.values : cache.keys) + cache.head_offset + chunk * 8;
#pragma unroll
        for (int block = 0; block < KEYS / BLOCK; block++) {
            const int begin = first + block * BLOCK;
            const T *found = from + (begin < rows.length ? (size_t)cache.table[begin / BLOCK] * cache.block_stride : 0);
#pragma unroll
            for (int row = 0; row < BLOCK; row += AT_ONCE) {
                const bool valid = begin + row + line < rows.length;
                copy_16_async(tile + place(KEYS, block * BLOCK + row + line, chunk), found + (row + line) * D, valid);
            }
        }
        commit_copies();
        wait_for_copies<1>();
        show_to_tensor_cores();
        arrive(announced);
        announced = &barriers.full[slot];
    }
    wait_for_copies<0>();
    show_to_tensor_cores();
    arrive(announced);
}

// A computing warp group, whose rows begin at `mine` of the block's.
template <typename T, int D>
__device__ __forceinline__ void compute(char *shared, Barriers &barriers, const Rows<T, D> &rows, int mine, float scale) {
    const int lane = threadIdx.x % 32, warp_row = mine + threadIdx.x % GROUP / 32 * 16, row = rows.first + warp_row + lane / 4;
    const int visible[2] = {rows.sees(row), rows.sees(row + 8)};
    // The first and the last row of the group; a group without rows sees nothing.
    const int sees_least = rows.sees(rows.first + mine), sees_most = rows.first + mine < rows.count ? rows.sees(rows.first + mine + 63) : 0;
    const float scale_2 = scale * LOG2_E;
    auto done = [&](int slot) {
        __syncwarp();
        if (lane == 0) arrive(&barriers.empty[slot]);
    };
    Running<D> running;
    wait(&barriers.queries, 0);
    const int tiles = rows.tiles();
    for (int i = 0; i < tiles; i++) {
        const int first = i * KEYS, keys = 2 * i % SLOTS, values = keys + 1;
        const unsigned phase = 2 * i / SLOTS % 2;
        const char *ring = shared + Sizes<D>::QUERIES;
        float s[KEYS / 8][4];
        wait(&barriers.full[keys], phase);
        if (first < sees_most) {
            begin_products();
#pragma unroll
            for (int step = 0; step < D / 16; step++) {
                const int within = step % 4 * 32;
                const uint64_t a = rows_of(shared + (step / 4 * ROWS + mine) * row_bytes + within);
                const uint64_t b = rows_of(ring + keys * Sizes<D>::TILE + step / 4 * KEYS * row_bytes + within);
                multiply_tiles<T>(s, a, b, step > 0);
            }
            commit_products();
            wait_for_products<0>();
        }
        done(keys);
        if (first < sees_most) {
            if (first + KEYS > sees_least) hide(s, first, visible, lane);
            running.soften(s, scale_2);
        }
        wait(&barriers.full[values], phase);
        if (first < sees_most) {
            unsigned p[KEYS / 16][4];
#pragma unroll
            for (int step = 0; step < KEYS / 16; step++) weights_of<T>(p[step], s, step);
            begin_products();
#pragma unroll
            for (int step = 0; step < KEYS / 16; step++) {
                const uint64_t b = columns_of(ring + values * Sizes<D>::TILE + step * 16 * row_bytes, KEYS * row_bytes);
                multiply_add_tile<T>(running.values, p[step], b);
            }
            commit_products();
            wait_for_products<0>();
        }
        done(values);
    }
    running.close();

    // Out through the warp's own rows of the queries, for whole chunks to write.
    asm volatile("bar.sync %0, %1;" ::"r"(1 + mine / 64), "n"(GROUP) : "memory");
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float factor = 1.f / running.sum[half];
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            unsigned *chunk = reinterpret_cast<unsigned *>(shared + place(ROWS, warp_row + half * 8 + lane / 4, n));
            chunk[lane % 4] = pack<T>(running.values[n][2 * half] * factor, running.values[n][2 * half + 1] * factor);
        }
    }
    __syncwarp();
    for (int i = lane; i < 16 * D / 8; i += 32) {
        const int at = warp_row + i / (D / 8), chunk = i % (D / 8);
        if (rows.first + at < rows.count) {
            *reinterpret_cast<uint4 *>(rows.out + rows.at(rows.first + at) + chunk * 8) = *reinterpret_cast<const uint4 *>(shared + place(ROWS, at, chunk));
        }
    }
}

template <typename T, int D>
__device__ __forceinline__ void attend(const T *q, const T *k_cache, const T *v_cache, const unsigned *query_starts, const unsigned *context_lens,
                                       const unsigned *block_tables, int table_width, int sequences, int heads, int kv_heads, float scale, T *out) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ Barriers barriers;
    wait_for_previous_kernel();
    const int group = heads / kv_heads, kv_head = blockIdx.x % kv_heads, tile = (gridDim.x - 1 - blockIdx.x) / kv_heads;
    const Span span = find_rows(query_starts, sequences, 2, group, ROWS, tile);
    if (span.sequence < 0) return;
    if (threadIdx.x == 0) {
        expect(&barriers.queries, GROUP);
        for (int slot = 0; slot < SLOTS; slot++) {
            expect(&barriers.full[slot], GROUP);
            expect(&barriers.empty[slot], COMPUTING * GROUP / 32);
        }
    }
    __syncthreads();
    const size_t first = ((size_t)span.first_token * heads + (size_t)kv_head * group) * D;
    const int length = context_lens[span.sequence];
    const Rows<T, D> rows = {q + first, out + first, span.tile * ROWS, span.tokens * group, group, heads * D, length, length - span.tokens};
    if (threadIdx.x < GROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FILLING_REGISTERS));
        const Cache<T> cache = {k_cache, v_cache, block_tables + (size_t)span.sequence * table_width, kv_heads * BLOCK * D, kv_head * BLOCK * D};
        fill<T, D>(shared, barriers, rows, cache);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COMPUTING_REGISTERS));
        compute<T, D>(shared, barriers, rows, (threadIdx.x / GROUP - 1) * 64, scale);
    }
}

// As `prefill_attention`, save the width.
#define INSTANCE(name, T, D)                                                                                                           \
    extern "C" __global__ void __launch_bounds__((COMPUTING + 1) * GROUP, 1)                                                            \
        hopper_attention_##name##_##D(const T *q, const T *k_cache, const T *v_cache, const unsigned *query_starts,                     \
                                      const unsigned *context_lens, const unsigned *block_tables, int table_width, int sequences,       \
                                      int heads, int kv_heads, float scale, T *out) {                                                  \
        attend<T, D>(q, k_cache, v_cache, query_starts, context_lens, block_tables, table_width, sequences, heads, kv_heads, scale, out); \
    }
INSTANCE(bf16, bf16, 64)
INSTANCE(bf16, bf16, 128)
INSTANCE(f16, f16, 64)
INSTANCE(f16, f16, 128)

#endif
