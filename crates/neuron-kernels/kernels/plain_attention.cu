// Attention for any element type and head width, one block of warps for each query and head: the form that the tiled ones are held to, and
// what serves types and widths that these are not built for.
#include "sequences.cuh"

constexpr int WARPS = 8;
constexpr int WIDTH_MAX = 256;
constexpr int COLUMNS = WIDTH_MAX / 32; // of a lane

// One KV head of one sequence in the paged cache [blocks, kv_heads, block, width].
struct Paged {
    const unsigned *table;
    int kv_heads, kv_head, block, width;

    __device__ __forceinline__ size_t at(int position) const {
        return (((size_t)table[position / block] * kv_heads + kv_head) * block + position % block) * width;
    }
};

// One head of one segment in [T, heads, width].
struct Flat {
    size_t first;
    int stride;

    __device__ __forceinline__ size_t at(int position) const { return first + (size_t)position * stride; }
};

// One query [width] over the first `visible` tokens of a context, with an online softmax per warp. A lane scores one of 32 tokens, then
// gathers some columns of all 32 values.
template <typename T, typename Context>
__device__ __forceinline__ void attend(const T *q, const T *keys, const T *values, const Context &context, int visible, int width,
                                       float scale, T *out) {
    __shared__ float query[WIDTH_MAX];
    __shared__ float gathered[WARPS][WIDTH_MAX];
    __shared__ float2 masses[WARPS]; // maximum and sum
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < width; i += WARPS * 32) query[i] = widen(q[i]) * scale;
    __syncthreads();
    float top = -INFINITY, sum = 0.f;
    float value[COLUMNS] = {};
    for (int first = warp * 32; first < visible; first += WARPS * 32) {
        const int position = first + lane;
        const size_t at = position < visible ? context.at(position) : 0;
        float score = -INFINITY;
        if (position < visible) {
            score = 0.f;
            int i = 0;
            for (; width % 8 == 0 && i < width; i += 8) {
                float k[8];
                load8(keys + at + i, k);
#pragma unroll
                for (int j = 0; j < 8; j++) score += query[i + j] * k[j];
            }
            for (; i < width; i++) score += query[i] * widen(keys[at + i]);
        }
        float highest = fmaxf(top, score);
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, lanes));
        const float decay = expf(top - highest), weight = expf(score - highest);
        top = highest;
        sum = sum * decay + warp_sum(weight);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) value[i] *= decay;
        const int tokens = min(32, visible - first);
        for (int j = 0; j < tokens; j++) {
            const float w = __shfl_sync(0xffffffffu, weight, j);
            const size_t row = __shfl_sync(0xffffffffu, at, j);
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
                if (lane + 32 * i < width) value[i] += w * widen(values[row + lane + 32 * i]);
            }
        }
    }
    if (lane == 0) masses[warp] = make_float2(top, sum);
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        if (lane + 32 * i < width) gathered[warp][lane + 32 * i] = value[i];
    }
    __syncthreads();
    // Warp 0 has seen a token, so the maximum is finite.
    top = masses[0].x;
    for (int w = 1; w < WARPS; w++) top = fmaxf(top, masses[w].x);
    for (int i = threadIdx.x; i < width; i += WARPS * 32) {
        float all = 0.f, result = 0.f;
        for (int w = 0; w < WARPS; w++) {
            const float weight = expf(masses[w].x - top);
            all += weight * masses[w].y;
            result += weight * gathered[w][i];
        }
        out[i] = narrow<T>(result / all);
    }
}

// q [T, heads, width] to out of the same shape; the grid is [T, heads]. A query without context gets zeros.
template <typename T>
__device__ __forceinline__ void plain_attention(const T *q, const T *k_cache, const T *v_cache, const unsigned *query_starts,
                                                const unsigned *context_lens, const unsigned *block_tables, int table_width, int sequences,
                                                int heads, int kv_heads, int block, int width, float scale, T *out) {
    wait_for_previous_kernel();
    const Span span = find_rows(query_starts, sequences, 1, 1, 1, blockIdx.x);
    if (span.sequence < 0) return;
    const int head = blockIdx.y, kv_head = head / (heads / kv_heads), context = context_lens[span.sequence];
    const size_t row = ((size_t)blockIdx.x * heads + head) * width;
    const int visible = context - span.tokens + span.tile + 1;
    if (context == 0) {
        for (int i = threadIdx.x; i < width; i += WARPS * 32) out[row + i] = narrow<T>(0.f);
        return;
    }
    const Paged pages = {block_tables + (size_t)span.sequence * table_width, kv_heads, kv_head, block, width};
    attend<T>(q + row, k_cache, v_cache, pages, visible, width, scale, out + row);
}

// q, k and v [T, heads, width] to out of the same shape; the grid is [T, heads].
template <typename T>
__device__ __forceinline__ void plain_segment_attention(const T *q, const T *k, const T *v, const unsigned *starts, int segments, int heads,
                                                        int width, float scale, T *out) {
    wait_for_previous_kernel();
    const Span span = find_rows(starts, segments, 1, 1, 1, blockIdx.x);
    if (span.sequence < 0) return;
    const int head = blockIdx.y;
    const size_t row = ((size_t)blockIdx.x * heads + head) * width;
    const Flat rows = {((size_t)span.first_token * heads + head) * width, heads * width};
    attend<T>(q + row, k, v, rows, span.tokens, width, scale, out + row);
}

#define INSTANCE(name, T)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                                            \
        plain_attention_##name(const T *q, const T *k_cache, const T *v_cache, const unsigned *query_starts,                            \
                               const unsigned *context_lens, const unsigned *block_tables, int table_width, int sequences, int heads,   \
                               int kv_heads, int block, int width, float scale, T *out) {                                              \
        plain_attention<T>(q, k_cache, v_cache, query_starts, context_lens, block_tables, table_width, sequences, heads, kv_heads,      \
                           block, width, scale, out);                                                                                  \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                                            \
        plain_segment_attention_##name(const T *q, const T *k, const T *v, const unsigned *starts, int segments, int heads, int width,  \
                                       float scale, T *out) {                                                                          \
        plain_segment_attention<T>(q, k, v, starts, segments, heads, width, scale, out);                                               \
    }
FOR_EACH_FLOAT(INSTANCE)
