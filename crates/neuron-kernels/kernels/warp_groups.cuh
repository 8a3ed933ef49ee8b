// Warp-group products of Hopper: 64 rows times a tile in shared memory, asynchronously (wgmma, PTX ISA 8.0), and the barriers between those
// who fill tiles and those who compute with them.
//
// Tiles are rows of 128 bytes, eight of which repeat a pattern: chunk c of 16 bytes of row r lies at chunk c ^ (r % 8). A tile begins at a
// multiple of 1024 bytes.
#pragma once
#include "warp_tiles.cuh"

// A barrier that counts arrivals; each time that all have come its phase changes.
typedef uint64_t Barrier;

__device__ __forceinline__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void expect(Barrier *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(Barrier *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Waits for the end of a phase: 0 of the first, 1 of the second, 0 of the third, ...
__device__ __forceinline__ void wait(Barrier *barrier, unsigned phase) {
    asm volatile("{\n\t"
                 ".reg .pred done;\n\t"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
                 "@!done bra again;\n\t"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(phase)
                 : "memory");
}

// Makes what this thread put into shared memory visible to the tensor cores.
__device__ __forceinline__ void show_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A tile as the right side of a product, or as the left one: rows of 64 elements of what is summed over. For 16 of these, 32 bytes on.
__device__ __forceinline__ uint64_t rows_of(const void *tile) {
    return (uint64_t)(shared_address(tile) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// A tile as the right side of a product whose sum runs over its rows, the columns in tiles of 64 that are `apart` bytes apart. For 16 rows,
// 2048 bytes on.
__device__ __forceinline__ uint64_t columns_of(const void *tile, int apart) {
    return (uint64_t)(shared_address(tile) >> 4 & 0x3fff) | (uint64_t)(apart >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// Around products: registers may be read by them from here on; those so far are a group; all groups but the last N are done.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define FOUR(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SIXTEEN(c, i) FOUR(c, i), FOUR(c, i + 1), FOUR(c, i + 2), FOUR(c, i + 3)
#define REGISTERS_32 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// c [64, 128] (+)= a [64, 16] b [16, 128], both in shared memory; each warp holds 16 rows of c as `multiply_add` does.
#define SHARED(type, name)                                                                                                             \
    template <> __device__ __forceinline__ void multiply_tiles<type>(float (&c)[16][4], uint64_t a, uint64_t b, bool add) {             \
        asm volatile("{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %66, 0;\n\t"                                                            \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " {" REGISTERS_64 "}, %64, %65, add, 1, 1, 0, 0;\n\t}"  \
                     : SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8), SIXTEEN(c, 12)                                                      \
                     : "l"(a), "l"(b), "r"((int)add));                                                                                 \
    }
template <typename T> __device__ __forceinline__ void multiply_tiles(float (&c)[16][4], uint64_t a, uint64_t b, bool add);
SHARED(bf16, "bf16")
SHARED(f16, "f16")

// c [64, 8 N] += a [64, 16] b [16, 8 N], b in shared memory with its columns together, a as in `multiply_add`.
#define REGISTERS(type, name)                                                                                                          \
    template <> __device__ __forceinline__ void multiply_add_tile<type>(float (&c)[16][4], const unsigned (&a)[4], uint64_t b) {        \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " {" REGISTERS_64                                     \
                     "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                                                       \
                     : SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8), SIXTEEN(c, 12)                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                            \
    }                                                                                                                                  \
    template <> __device__ __forceinline__ void multiply_add_tile<type>(float (&c)[8][4], const unsigned (&a)[4], uint64_t b) {         \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " {" REGISTERS_32                                      \
                     "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                                       \
                     : SIXTEEN(c, 0), SIXTEEN(c, 4)                                                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                            \
    }
template <typename T> __device__ __forceinline__ void multiply_add_tile(float (&c)[16][4], const unsigned (&a)[4], uint64_t b);
template <typename T> __device__ __forceinline__ void multiply_add_tile(float (&c)[8][4], const unsigned (&a)[4], uint64_t b);
REGISTERS(bf16, "bf16")
REGISTERS(f16, "f16")
