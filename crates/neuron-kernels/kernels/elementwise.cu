// Gates, activations, and rows looked up in a table.
#include "common.cuh"

// [rows, 2 width] to [rows, width]: silu(gate) * up, gate in the first half of a row.
template <typename T> __device__ void silu_mul(const T *gate_up, int width, size_t count, T *out) {
    wait_for_previous_kernel();
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    const size_t first = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (width % 8 == 0) {
        for (size_t i = first; i < count / 8; i += stride) {
            const size_t row = i * 8 / width, at = i * 8 % width;
            float gate[8], up[8];
            load8(gate_up + row * 2 * width + at, gate);
            load8(gate_up + row * 2 * width + width + at, up);
#pragma unroll
            for (int j = 0; j < 8; j++) gate[j] = gate[j] / (1.f + __expf(-gate[j])) * up[j];
            store8(out + i * 8, gate);
        }
    } else {
        for (size_t i = first; i < count; i += stride) {
            const size_t row = i / width, at = i % width;
            const float gate = widen(gate_up[row * 2 * width + at]);
            out[i] = narrow<T>(gate / (1.f + __expf(-gate)) * widen(gate_up[row * 2 * width + width + at]));
        }
    }
}

template <typename T, bool TANH> __device__ void gelu(const T *x, size_t count, T *out) {
    wait_for_previous_kernel();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        const float v = widen(x[i]);
        const float bent = TANH ? tanhf(0.7978845608f * (v + 0.044715f * v * v * v)) : erff(v * 0.7071067812f);
        out[i] = narrow<T>(0.5f * v * (1.f + bent));
    }
}

// [V, H] and ids [T] to [T, H]; an id outside the table gives zeros, as the host has checked those it knows.
template <typename T> __device__ void embedding(const unsigned *ids, const T *table, unsigned rows, int width, T *out) {
    wait_for_previous_kernel();
    const unsigned id = ids[blockIdx.x];
    const bool known = id < rows;
    const T *from = table + (size_t)(known ? id : 0) * width;
    T *to = out + (size_t)blockIdx.x * width;
    if (width % 8 == 0) {
        for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8) {
            float v[8] = {};
            if (known) load8(from + at, v);
            store8(to + at, v);
        }
    } else {
        for (int at = threadIdx.x; at < width; at += blockDim.x) to[at] = known ? from[at] : narrow<T>(0.f);
    }
}

// Ids whose top bit is set name an entry of `drawn` instead of a token.
extern "C" __global__ void resolve_ids(unsigned *ids, const unsigned *drawn, int count) {
    wait_for_previous_kernel();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && ids[i] >> 31) ids[i] = drawn[ids[i] & 0x7fffffffu];
}

#define INSTANCE(name, T)                                                                                                              \
    extern "C" __global__ void silu_mul_##name(const T *gate_up, int width, size_t count, T *out) {                                     \
        silu_mul<T>(gate_up, width, count, out);                                                                                       \
    }                                                                                                                                  \
    extern "C" __global__ void gelu_tanh_##name(const T *x, size_t count, T *out) { gelu<T, true>(x, count, out); }                     \
    extern "C" __global__ void gelu_erf_##name(const T *x, size_t count, T *out) { gelu<T, false>(x, count, out); }                     \
    extern "C" __global__ void embedding_##name(const unsigned *ids, const T *table, unsigned rows, int width, T *out) {                \
        embedding<T>(ids, table, rows, width, out);                                                                                    \
    }
FOR_EACH_FLOAT(INSTANCE)
