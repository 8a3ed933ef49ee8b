// Attention on tensor cores, for heads up to D wide: tiles in shared memory, scores, running softmax, weighted values.
#pragma once
#include "warp_tiles.cuh"

// Tokens of a block of the cache; also how many rows of keys or values are found at a time.
constexpr int BLOCK = 32;
constexpr float LOG2_E = 1.4426950408889634f;

// A tile of rows of D elements, as 16-byte chunks. Eight rows of one chunk lie in eight different groups of banks, by swapping chunks
// where a row is a multiple of 128 bytes, by a chunk of padding elsewhere.
template <int D> struct Tile {
    static_assert(D % 16 == 0, "a tile is cut into steps of 16");
    static constexpr int CHUNKS = D / 8;
    static constexpr int STRIDE = D % 64 == 0 ? CHUNKS : CHUNKS + 1;
    static constexpr int STEPS = D / 16;

    static __device__ __forceinline__ int at(int row, int chunk) {
        return D % 64 == 0 ? row * STRIDE + (chunk ^ (row & 7)) : row * STRIDE + chunk;
    }
};

// Two floats as neighbours in a register, the first in the low half.
template <typename T> __device__ __forceinline__ unsigned pack(float low, float high);
template <> __device__ __forceinline__ unsigned pack<bf16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&pair);
}
template <> __device__ __forceinline__ unsigned pack<f16>(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&pair);
}

// Copies 32 rows, `stride` elements apart, into rows `first`.. of a tile, with `threads` threads. Rows from `rows` on and chunks from
// `chunks` on become zeros: zeros times what an unused part of the cache holds must stay zeros.
template <typename T, int D>
__device__ __forceinline__ void load_block(uint4 *tile, int first, const T *from, int stride, int rows, int chunks, int thread, int threads) {
#pragma unroll 2
    for (int i = 0; i < BLOCK * Tile<D>::CHUNKS; i += threads) {
        const int at = i + thread, row = at / Tile<D>::CHUNKS, chunk = at % Tile<D>::CHUNKS;
        if ((BLOCK * Tile<D>::CHUNKS) % threads != 0 && row >= BLOCK) break;
        const bool valid = row < rows && chunk < chunks;
        copy_16_async(tile + Tile<D>::at(first + row, chunk), valid ? from + (size_t)row * stride + chunk * 8 : from, valid);
    }
}

// Scores of 16 queries with 8 N keys: s += q k^T over the 16 elements of one step.
template <typename T, int D, int N>
__device__ __forceinline__ void score_step(float (&s)[N][4], const unsigned (&q)[4], const uint4 *keys, int step, int lane) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        unsigned k[4];
        load_matrices(k, keys + Tile<D>::at(n * 8 + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
        multiply_add<T>(s[n], q, k[0], k[1]);
        multiply_add<T>(s[n + 1], q, k[2], k[3]);
    }
}

// Hides the keys of a tile that begins at `first` from the queries of a lane, which see `visible` keys of their context.
template <int N> __device__ __forceinline__ void hide(float (&s)[N][4], int first, const int (&visible)[2], int lane) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (first + n * 8 + lane % 4 * 2 + i % 2 >= visible[i / 2]) s[n][i] = -INFINITY;
        }
    }
}

// The softmax so far of the two queries of a lane, and their gathered values. The sums are those of the lane's own columns.
template <int D> struct Running {
    float max[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.f, 0.f};
    float values[D / 8][4] = {};

    // Scores to weights, of which at least one of each query is finite. `scale` is to the base 2.
    template <int N> __device__ __forceinline__ void soften(float (&s)[N][4], float scale) {
        float decay[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float top = max[i];
#pragma unroll
            for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            decay[i] = exp2_fast((max[i] - top) * scale);
            max[i] = top;
            const float shift = top * scale;
            float added = 0.f;
#pragma unroll
            for (int n = 0; n < N; n++) {
                s[n][2 * i] = exp2_fast(s[n][2 * i] * scale - shift);
                s[n][2 * i + 1] = exp2_fast(s[n][2 * i + 1] * scale - shift);
                added += s[n][2 * i] + s[n][2 * i + 1];
            }
            sum[i] = sum[i] * decay[i] + added;
        }
        if (__any_sync(0xffffffffu, decay[0] != 1.f || decay[1] != 1.f)) {
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) values[n][i] *= decay[i / 2];
            }
        }
    }

    // The sums over all columns.
    __device__ __forceinline__ void close() {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
        }
    }
};

// Weights of 16 keys of a tile, as the left side of a product.
template <typename T, int N> __device__ __forceinline__ void weights_of(unsigned (&p)[4], const float (&s)[N][4], int step) {
    p[0] = pack<T>(s[2 * step][0], s[2 * step][1]);
    p[1] = pack<T>(s[2 * step][2], s[2 * step][3]);
    p[2] = pack<T>(s[2 * step + 1][0], s[2 * step + 1][1]);
    p[3] = pack<T>(s[2 * step + 1][2], s[2 * step + 1][3]);
}

__device__ __forceinline__ void add(float4 &sum, float weight, const float4 &value) {
    sum.x += weight * value.x;
    sum.y += weight * value.y;
    sum.z += weight * value.z;
    sum.w += weight * value.w;
}

// Four neighbours, times `factor`, to an address that is a multiple of 8 bytes.
template <typename T> __device__ __forceinline__ void store4(T *to, const float4 &v, float factor) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(pack<T>(v.x * factor, v.y * factor), pack<T>(v.z * factor, v.w * factor));
}
