// Parts that lie one after the other, laid side by side.
#include "common.cuh"

// parts [W, R, C] to out [R, W C]
template <typename T>
__device__ void interleave(const T* parts, uint32_t count, uint32_t rows, uint32_t columns, T* out) {
    wait_for_previous_kernel();
    const uint64_t total = uint64_t(count) * rows * columns;
    for (uint64_t at = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; at < total; at += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t part = at / (uint64_t(rows) * columns), rest = at % (uint64_t(rows) * columns);
        out[(rest / columns * count + part) * columns + rest % columns] = parts[at];
    }
}

extern "C" __global__ void interleave_4(const uint32_t* parts, uint32_t count, uint32_t rows, uint32_t columns, uint32_t* out) {
    interleave(parts, count, rows, columns, out);
}

extern "C" __global__ void interleave_2(const uint16_t* parts, uint32_t count, uint32_t rows, uint32_t columns, uint16_t* out) {
    interleave(parts, count, rows, columns, out);
}
