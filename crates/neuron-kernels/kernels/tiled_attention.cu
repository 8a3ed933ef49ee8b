// Attention of many queries on tensor cores: causal over the paged cache, or in both directions inside segments without a cache.
//
// The rows of a sequence are its queries times the query heads of one KV head, so that keys and values are read once for all of these. A
// block of threads takes 128 rows; keys and values come in tiles of 64, the next one while the last is computed with.
#include "attention.cuh"
#include "sequences.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
constexpr int STRIPS = 2;                  // of 16 rows in a warp
constexpr int ROWS = WARPS * STRIPS * 16;  // of a block of threads
constexpr int KEYS = 64;                   // of a tile
constexpr int PARTS = KEYS / BLOCK;

// The keys and values of one KV head of one sequence, found 32 at a time.
template <typename T> struct Context {
    const T *keys, *values;
    int stride; // elements from one token to the next
    int length;    // tokens
};

// In the paged cache [blocks, kv_heads, BLOCK, width].
template <typename T> struct Paged : Context<T> {
    static constexpr bool CAUSAL = true;
    const unsigned *table;
    int block_stride, head_offset;

    __device__ __forceinline__ unsigned find(int block) const { return table[block]; }
    __device__ __forceinline__ size_t offset(unsigned found) const { return (size_t)found * block_stride + head_offset; }
};

// In [T, heads, width].
template <typename T> struct Flat : Context<T> {
    static constexpr bool CAUSAL = false;
    size_t first;

    __device__ __forceinline__ unsigned find(int block) const { return block; }
    __device__ __forceinline__ size_t offset(unsigned found) const { return first + (size_t)found * (BLOCK * this->stride); }
};

// The queries of one KV head of one sequence: rows of [T, heads, width].
template <typename T> struct Queries {
    const T *q;
    T *out;
    int count; // tokens
    int group; // query heads of the KV head
    size_t first; // element of the first
    int stride;   // elements from one token to the next
    int width;

    __device__ __forceinline__ int rows() const { return count * group; }
    __device__ __forceinline__ size_t at(int row) const { return first + (size_t)(row / group) * stride + row % group * width; }
};

template <typename T, int D, typename Found>
__device__ __forceinline__ void load_tile(uint4 *tile, const T *from, const Found &context, const unsigned (&at)[PARTS], int first, int chunks,
                                          int thread) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int rows = context.length - first - i * BLOCK;
        load_block<T, D>(tile, i * BLOCK, from + context.offset(at[i]), context.stride, rows, chunks, thread, THREADS);
    }
}

// Where the parts of a tile lie; those behind the end of the context at 0, from where nothing is read.
template <typename Found> __device__ __forceinline__ void find_tile(unsigned (&at)[PARTS], const Found &context, int first) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) at[i] = first + i * BLOCK < context.length ? context.find(first / BLOCK + i) : 0;
}

