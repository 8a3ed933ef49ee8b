// RMSNorm, alone or with the residual addition before it, and LayerNorm. One block a row, the mean in f32.
#include "common.cuh"

// Eight elements a thread and turn; rows up to TURNS * 8 * blockDim.x stay in registers between the two passes.
constexpr int TURNS = 4;

template <typename T, bool ADD>
__device__ void rms_norm(const T *x, const T *residual, const T *weight, float eps, int width, T *sum, T *normed) {
    __shared__ float scratch[32];
    wait_for_previous_kernel();
    const size_t row = (size_t)blockIdx.x * width;
    float kept[TURNS][8];
    float squares = 0.f;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int at = (turn * blockDim.x + threadIdx.x) * 8;
        if (at < width) {
            load8(x + row + at, kept[turn]);
            if (ADD) {
                float more[8];
                load8(residual + row + at, more);
#pragma unroll
                for (int i = 0; i < 8; i++) kept[turn][i] += more[i];
                store8(sum + row + at, kept[turn]);
                round8<T>(kept[turn]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) squares += kept[turn][i] * kept[turn][i];
        }
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / width + eps);
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int at = (turn * blockDim.x + threadIdx.x) * 8;
        if (at < width) {
            float w[8], out[8];
            load8(weight + at, w);
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] = kept[turn][i] * scale * w[i];
            store8(normed + row + at, out);
        }
    }
}

// Any width, one element at a time, read twice.
template <typename T, bool ADD>
__device__ void rms_norm_any(const T *x, const T *residual, const T *weight, float eps, int width, T *sum, T *normed) {
    __shared__ float scratch[32];
    wait_for_previous_kernel();
    const size_t row = (size_t)blockIdx.x * width;
    float squares = 0.f;
    for (int at = threadIdx.x; at < width; at += blockDim.x) {
        float value = widen(x[row + at]);
        if (ADD) {
            const T stored = narrow<T>(value + widen(residual[row + at]));
            sum[row + at] = stored;
            value = widen(stored);
        }
        squares += value * value;
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / width + eps);
    for (int at = threadIdx.x; at < width; at += blockDim.x) {
        const float value = widen(ADD ? sum[row + at] : x[row + at]);
        normed[row + at] = narrow<T>(value * scale * widen(weight[at]));
    }
}

template <typename T>
__device__ void layer_norm(const T *x, const T *weight, const T *bias, float eps, int width, T *out) {
    __shared__ float scratch[32];
    wait_for_previous_kernel();
    const size_t row = (size_t)blockIdx.x * width;
    float sum = 0.f;
    for (int at = threadIdx.x; at < width; at += blockDim.x) sum += widen(x[row + at]);
    const float mean = block_sum(sum, scratch) / width;
    float squares = 0.f;
    for (int at = threadIdx.x; at < width; at += blockDim.x) {
        const float centred = widen(x[row + at]) - mean;
        squares += centred * centred;
    }
    const float scale = rsqrtf(block_sum(squares, scratch) / width + eps);
    for (int at = threadIdx.x; at < width; at += blockDim.x) {
        out[row + at] = narrow<T>((widen(x[row + at]) - mean) * scale * widen(weight[at]) + widen(bias[at]));
    }
}

#define INSTANCE(name, T)                                                                                                              \
    extern "C" __global__ void rms_norm_##name(const T *x, const T *weight, float eps, int width, T *normed) {                          \
        rms_norm<T, false>(x, nullptr, weight, eps, width, nullptr, normed);                                                           \
    }                                                                                                                                  \
    extern "C" __global__ void rms_norm_any_##name(const T *x, const T *weight, float eps, int width, T *normed) {                      \
        rms_norm_any<T, false>(x, nullptr, weight, eps, width, nullptr, normed);                                                       \
    }                                                                                                                                  \
    extern "C" __global__ void add_rms_norm_##name(const T *x, const T *residual, const T *weight, float eps, int width, T *sum,        \
                                                   T *normed) {                                                                        \
        rms_norm<T, true>(x, residual, weight, eps, width, sum, normed);                                                               \
    }                                                                                                                                  \
    extern "C" __global__ void add_rms_norm_any_##name(const T *x, const T *residual, const T *weight, float eps, int width, T *sum,    \
                                                       T *normed) {                                                                    \
        rms_norm_any<T, true>(x, residual, weight, eps, width, sum, normed);                                                           \
    }                                                                                                                                  \
    extern "C" __global__ void layer_norm_##name(const T *x, const T *weight, const T *bias, float eps, int width, T *out) {            \
        layer_norm<T>(x, weight, bias, eps, width, out);                                                                               \
    }
FOR_EACH_FLOAT(INSTANCE)
