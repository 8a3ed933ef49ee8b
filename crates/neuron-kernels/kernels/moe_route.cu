// A router's logits to the experts that it prefers.
#include "common.cuh"

typedef unsigned long long u64;

// Logit and expert as one number: the higher logit is the greater, then the lower expert.
__device__ __forceinline__ u64 ranked(float logit, unsigned expert) {
    const unsigned bits = __float_as_uint(logit + 0.f);
    return (u64)(bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u)) << 32 | (0xffffffffu - expert);
}

// logits [T, E] to the k most probable experts, best first, and their softmax weights [T, k]. One warp a token.
template <typename T>
__device__ void moe_route(const T *logits, int tokens, int experts, int k, int renormalise, unsigned *ids, float *weights) {
    wait_for_previous_kernel();
    const int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    const T *row = logits + (size_t)token * experts;
    float highest = -INFINITY;
    for (int e = lane; e < experts; e += 32) highest = fmaxf(highest, widen(row[e]));
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, lanes));
    float sum = 0.f;
    for (int e = lane; e < experts; e += 32) sum += expf(widen(row[e]) - highest);
    sum = warp_sum(sum);
    float kept = 0.f;
    u64 bound = ~0ull;
    for (int i = 0; i < k; i++) {
        u64 best = 0;
        for (int e = lane; e < experts; e += 32) {
            const u64 other = ranked(widen(row[e]), e);
            if (other < bound && other > best) best = other;
        }
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            const u64 other = __shfl_xor_sync(0xffffffffu, best, lanes);
            if (other > best) best = other;
        }
        bound = best;
        const unsigned expert = 0xffffffffu - (unsigned)best;
        const float weight = expf(widen(row[expert]) - highest) / sum;
        kept += weight;
        if (lane == 0) {
            ids[(size_t)token * k + i] = expert;
            weights[(size_t)token * k + i] = weight;
        }
    }
    if (renormalise && lane == 0) {
        for (int i = 0; i < k; i++) weights[(size_t)token * k + i] /= kept;
    }
}

#define INSTANCE(name, T)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) moe_route_##name(const T *logits, int tokens, int experts, int k, int renormalise, \
                                                                      unsigned *ids, float *weights) {                                 \
        moe_route<T>(logits, tokens, experts, k, renormalise, ids, weights);                                                           \
    }
FOR_EACH_FLOAT(INSTANCE)