// Rows `first_row`.. of the queries, with 16-byte chunks of queries, keys and values in shared memory.
template <typename T, int D, typename Found>
__device__ __forceinline__ void attend(const Queries<T> &queries, const Found &context, int first_row, float scale) {
    extern __shared__ uint4 shared[];
    uint4 *q_tile = shared, *k_tile = q_tile + ROWS * Tile<D>::STRIDE, *v_tile = k_tile + KEYS * Tile<D>::STRIDE;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * STRIPS * 16;
    const int chunks = queries.width / 8, rows = queries.rows(), past = context.length - queries.count;
    // How many positions a row sees.
    auto sees = [&](int row) { return Found::CAUSAL ? min(past + row / queries.group + 1, context.length) : context.length; };

    for (int i = threadIdx.x; i < ROWS * Tile<D>::CHUNKS; i += THREADS) {
        const int row = i / Tile<D>::CHUNKS, chunk = i % Tile<D>::CHUNKS;
        const bool valid = first_row + row < rows && chunk < chunks;
        copy_16_async(q_tile + Tile<D>::at(row, chunk), valid ? queries.q + queries.at(first_row + row) + chunk * 8 : queries.q, valid);
    }
    unsigned at[PARTS];
    find_tile(at, context, 0);
    load_tile<T, D>(k_tile, context.keys, context, at, 0, chunks, threadIdx.x);
    commit_copies();

    // The first and the last row of the warp; a warp without rows sees nothing.
    const int sees_least = sees(first_row + warp_row);
    const int sees_most = first_row + warp_row < rows ? sees(first_row + warp_row + STRIPS * 16 - 1) : 0;
    const int end = sees(min(first_row + ROWS, rows) - 1);

    Running<D> running[STRIPS];
    const float scale_2 = scale * LOG2_E;
    for (int first = 0; first < end; first += KEYS) {
        // Addresses in tiles are made anew in each round: kept across rounds they would take more registers than there are.
        int thread = threadIdx.x;
        asm volatile("" : "+r"(thread));
        const int lane = thread % 32, warp_row = thread / 32 * STRIPS * 16;
        wait_for_copies<0>();
        __syncthreads(); // the keys are there, and nobody reads the last values any more
        load_tile<T, D>(v_tile, context.values, context, at, first, chunks, thread);
        commit_copies();
        find_tile(at, context, first + KEYS);
        float s[STRIPS][KEYS / 8][4] = {};
        if (first < sees_most) {
#pragma unroll
            for (int step = 0; step < Tile<D>::STEPS; step++) {
                unsigned fragments[STRIPS][4];
#pragma unroll
                for (int strip = 0; strip < STRIPS; strip++) {
                    load_matrices(fragments[strip], q_tile + Tile<D>::at(warp_row + strip * 16 + lane % 16, 2 * step + lane / 16));
                }
#pragma unroll
                for (int n = 0; n < KEYS / 8; n += 2) {
                    unsigned k[4];
                    load_matrices(k, k_tile + Tile<D>::at(n * 8 + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
#pragma unroll
                    for (int strip = 0; strip < STRIPS; strip++) {
                        multiply_add<T>(s[strip][n], fragments[strip], k[0], k[1]);
                        multiply_add<T>(s[strip][n + 1], fragments[strip], k[2], k[3]);
                    }
                }
            }
        }
        wait_for_copies<0>();
        __syncthreads(); // the values are there, and nobody reads the keys any more
        if (first + KEYS < end) load_tile<T, D>(k_tile, context.keys, context, at, first + KEYS, chunks, thread);
        commit_copies();
        if (first < sees_most) {
#pragma unroll
            for (int strip = 0; strip < STRIPS; strip++) {
                if (first + KEYS > sees_least) {
                    const int row = first_row + warp_row + strip * 16 + lane / 4;
                    hide(s[strip], first, {sees(row), sees(row + 8)}, lane);
                }
                running[strip].soften(s[strip], scale_2);
            }
#pragma unroll
            for (int step = 0; step < KEYS / 16; step++) {
                unsigned p[STRIPS][4];
#pragma unroll
                for (int strip = 0; strip < STRIPS; strip++) weights_of<T>(p[strip], s[strip], step);
#pragma unroll
                for (int n = 0; n < D / 8; n += 2) {
                    unsigned v[4];
                    load_matrices_transposed(v, v_tile + Tile<D>::at(step * 16 + lane % 16, n + lane / 16));
#pragma unroll
                    for (int strip = 0; strip < STRIPS; strip++) {
                        multiply_add<T>(running[strip].values[n], p[strip], v[0], v[1]);
                        multiply_add<T>(running[strip].values[n + 1], p[strip], v[2], v[3]);
                    }
                }
            }
        }
    }

    // Out through the warp's own rows of the tile of queries, for whole chunks to write.
    wait_for_copies<0>();
    __syncwarp();
#pragma unroll
    for (int strip = 0; strip < STRIPS; strip++) {
        running[strip].close();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float factor = 1.f / running[strip].sum[half];
            const int row = warp_row + strip * 16 + half * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                unsigned *chunk = reinterpret_cast<unsigned *>(q_tile + Tile<D>::at(row, n));
                const float *pair = &running[strip].values[n][2 * half];
                chunk[lane % 4] = pack<T>(pair[0] * factor, pair[1] * factor);
            }
        }
    }
    __syncwarp();
    for (int i = lane; i < STRIPS * 16 * Tile<D>::CHUNKS; i += 32) {
        const int row = warp_row + i / Tile<D>::CHUNKS, chunk = i % Tile<D>::CHUNKS;
        if (first_row + row < rows && chunk < chunks) {
            *reinterpret_cast<uint4 *>(queries.out + queries.at(first_row + row) + chunk * 8) = q_tile[Tile<D>::at(row, chunk)];
        }
    }
}

