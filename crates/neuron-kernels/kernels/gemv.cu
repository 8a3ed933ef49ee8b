// x [M, K] times w [N, K] transposed for few rows M: bound by the bytes of w, each read once. One warp computes outputs of two rows of w,
// whose first chunks it asks for before it waits for x: the weights do not depend on the kernel before.
//
// Where x is the norm of a sum, every block of threads computes it for itself while its weights are on their way: a kernel less in the
// chain of a step.
#include "common.cuh"

constexpr int CHUNK = 8 * 32; // elements that a warp reads of a row at once
constexpr int AHEAD = 2;      // chunks of a row in flight, beside those that are computed with
constexpr int TURNS = 4;      // groups of eight that a thread normalises of a row

// x as it lies in memory.
template <typename T> struct Plain {
    const T *x;

    __device__ __forceinline__ const T *ready(int) const {
        wait_for_previous_kernel();
        return x;
    }
};

// x = rms_norm(last + stream) * weight, or of the stream alone where there is no `last`. The first block writes the sum.
template <typename T, int M> struct Normed {
    const T *last, *stream, *weight;
    float eps;
    T *sum;

    __device__ __forceinline__ const T *ready(int k) const {
        extern __shared__ uint4 shared[];
        __shared__ float scratch[32];
        T *x = reinterpret_cast<T *>(shared);
        wait_for_previous_kernel();
        for (int m = 0; m < M; m++) {
            const size_t row = (size_t)m * k;
            float kept[TURNS][8];
            float squares = 0.f;
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                const int at = (turn * blockDim.x + threadIdx.x) * 8;
                if (at < k) {
                    load8(stream + row + at, kept[turn]);
                    if (last) {
                        float more[8];
                        load8(last + row + at, more);
#pragma unroll
                        for (int i = 0; i < 8; i++) kept[turn][i] += more[i];
                        if (blockIdx.x == 0) store8(sum + row + at, kept[turn]);
                        round8<T>(kept[turn]);
                    }
#pragma unroll
                    for (int i = 0; i < 8; i++) squares += kept[turn][i] * kept[turn][i];
                }
            }
            const float scale = rsqrtf(block_sum(squares, scratch) / k + eps);
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                const int at = (turn * blockDim.x + threadIdx.x) * 8;
                if (at < k) {
                    float w[8];
                    load8(weight + at, w);
#pragma unroll
                    for (int i = 0; i < 8; i++) kept[turn][i] *= scale * w[i];
                    store8(x + row + at, kept[turn]);
                }
            }
        }
        __syncthreads();
        return x;
    }
};

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

// Two dot products for each of M rows of x; complete in every lane.
template <typename T, int M, typename Source>
__device__ __forceinline__ void dot_pair(const T *row_a, const T *row_b, const Source &source, int k, float (&sum_a)[M], float (&sum_b)[M]) {
    const int first = (threadIdx.x % 32) * 8;
    Rows<T> a, b;
    fetch(a, row_a, first, k);
    fetch(b, row_b, first, k);
    const T *x = source.ready(k);
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
template <typename T, typename Out, int M, typename Source>
__device__ __forceinline__ void gemv(const Source &source, const T *w, const T *bias, int n, int k, Out *out) {
    const int first = 2 * (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
    // A warp behind the end helps with x all the same.
    const int a = min(first, n - 1), b = min(first + 1, n - 1);
    float sum_a[M], sum_b[M];
    dot_pair<T, M>(w + (size_t)a * k, w + (size_t)b * k, source, k, sum_a, sum_b);
    if (threadIdx.x % 32 == 0 && first < n) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            out[(size_t)m * n + a] = narrow<Out>(sum_a[m] + (bias ? widen(bias[a]) : 0.f));
            if (b > a) out[(size_t)m * n + b] = narrow<Out>(sum_b[m] + (bias ? widen(bias[b]) : 0.f));
        }
    }
}

// out [M, I] = silu(x gate^T) * (x up^T), where w [2 I, K] holds gate above up.
template <typename T, int M, typename Source>
__device__ __forceinline__ void gated_gemv(const Source &source, const T *w, int inner, int k, T *out) {
    const int mine = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, at = min(mine, inner - 1);
    float gate[M], up[M];
    dot_pair<T, M>(w + (size_t)at * k, w + (size_t)(inner + at) * k, source, k, gate, up);
    if (threadIdx.x % 32 == 0 && mine < inner) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            // What a product that is stored between the two would have been rounded to.
            const float g = widen(narrow<T>(gate[m])), u = widen(narrow<T>(up[m]));
            out[(size_t)m * inner + at] = narrow<T>(g / (1.f + __expf(-g)) * u);
        }
    }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define SIZES(name, T, M)                                                                                                              \
    KERNEL gemv_##name##_##M(const T *x, const T *w, const T *bias, int n, int k, T *out) {                                             \
        gemv<T, T, M>(Plain<T>{x}, w, bias, n, k, out);                                                                                \
    }                                                                                                                                  \
    KERNEL gemv_wide_##name##_##M(const T *x, const T *w, const T *bias, int n, int k, float *out) {                                    \
        gemv<T, float, M>(Plain<T>{x}, w, bias, n, k, out);                                                                            \
    }                                                                                                                                  \
    KERNEL normed_gemv_##name##_##M(const T *last, const T *stream, const T *norm, float eps, T *sum, const T *w, const T *bias,        \
                                    int n, int k, T *out) {                                                                            \
        gemv<T, T, M>(Normed<T, M>{last, stream, norm, eps, sum}, w, bias, n, k, out);                                                 \
    }                                                                                                                                  \
    KERNEL gated_gemv_##name##_##M(const T *x, const T *w, int inner, int k, T *out) {                                                  \
        gated_gemv<T, M>(Plain<T>{x}, w, inner, k, out);                                                                               \
    }                                                                                                                                  \
    KERNEL normed_gated_gemv_##name##_##M(const T *last, const T *stream, const T *norm, float eps, T *sum, const T *w, int inner,      \
                                          int k, T *out) {                                                                             \
        gated_gemv<T, M>(Normed<T, M>{last, stream, norm, eps, sum}, w, inner, k, out);                                                \
    }
#define INSTANCE(name, T) SIZES(name, T, 1) SIZES(name, T, 2) SIZES(name, T, 3) SIZES(name, T, 4)
FOR_EACH_FLOAT(INSTANCE)
