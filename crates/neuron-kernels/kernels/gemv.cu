// x [M, K] times w [N, K] transposed for few rows M: bound by the bytes of w, each read once. One warp computes outputs of two rows of w,
// whose first chunks it asks for before it waits for x: the weights do not depend on the kernel before.
#include "common.cuh"

constexpr int CHUNK = 8 * 32; // elements that a warp reads of a row at once
constexpr int AHEAD = 4;      // chunks of a row in flight

template <typename T> struct Rows { Raw8<T> raw[AHEAD]; };

template <typename T> __device__ __forceinline__ void fetch(Rows<T> &rows, const T *row, int at, int k) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        if (at + i * CHUNK < k) rows.raw[i] = stream_raw8(row + at + i * CHUNK);
    }
}

// The dot products of `rows` at `at` with each row of x, added to `sums`.
template <typename T, int M>
__device__ __forceinline__ void multiply(const Rows<T> &a, const Rows<T> &b, const T *x, int at, int k, float (&sum_a)[M], float (&sum_b)[M]) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const int here = at + i * CHUNK;
        if (here < k) {
            float wa[8], wb[8];
            widen8(a.raw[i], wa);
            widen8(b.raw[i], wb);
#pragma unroll
            for (int m = 0; m < M; m++) {
                float v[8];
                load8(x + (size_t)m * k + here, v);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sum_a[m] += wa[j] * v[j];
                    sum_b[m] += wb[j] * v[j];
                }
            }
        }
    }
}

// Two dot products for each of M rows of x; complete in every lane. `x` becomes valid only behind `wait_for_previous_kernel`.
template <typename T, int M>
__device__ __forceinline__ void dot_pair(const T *row_a, const T *row_b, const T *x, int k, float (&sum_a)[M], float (&sum_b)[M]) {
    const int first = (threadIdx.x % 32) * 8;
    Rows<T> a, b;
    fetch(a, row_a, first, k);
    fetch(b, row_b, first, k);
    wait_for_previous_kernel();
#pragma unroll
    for (int m = 0; m < M; m++) sum_a[m] = sum_b[m] = 0.f;
    for (int at = first; at < k; at += AHEAD * CHUNK) {
        Rows<T> next_a, next_b;
        fetch(next_a, row_a, at + AHEAD * CHUNK, k);
        fetch(next_b, row_b, at + AHEAD * CHUNK, k);
        multiply<T, M>(a, b, x, at, k, sum_a, sum_b);
        a = next_a;
        b = next_b;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        sum_a[m] = warp_sum(sum_a[m]);
        sum_b[m] = warp_sum(sum_b[m]);
    }
}

// out [M, N] = x w^T + bias.
template <typename T, typename Out, int M> __device__ void gemv(const T *x, const T *w, const T *bias, int n, int k, Out *out) {
    allow_next_kernel();
    const int pair = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const int a = 2 * pair, b = min(2 * pair + 1, n - 1);
    if (a >= n) return;
    float sum_a[M], sum_b[M];
    dot_pair<T, M>(w + (size_t)a * k, w + (size_t)b * k, x, k, sum_a, sum_b);
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            out[(size_t)m * n + a] = narrow<Out>(sum_a[m] + (bias ? widen(bias[a]) : 0.f));
            if (b > a) out[(size_t)m * n + b] = narrow<Out>(sum_b[m] + (bias ? widen(bias[b]) : 0.f));
        }
    }
}

// out [M, I] = silu(x gate^T) * (x up^T), where w [2 I, K] holds gate above up.
template <typename T, int M> __device__ void gated_gemv(const T *x, const T *w, int inner, int k, T *out) {
    allow_next_kernel();
    const int at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (at >= inner) return;
    float gate[M], up[M];
    dot_pair<T, M>(w + (size_t)at * k, w + (size_t)(inner + at) * k, x, k, gate, up);
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            // What a product that is stored between the two would have been rounded to.
            const float g = widen(narrow<T>(gate[m])), u = widen(narrow<T>(up[m]));
            out[(size_t)m * inner + at] = narrow<T>(g / (1.f + __expf(-g)) * u);
        }
    }
}

#define SIZES(name, T, M)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) gemv_##name##_##M(const T *x, const T *w, const T *bias, int n, int k, T *out) {   \
        gemv<T, T, M>(x, w, bias, n, k, out);                                                                                          \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                                   \
        gemv_wide_##name##_##M(const T *x, const T *w, const T *bias, int n, int k, float *out) {                                       \
        gemv<T, float, M>(x, w, bias, n, k, out);                                                                                      \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) gated_gemv_##name##_##M(const T *x, const T *w, int inner, int k, T *out) {        \
        gated_gemv<T, M>(x, w, inner, k, out);                                                                                         \
    }
#define INSTANCE(name, T) SIZES(name, T, 1) SIZES(name, T, 2) SIZES(name, T, 3) SIZES(name, T, 4)
FOR_EACH_FLOAT(INSTANCE)
