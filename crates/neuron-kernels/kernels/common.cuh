// What the kernels share: element types, eight elements at a time, sums over a warp or a block, and the order of kernels.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;
typedef __half f16;

// A kernel may start while the one before it still runs (programmatic dependent launch). Everything that it wrote may be read, and
// everything that it reads may be overwritten, only behind this line. Each kernel lets the next one start here, not earlier: so all that
// ran before the kernel before has ended when a kernel starts, and what those wrote may be read at once.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(f16 x) { return __half2float(x); }

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 narrow<f16>(float x) { return __float2half_rn(x); }

// Eight elements as they lie in memory. Their address is a multiple of 16 bytes (32 for f32, as two loads).
template <typename T> struct Raw8 { uint4 bits; };
template <> struct Raw8<float> { uint4 bits, more; };

template <typename T> __device__ __forceinline__ Raw8<T> load_raw8(const T *p) { return {*reinterpret_cast<const uint4 *>(p)}; }
template <> __device__ __forceinline__ Raw8<float> load_raw8<float>(const float *p) {
    return {reinterpret_cast<const uint4 *>(p)[0], reinterpret_cast<const uint4 *>(p)[1]};
}

// The same past the first-level cache, for weights, which nobody reads twice.
template <typename T> __device__ __forceinline__ Raw8<T> stream_raw8(const T *p) { return {__ldcs(reinterpret_cast<const uint4 *>(p))}; }
template <> __device__ __forceinline__ Raw8<float> stream_raw8<float>(const float *p) {
    return {__ldcs(reinterpret_cast<const uint4 *>(p)), __ldcs(reinterpret_cast<const uint4 *>(p) + 1)};
}

__device__ __forceinline__ void widen8(const Raw8<float> &raw, float (&v)[8]) {
    const unsigned words[8] = {raw.bits.x, raw.bits.y, raw.bits.z, raw.bits.w, raw.more.x, raw.more.y, raw.more.z, raw.more.w};
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = __uint_as_float(words[i]);
}
__device__ __forceinline__ void widen8(const Raw8<bf16> &raw, float (&v)[8]) {
    const unsigned words[4] = {raw.bits.x, raw.bits.y, raw.bits.z, raw.bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __uint_as_float(words[i] << 16);
        v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void widen8(const Raw8<f16> &raw, float (&v)[8]) {
    const unsigned words[4] = {raw.bits.x, raw.bits.y, raw.bits.z, raw.bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __half22float2(*reinterpret_cast<const __half2 *>(&words[i]));
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}

template <typename T> __device__ __forceinline__ void load8(const T *p, float (&v)[8]) { widen8(load_raw8(p), v); }

__device__ __forceinline__ void store8(float *p, const float (&v)[8]) {
    reinterpret_cast<float4 *>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4 *>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ __forceinline__ void store8(bf16 *p, const float (&v)[8]) {
    uint4 bits;
    __nv_bfloat162 *pairs = reinterpret_cast<__nv_bfloat162 *>(&bits);
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
    *reinterpret_cast<uint4 *>(p) = bits;
}
__device__ __forceinline__ void store8(f16 *p, const float (&v)[8]) {
    uint4 bits;
    __half2 *pairs = reinterpret_cast<__half2 *>(&bits);
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
    *reinterpret_cast<uint4 *>(p) = bits;
}

// What eight elements become when they are stored in T: sums that are stored are also what is computed with.
template <typename T> __device__ __forceinline__ void round8(float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = widen(narrow<T>(v[i]));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

// The sum over a block of whole warps, given to every thread. `scratch` holds 32 floats.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    const int warps = blockDim.x / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : 0.f);
}

// One extern "C" kernel per element type.
#define FOR_EACH_FLOAT(INSTANCE) INSTANCE(f32, float) INSTANCE(bf16, bf16) INSTANCE(f16, f16)
