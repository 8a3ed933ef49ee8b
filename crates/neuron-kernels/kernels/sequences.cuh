// Which tokens of a step a block of threads works on, read from where the sequences begin: a captured step finds new ones each time.
#pragma once
#include "common.cuh"

// Some rows of one sequence.
struct Span {
    int sequence;    // -1: none
    int first_token; // of the sequence in the step
    int tokens;      // of the sequence
    int tile;        // of the sequence's rows
};

// Tile `tile` of all, where each sequence of at least `tokens_min` tokens has `group` rows a token, cut into tiles of `rows`. To be called
// by whole warps; every lane gets the answer.
__device__ __forceinline__ Span find_rows(const unsigned *starts, int sequences, int tokens_min, int group, int rows, int tile) {
    const int lane = threadIdx.x % 32;
    for (int base = 0; base < sequences; base += 32) {
        const bool there = base + lane < sequences;
        const int start = there ? starts[base + lane] : 0, tokens = there ? starts[base + lane + 1] - start : 0;
        const int tiles = tokens < tokens_min ? 0 : (tokens * group + rows - 1) / rows;
        int up_to = tiles; // of this sequence and those before it
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int before = __shfl_up_sync(0xffffffffu, up_to, distance);
            if (lane >= distance) up_to += before;
        }
        const unsigned behind = __ballot_sync(0xffffffffu, tile < up_to);
        if (behind != 0) {
            const int owner = __ffs(behind) - 1;
            const int before = __shfl_sync(0xffffffffu, up_to - tiles, owner);
            return {base + owner, __shfl_sync(0xffffffffu, start, owner), __shfl_sync(0xffffffffu, tokens, owner), tile - before};
        }
        tile -= __shfl_sync(0xffffffffu, up_to, 31);
    }
    return {-1, 0, 0, 0};
}
