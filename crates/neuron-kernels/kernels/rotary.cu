// Rotary positions: the table of one step, heads turned by it, and the whole way from the QKV projection into the cache.
#include "turned_heads.cuh"

// positions [A, T] u32 and frequencies [A, half] f32 to cos and sin [T, half] f32. A frequency stands in the row of its axis only.
extern "C" __global__ void rotary_table(const unsigned *positions, const float *frequencies, int axes, int tokens, int half,
                                        float *cosines, float *sines) {
    wait_for_previous_kernel();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= tokens * half) return;
    const int token = i / half, j = i % half;
    float angle = 0.f;
    for (int axis = 0; axis < axes; axis++) angle += (float)positions[axis * tokens + token] * frequencies[axis * half + j];
    cosines[i] = cosf(angle);
    sines[i] = sinf(angle);
}

// Turns the pairs (j, j + width / 2) of x [T, heads, width]. One warp a head.
template <typename T> __device__ void rotary(const T *x, const float *cosines, const float *sines, int heads, int width, int rows, T *out) {
    wait_for_previous_kernel();
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    const int half = width / 2;
    const T *from = x + (size_t)row * width;
    T *to = out + (size_t)row * width;
    const size_t angle = (size_t)(row / heads) * half;
    for (int j = threadIdx.x % 32; j < half; j += 32) {
        const float c = cosines[angle + j], s = sines[angle + j];
        const float a = widen(from[j]), b = widen(from[j + half]);
        to[j] = narrow<T>(a * c - b * s);
        to[j + half] = narrow<T>(b * c + a * s);
    }
}

// qkv [T, (heads + 2 kv_heads) * width] to q [T, heads, width] and to rows of the caches [blocks, kv_heads, block, width]. Queries
// and keys are normalised per head where norms are given, then turned. `lanes` threads a head, each with eight pairs of it; a slot of ~0
// belongs to a padded row.
template <typename T>
__device__ void rotate_and_cache(const T *qkv, const T *q_norm, const T *k_norm, float eps, const float *cosines, const float *sines,
                                 const unsigned *slots, int tokens, int heads, int kv_heads, int width, int block, T *q, T *k_cache,
                                 T *v_cache, int lanes) {
    wait_for_previous_kernel();
    const int all = heads + 2 * kv_heads, half = width / 2;
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / lanes, first = threadIdx.x % lanes * 8;
    const int token = row / all, head = row % all;
    const bool is_query = head < heads, is_value = head >= heads + kv_heads, mine = row < tokens * all && first < half;
    const T *from = qkv + (size_t)row * width + first;
    float a[8] = {}, b[8] = {};
    if (mine) {
        load8(from, a);
        load8(from + half, b);
    }
    const size_t angle = (size_t)token * half;
    // Values stay as they are: as if they were behind the end of the head.
    turn_pairs<T>(a, b, {is_query ? q_norm : k_norm, eps}, cosines + angle, sines + angle, mine && !is_value ? first : half, width, lanes);
    if (!mine) return;
    const unsigned slot = slots[token];
    if (!is_query && slot == ~0u) return;
    const int kv_head = is_value ? head - heads - kv_heads : head - heads;
    const size_t cached = is_query ? 0 : (((size_t)(slot / block) * kv_heads + kv_head) * block + slot % block) * width;
    T *to = (is_query ? q + ((size_t)token * heads + head) * width : (is_value ? v_cache : k_cache) + cached) + first;
    store8(to, a);
    store8(to + half, b);
}

// At most this wide is a head whose pairs stay in registers.
constexpr int PAIRS = 4;

// The same for heads of any even width, one element at a time. One warp a head.
template <typename T>
__device__ void rotate_and_cache_any(const T *qkv, const T *q_norm, const T *k_norm, float eps, const float *cosines, const float *sines,
                                 const unsigned *slots, int tokens, int heads, int kv_heads, int width, int block, T *q, T *k_cache,
                                 T *v_cache) {
    wait_for_previous_kernel();
    const int all = heads + 2 * kv_heads;
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= tokens * all) return;
    const int token = row / all, head = row % all, lane = threadIdx.x % 32, half = width / 2;
    const bool is_query = head < heads, is_value = head >= heads + kv_heads;
    const unsigned slot = slots[token];
    if (!is_query && slot == ~0u) return;
    const int kv_head = is_value ? head - heads - kv_heads : head - heads;
    const size_t cached = is_query ? 0 : (((size_t)(slot / block) * kv_heads + kv_head) * block + slot % block) * width;
    T *to = is_query ? q + ((size_t)token * heads + head) * width : (is_value ? v_cache : k_cache) + cached;
    const T *from = qkv + (size_t)row * width;
    if (is_value) {
        for (int j = lane; j < width; j += 32) to[j] = from[j];
        return;
    }
    float a[PAIRS], b[PAIRS];
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int j = lane + 32 * i;
        a[i] = j < half ? widen(from[j]) : 0.f;
        b[i] = j < half ? widen(from[j + half]) : 0.f;
        squares += a[i] * a[i] + b[i] * b[i];
    }
    const T *norm = is_query ? q_norm : k_norm;
    if (norm) {
        const float scale = rsqrtf(warp_sum(squares) / width + eps);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int j = lane + 32 * i;
            if (j < half) {
                a[i] = widen(narrow<T>(a[i] * scale * widen(norm[j])));
                b[i] = widen(narrow<T>(b[i] * scale * widen(norm[j + half])));
            }
        }
    }
    const size_t angle = (size_t)token * half;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int j = lane + 32 * i;
        if (j < half) {
            const float c = cosines[angle + j], s = sines[angle + j];
            to[j] = narrow<T>(a[i] * c - b[i] * s);
            to[j + half] = narrow<T>(b[i] * c + a[i] * s);
        }
    }
}

#define INSTANCE(name, T)                                                                                                              \
    extern "C" __global__ void rotary_##name(const T *x, const float *cosines, const float *sines, int heads, int width, int rows,      \
                                             T *out) {                                                                                 \
        rotary<T>(x, cosines, sines, heads, width, rows, out);                                                                         \
    }                                                                                                                                  \
    extern "C" __global__ void rotate_and_cache_##name(const T *qkv, const T *q_norm, const T *k_norm, float eps, const float *cosines, \
                                                       const float *sines, const unsigned *slots, int tokens, int heads,               \
                                                       int kv_heads, int width, int block, T *q, T *k_cache, T *v_cache, int lanes) {  \
        rotate_and_cache<T>(qkv, q_norm, k_norm, eps, cosines, sines, slots, tokens, heads, kv_heads, width, block, q, k_cache,        \
                            v_cache, lanes);                                                                                           \
    }                                                                                                                                  \
    extern "C" __global__ void rotate_and_cache_any_##name(const T *qkv, const T *q_norm, const T *k_norm, float eps,                   \
                                                           const float *cosines, const float *sines, const unsigned *slots,            \
                                                           int tokens, int heads, int kv_heads, int width, int block, T *q,            \
                                                           T *k_cache, T *v_cache) {                                                   \
        rotate_and_cache_any<T>(qkv, q_norm, k_norm, eps, cosines, sines, slots, tokens, heads, kv_heads, width, block, q, k_cache,    \
                                v_cache);                                                                                              \
    }
FOR_EACH_FLOAT(INSTANCE)
