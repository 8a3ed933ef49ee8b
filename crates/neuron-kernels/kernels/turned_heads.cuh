// Heads of queries and keys, eight pairs (j, j + width / 2) a lane: normalised over the head, then turned by the angles of their token.
#pragma once
#include "common.cuh"

template <typename T> struct HeadNorm {
    const T *weight; // [width], or null for none
    float eps;
};

// `lanes` neighbours of a warp, a power of two, hold a head; this one has the pairs from `first` on, or zeros from width / 2 on. All lanes of the
// warp come here together.
template <typename T>
__device__ __forceinline__ void turn_pairs(float (&a)[8], float (&b)[8], const HeadNorm<T> &norm, const float *cosines, const float *sines,
                                           int first, int width, int lanes) {
    const int half = width / 2;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += a[i] * a[i] + b[i] * b[i];
    for (int apart = lanes / 2; apart > 0; apart /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, apart);
    if (first >= half) return;
    if (norm.weight) {
        const float scale = rsqrtf(squares / width + norm.eps);
        float of_a[8], of_b[8];
        load8(norm.weight + first, of_a);
        load8(norm.weight + half + first, of_b);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            a[i] *= scale * of_a[i];
            b[i] *= scale * of_b[i];
        }
        round8<T>(a);
        round8<T>(b);
    }
    float c[8], s[8];
    load8(cosines + first, c);
    load8(sines + first, s);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float turned = a[i] * c[i] - b[i] * s[i];
        b[i] = b[i] * c[i] + a[i] * s[i];
        a[i] = turned;
    }
}
