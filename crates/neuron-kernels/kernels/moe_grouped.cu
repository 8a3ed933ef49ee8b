// The experts of many tokens: pairs (a token and one of its k choices) are put in the order of their experts and cut into tiles of one
// expert; each tile is a matrix product on the tensor cores. Which row of a tile a pair gets does not change its numbers.
#include "warp_tiles.cuh"

constexpr unsigned NONE = 0xffffffffu;
constexpr int EXPERTS_MAX = 1024;
constexpr int CHOICES_MAX = 32;

// Rows of one expert.
struct Tile {
    unsigned expert; // or NONE
    unsigned start;  // in `order`
    unsigned rows;
    unsigned unused;
};

// ids [pairs] to the pairs in the order of their experts, and to `tiles_max` tiles of at most `height` rows, the unused ones last. One
// block of EXPERTS_MAX threads. A pair without expert is in no tile.
extern "C" __global__ void __launch_bounds__(EXPERTS_MAX)
    moe_align(const unsigned *ids, int pairs, int experts, int height, int tiles_max, unsigned *order, Tile *tiles) {
    __shared__ unsigned rows[EXPERTS_MAX], next[EXPERTS_MAX];
    __shared__ unsigned warp_rows[32], warp_tiles[32];
    wait_for_previous_kernel();
    const int expert = threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    rows[expert] = 0;
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += EXPERTS_MAX) {
        if (ids[pair] < experts) atomicAdd(&rows[ids[pair]], 1u);
    }
    __syncthreads();
    // Rows and tiles of the experts up to this one.
    const unsigned own_rows = rows[expert], own_tiles = (own_rows + height - 1) / height;
    unsigned sum_rows = own_rows, sum_tiles = own_tiles;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const unsigned more_rows = __shfl_up_sync(0xffffffffu, sum_rows, lanes), more_tiles = __shfl_up_sync(0xffffffffu, sum_tiles, lanes);
        if (lane >= lanes) {
            sum_rows += more_rows;
            sum_tiles += more_tiles;
        }
    }
    if (lane == 31) {
        warp_rows[warp] = sum_rows;
        warp_tiles[warp] = sum_tiles;
    }
    __syncthreads();
    unsigned all_tiles = 0;
#pragma unroll 1
    for (int other = 0; other < 32; other++) {
        if (other < warp) {
            sum_rows += warp_rows[other];
            sum_tiles += warp_tiles[other];
        }
        all_tiles += warp_tiles[other];
    }
    const unsigned start = sum_rows - own_rows, first_tile = sum_tiles - own_tiles;
    for (unsigned i = 0; i < own_tiles; i++) {
        tiles[first_tile + i] = {(unsigned)expert, start + i * height, min((unsigned)height, own_rows - i * height), 0};
    }
    for (unsigned tile = all_tiles + threadIdx.x; tile < tiles_max; tile += EXPERTS_MAX) tiles[tile] = {NONE, 0, 0, 0};
    next[expert] = start;
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += EXPERTS_MAX) {
        if (ids[pair] < experts) order[atomicAdd(&next[ids[pair]], 1u)] = pair;
    }
}

constexpr int THREADS = 128;
constexpr int WIDTH = 128;      // rows of the weights in a tile
constexpr int DEPTH = 64;       // columns of a stage
constexpr int CHUNKS = DEPTH / 8; // of 16 bytes, in a row of a stage

// How a tile of HEIGHT rows is shared by four warps.
template <int HEIGHT> struct Shape {
    static constexpr int STAGES = HEIGHT == 16 ? 4 : 3;
    static constexpr int WARPS_DOWN = HEIGHT == 16 ? 1 : 2, WARPS_ACROSS = 4 / WARPS_DOWN;
    static constexpr int ROWS = HEIGHT / WARPS_DOWN, COLUMNS = WIDTH / WARPS_ACROSS; // of a warp
    static constexpr int DOWN = ROWS / 16, ACROSS = COLUMNS / 8;                     // fragments of a warp
    static constexpr int STAGE = (HEIGHT + WIDTH) * CHUNKS;                          // chunks of a stage
};