// q [T, heads, width] to out of the same shape, for the sequences that have two new tokens or more; `paged_decode` has the others. The
// grid is [tiles * kv_heads], with at least as many tiles as the sequences have; heavy ones first.
template <typename T, int D>
__device__ __forceinline__ void prefill_attention(const T *q, const T *k_cache, const T *v_cache, const unsigned *query_starts,
                                                  const unsigned *context_lens, const unsigned *block_tables, int table_width,
                                                  int sequences, int heads, int kv_heads, int width, float scale, T *out) {
    wait_for_previous_kernel();
    const int group = heads / kv_heads, kv_head = blockIdx.x % kv_heads, tile = (gridDim.x - 1 - blockIdx.x) / kv_heads;
    const Span span = find_rows(query_starts, sequences, 2, group, ROWS, tile);
    if (span.sequence < 0) return;
    const size_t first = ((size_t)span.first_token * heads + (size_t)kv_head * group) * width;
    const Queries<T> queries = {q, out, span.tokens, group, first, heads * width, width};
    Paged<T> context;
    context.keys = k_cache;
    context.values = v_cache;
    context.stride = width;
    context.length = context_lens[span.sequence];
    context.table = block_tables + (size_t)span.sequence * table_width;
    context.block_stride = kv_heads * BLOCK * width;
    context.head_offset = kv_head * BLOCK * width;
    attend<T, D>(queries, context, span.tile * ROWS, scale);
}

// q, k and v [T, heads, width] to out of the same shape. The grid is [tiles * heads].
template <typename T, int D>
__device__ __forceinline__ void segment_attention(const T *q, const T *k, const T *v, const unsigned *starts, int segments, int heads,
                                                  int width, float scale, T *out) {
    wait_for_previous_kernel();
    const int head = blockIdx.x % heads;
    const Span span = find_rows(starts, segments, 1, 1, ROWS, blockIdx.x / heads);
    if (span.sequence < 0) return;
    const size_t first = ((size_t)span.first_token * heads + head) * width;
    const Queries<T> queries = {q, out, span.tokens, 1, first, heads * width, width};
    Flat<T> context;
    context.keys = k;
    context.values = v;
    context.stride = heads * width;
    context.length = span.tokens;
    context.first = first;
    attend<T, D>(queries, context, span.tile * ROWS, scale);
}

#define PREFILL(name, T, D)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                               \
        prefill_attention_##name##_##D(const T *q, const T *k_cache, const T *v_cache, const unsigned *query_starts,                    \
                                       const unsigned *context_lens, const unsigned *block_tables, int table_width, int sequences,      \
                                       int heads, int kv_heads, int width, float scale, T *out) {                                      \
        prefill_attention<T, D>(q, k_cache, v_cache, query_starts, context_lens, block_tables, table_width, sequences, heads, kv_heads, \
                                width, scale, out);                                                                                    \
    }
#define SEGMENT(name, T, D)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                               \
        segment_attention_##name##_##D(const T *q, const T *k, const T *v, const unsigned *starts, int segments, int heads, int width,  \
                                       float scale, T *out) {                                                                          \
        segment_attention<T, D>(q, k, v, starts, segments, heads, width, scale, out);                                                  \
    }
#define WIDTHS(name, T)                                                                                                                \
    PREFILL(name, T, 32) PREFILL(name, T, 64) PREFILL(name, T, 128)                                                                     \
    SEGMENT(name, T, 32) SEGMENT(name, T, 64) SEGMENT(name, T, 80)
WIDTHS(bf16, bf16)
WIDTHS(f16, f16)
