// The experts of few tokens: bound by the bytes of the weights that are read. A *pair* is a token and one of its k choices.
#include "common.cuh"

constexpr int CHUNK = 8 * 32;  // elements that a warp reads of a row at once
constexpr int OUTPUTS = 4;     // of one block of `moe_down_gemv`
constexpr int CHOICES_MAX = 32;

// The dot products of N rows with x, complete in every lane; AHEAD chunks of each row are in flight.
template <typename T, int N, int AHEAD> __device__ __forceinline__ void dots(const T *const (&rows)[N], const T *x, int k, float (&sums)[N]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N; n++) sums[n] = 0.f;
    if (k % 8 == 0) {
        for (int at = lane * 8; at < k; at += AHEAD * CHUNK) {
            Raw8<T> raw[AHEAD][N];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
#pragma unroll
                for (int n = 0; n < N; n++) {
                    if (at + i * CHUNK < k) raw[i][n] = stream_raw8(rows[n] + at + i * CHUNK);
                }
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (at + i * CHUNK < k) {
                    float v[8];
                    load8(x + at + i * CHUNK, v);
#pragma unroll
                    for (int n = 0; n < N; n++) {
                        float w[8];
                        widen8(raw[i][n], w);
#pragma unroll
                        for (int j = 0; j < 8; j++) sums[n] += w[j] * v[j];
                    }
                }
            }
        }
    } else {
        for (int at = lane; at < k; at += 32) {
            const float v = widen(x[at]);
#pragma unroll
            for (int n = 0; n < N; n++) sums[n] += widen(rows[n][at]) * v;
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) sums[n] = warp_sum(sums[n]);
}

// x [T, H] and gate_up [E, 2 I, H] to silu(gate) * up for each pair, [T k, I]. One warp an element.
template <typename T>
__device__ void moe_gated_gemv(const T *x, const T *gate_up, const unsigned *ids, int experts, int choices, int hidden, int inner, T *out) {
    wait_for_previous_kernel();
    const size_t pair = blockIdx.x;
    const int at = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    const unsigned expert = ids[pair];
    if (at >= inner || expert >= experts) return;
    const T *gate = gate_up + ((size_t)expert * 2 * inner + at) * hidden;
    const T *const rows[2] = {gate, gate + (size_t)inner * hidden};
    float sums[2];
    dots<T, 2, 4>(rows, x + pair / choices * hidden, hidden, sums);
    if (threadIdx.x % 32 == 0) {
        // What a product that is stored between the two would have been rounded to.
        const float g = widen(narrow<T>(sums[0])), u = widen(narrow<T>(sums[1]));
        out[pair * inner + at] = narrow<T>(g / (1.f + __expf(-g)) * u);
    }
}

// Those [T k, I] and down [E, H, I] to the weighted sum of the choices of each token, [T, H], in rising order of the experts.
template <typename T>
__device__ void moe_down_gemv(const T *gated, const T *down, const unsigned *ids, const float *weights, int experts, int choices, int hidden,
                              int inner, T *out) {
    __shared__ float parts[CHOICES_MAX][OUTPUTS];
    __shared__ int order[CHOICES_MAX];
    wait_for_previous_kernel();
    const size_t token = blockIdx.x;
    const int first = blockIdx.y * OUTPUTS;
    const unsigned *chosen = ids + token * choices;
    for (int choice = threadIdx.x / 32; choice < choices; choice += blockDim.x / 32) {
        float sums[OUTPUTS] = {};
        if (chosen[choice] < experts) {
            const T *expert = down + (size_t)chosen[choice] * hidden * inner;
            const T *rows[OUTPUTS];
#pragma unroll
            for (int i = 0; i < OUTPUTS; i++) rows[i] = expert + (size_t)min(first + i, hidden - 1) * inner;
            dots<T, OUTPUTS, 3>(rows, gated + (token * choices + choice) * inner, inner, sums);
        }
        if (threadIdx.x % 32 == 0) {
            int rank = 0;
            for (int other = 0; other < choices; other++) {
                rank += chosen[other] < chosen[choice] || (chosen[other] == chosen[choice] && other < choice);
            }
            order[rank] = choice;
#pragma unroll
            for (int i = 0; i < OUTPUTS; i++) parts[choice][i] = sums[i];
        }
    }
    __syncthreads();
    const int at = first + threadIdx.x;
    if (threadIdx.x < OUTPUTS && at < hidden) {
        float sum = 0.f;
        for (int i = 0; i < choices; i++) sum += weights[token * choices + order[i]] * parts[order[i]][threadIdx.x];
        out[token * hidden + at] = narrow<T>(sum);
    }
}

#define INSTANCE(name, T)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) moe_gated_gemv_##name(                                                           \
        const T *x, const T *gate_up, const unsigned *ids, int experts, int choices, int hidden, int inner, T *out) {                  \
        moe_gated_gemv<T>(x, gate_up, ids, experts, choices, hidden, inner, out);                                                      \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        moe_down_gemv_##name(const T *gated, const T *down, const unsigned *ids, const float *weights, int experts, int choices,       \
                             int hidden, int inner, T *out) {                                                                          \
        moe_down_gemv<T>(gated, down, ids, weights, experts, choices, hidden, inner, out);                                             \
    }
FOR_EACH_FLOAT(INSTANCE)