// Where chunk c of a row lies: eight rows read at once, or one row written at once, meet all banks.
__device__ __forceinline__ int place_of(int row, int chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

// One tile of x w^T. Row r of the tile is row order[start + r] / share of x [.., k]; the weights of an expert are [n, k], or with GATED
// [2 n, k], gate above up: then out is silu(gate) * up. Out is [pairs, n].
template <typename T, int HEIGHT, bool GATED>
__device__ void moe_product(const T *x, const T *w, const unsigned *order, const Tile *tiles, int share, int n, int k, T *out) {
    typedef Shape<HEIGHT> S;
    extern __shared__ uint4 stages[];
    __shared__ unsigned pairs[HEIGHT];
    wait_for_previous_kernel();
    const Tile tile = tiles[blockIdx.y];
    if (tile.expert == NONE) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x < HEIGHT) pairs[threadIdx.x] = order[tile.start + min(threadIdx.x, tile.rows - 1)];
    __syncthreads();

    // This thread copies chunk `chunk` of rows `row`, `row` + 16, ..
    const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
    constexpr int STEP = THREADS / CHUNKS;
    const T *x_rows[HEIGHT / STEP];
#pragma unroll
    for (int i = 0; i < HEIGHT / STEP; i++) x_rows[i] = x + (size_t)(pairs[row + i * STEP] / share) * k + chunk * 8;
    // With GATED, eight rows of the gate and the same eight of up take turns, so that both meet in one warp's fragments.
    const int first = blockIdx.x * (GATED ? WIDTH / 2 : WIDTH);
    const int w_row = GATED ? first + row % 8 : first + row;
    const int w_step = GATED ? STEP / 2 : STEP;
    const T *w_rows = w + (size_t)tile.expert * (GATED ? 2 : 1) * n * k + (size_t)(GATED ? row / 8 : 0) * n * k + (size_t)w_row * k + chunk * 8;

    const auto fetch = [&](int stage, int turn) {
        uint4 *a = stages + stage * S::STAGE, *b = a + HEIGHT * CHUNKS;
        const int column = turn * DEPTH;
        const bool within = column + chunk * 8 < k;
#pragma unroll
        for (int i = 0; i < HEIGHT / STEP; i++) {
            const bool present = within && row + i * STEP < tile.rows;
            copy_16_async(a + place_of(row + i * STEP, chunk), present ? x_rows[i] + column : x, present);
        }
#pragma unroll
        for (int i = 0; i < WIDTH / STEP; i++) {
            const bool present = within && w_row + i * w_step < n;
            copy_16_async(b + place_of(row + i * STEP, chunk), present ? w_rows + (size_t)i * w_step * k + column : w, present);
        }
    };

    float sums[S::DOWN][S::ACROSS][4] = {};
    const int turns = (k + DEPTH - 1) / DEPTH;
#pragma unroll
    for (int turn = 0; turn < S::STAGES - 1; turn++) {
        if (turn < turns) fetch(turn, turn);
        commit_copies();
    }
    const int down = warp / S::WARPS_ACROSS * S::ROWS, across = warp % S::WARPS_ACROSS * S::COLUMNS;
    for (int turn = 0; turn < turns; turn++) {
        wait_for_copies<S::STAGES - 2>();
        __syncthreads();
        if (turn + S::STAGES - 1 < turns) fetch((turn + S::STAGES - 1) % S::STAGES, turn + S::STAGES - 1);
        commit_copies();
        const uint4 *a = stages + turn % S::STAGES * S::STAGE, *b = a + HEIGHT * CHUNKS;
#pragma unroll
        for (int step = 0; step < DEPTH / 16; step++) {
            unsigned x_parts[S::DOWN][4], w_parts[S::ACROSS / 2][4];
#pragma unroll
            for (int i = 0; i < S::DOWN; i++) load_matrices(x_parts[i], a + place_of(down + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < S::ACROSS / 2; j++) {
                load_matrices(w_parts[j], b + place_of(across + j * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < S::DOWN; i++) {
#pragma unroll
                for (int j = 0; j < S::ACROSS; j++) multiply_add<T>(sums[i][j], x_parts[i], w_parts[j / 2][j % 2 * 2], w_parts[j / 2][j % 2 * 2 + 1]);
            }
        }
    }

    // A fragment holds rows lane / 4 and 8 below, columns lane % 4 * 2 and the next.
#pragma unroll
    for (int i = 0; i < S::DOWN; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = down + i * 16 + half * 8 + lane / 4;
            if (at >= tile.rows) continue;
            T *to = out + (size_t)pairs[at] * n;
            if (GATED) {
#pragma unroll
                for (int j = 0; j < S::ACROSS; j += 2) {
                    const int column = first + (across + j * 8) / 2 + lane % 4 * 2;
                    if (column >= n) continue;
#pragma unroll
                    for (int l = 0; l < 2; l++) {
                        // What a product that is stored between the two would have been rounded to.
                        const float g = widen(narrow<T>(sums[i][j][half * 2 + l])), u = widen(narrow<T>(sums[i][j + 1][half * 2 + l]));
                        to[column + l] = narrow<T>(g / (1.f + __expf(-g)) * u);
                    }
                }
            } else {
#pragma unroll
                for (int j = 0; j < S::ACROSS; j++) {
                    const int column = first + across + j * 8 + lane % 4 * 2;
                    if (column >= n) continue;
#pragma unroll
                    for (int l = 0; l < 2; l++) to[column + l] = narrow<T>(sums[i][j][half * 2 + l]);
                }
            }
        }
    }
}

// y [T k, H] to the weighted sum of each token's choices [T, H], in rising order of the experts. H is a multiple of 8.
template <typename T>
__device__ void moe_combine(const T *y, const unsigned *ids, const float *weights, int experts, int choices, int hidden, T *out) {
    __shared__ int order[CHOICES_MAX];
    __shared__ float shares[CHOICES_MAX];
    wait_for_previous_kernel();
    const size_t token = blockIdx.x;
    const unsigned *chosen = ids + token * choices;
    if (threadIdx.x < choices) {
        const int choice = threadIdx.x;
        int rank = 0;
        for (int other = 0; other < choices; other++) {
            rank += chosen[other] < chosen[choice] || (chosen[other] == chosen[choice] && other < choice);
        }
        order[rank] = chosen[choice] < experts ? choice : -1;
        shares[rank] = weights[token * choices + choice];
    }
    __syncthreads();
    for (int at = (blockIdx.y * blockDim.x + threadIdx.x) * 8; at < hidden; at += gridDim.y * blockDim.x * 8) {
        float sums[8] = {};
        for (int i = 0; i < choices; i++) {
            if (order[i] < 0) continue;
            float v[8];
            load8(y + (token * choices + order[i]) * hidden + at, v);
#pragma unroll
            for (int j = 0; j < 8; j++) sums[j] += shares[i] * v[j];
        }
        store8(out + token * hidden + at, sums);
    }
}

#define TILED(name, T, HEIGHT)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS) moe_gated_##HEIGHT##_##name(                                                 \
        const T *x, const T *w, const unsigned *order, const Tile *tiles, int share, int n, int k, T *out) {                           \
        moe_product<T, HEIGHT, true>(x, w, order, tiles, share, n, k, out);                                                            \
    }                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) moe_down_##HEIGHT##_##name(                                                  \
        const T *x, const T *w, const unsigned *order, const Tile *tiles, int share, int n, int k, T *out) {                           \
        moe_product<T, HEIGHT, false>(x, w, order, tiles, share, n, k, out);                                                           \
    }
#define INSTANCE(name, T)                                                                                                              \
    TILED(name, T, 16)                                                                                                                 \
    TILED(name, T, 64)                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) moe_combine_##name(const T *y, const unsigned *ids, const float *weights,        \
                                                                        int experts, int choices, int hidden, T *out) {                \
        moe_combine<T>(y, ids, weights, experts, choices, hidden, out);                                                                \
    }
INSTANCE(bf16, bf16)
INSTANCE(f16, f16)
