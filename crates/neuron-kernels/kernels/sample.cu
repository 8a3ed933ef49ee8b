// From logits [R, V] f32 to one token a row: penalties and bias, allowed tokens, temperature, top-k, min-p, top-p, and the draw.
//
// Probabilities are whole numbers here: a weight exp((logit - highest) / temperature) of 1 counts 2^44. Sums of those come out the same
// in any order, so that a row may be cut into any number of slices, and the CPU form of this file gives the same tokens bit for bit.
#include "common.cuh"

typedef unsigned long long u64;

constexpr unsigned NONE = 0xffffffffu;
constexpr unsigned NO_CANDIDATE = 0xfffffffeu;
constexpr int SLICES_MAX = 64;     // of one row
constexpr int THREADS = 256;       // that go through a slice
constexpr int FINISHERS = 512;     // that end a row
constexpr int LISTED_MAX = 1024;   // candidates of a row that are ranked in shared memory
constexpr int TOP_MAX = 20;        // alternatives that may be reported
constexpr int RADIX = 1024;        // bins of one pass of `cut`
constexpr int LOGPROB_WORDS = 1 + 2 * TOP_MAX;

// Weights whose count is not 0 lie in 32 bins an octave, from 2^-45 to 1.
constexpr unsigned LEAST_BITS = 82u << 23;
constexpr int BIN_SHIFT = 18;
constexpr int BINS = (int)(((127u << 23) - LEAST_BITS) >> BIN_SHIFT) + 1;

// The kinds of rows.
constexpr unsigned GREEDY = 0, PLAIN = 1, FILTERED = 2;

// What the host says of a row.
struct Row {
    u64 uniform;       // the number in [0, 1) that draws, times 2^64
    u64 top_p;         // the share that the nucleus reaches, times 2^64; only if `nucleus`
    unsigned kind;
    unsigned top_k;    // 0 keeps all
    unsigned nucleus;  // whether top_p is on
    float temperature; // above 0 unless greedy
    float min_weight;  // min_p; 0 keeps all
    float repetition, frequency, presence;
    unsigned edits_start, edits_len;
    unsigned mask;         // which mask, or NONE
    unsigned logprobs;     // place of the log-probabilities, or NONE
    unsigned alternatives; // at most TOP_MAX
    unsigned unused;
};
static_assert(sizeof(Row) == 72, "as the host packs it");

// A token whose logit changes. Those of a row are sorted by token; only the first of several for one token may be `seen`.
struct Edit {
    unsigned token;
    unsigned seen; // 0: in neither prompt nor answer; n + 1: in either, n times in the answer
    float bias;
};

// What the kernels tell each other about a row.
struct State {
    u64 best[SLICES_MAX]; // `ranked` highest logit of each slice
    u64 mass[SLICES_MAX];
    u64 raw_mass[SLICES_MAX];
    u64 raw_top[SLICES_MAX][TOP_MAX];
    u64 total;                // the counts of all bins together
    u64 bin_mass[BINS];
    u64 listed[LISTED_MAX];   // weight bits, then ~id
    unsigned bin_len[BINS];
    unsigned bad[SLICES_MAX]; // first id whose logit is not a number below infinity
    unsigned candidates;      // tokens in all bins
    unsigned wanted;          // of those, in bins that may be kept
    unsigned cursor;
};
// The host allocates this many bytes a row.
static_assert(sizeof(State) == 37536, "as the host allocates it");

// ---- numbers ----

// Orders like the float; both zeros are one.
__device__ __forceinline__ unsigned order_of(float x) {
    const unsigned bits = __float_as_uint(__fadd_rn(x, 0.f));
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float float_of(unsigned order) {
    return __uint_as_float(order ^ (order >> 31 ? 0x80000000u : 0xffffffffu));
}

// Logit and id as one number: the higher logit is the greater, then the lower id. 0 is less than all: nothing, as is minus infinity.
__device__ __forceinline__ u64 ranked(float logit, unsigned id) {
    return logit == -INFINITY ? 0 : (u64)order_of(logit) << 32 | (NONE - id);
}
__device__ __forceinline__ unsigned id_of(u64 ranked) { return NONE - (unsigned)ranked; }
__device__ __forceinline__ float logit_of(u64 ranked) { return float_of((unsigned)(ranked >> 32)); }

// e^z for z <= 0, from operations that every IEEE machine rounds alike; 0 where the count of the weight would be.
__device__ __forceinline__ float exp_alike(float z) {
    if (!(z > -31.25f)) return 0.f;
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
    const float shifted = __fadd_rn(__fmul_rn(z, 1.44269504f), 12582912.f);
    const float k = __fsub_rn(shifted, 12582912.f);
    const float r = __fsub_rn(__fsub_rn(z, __fmul_rn(k, 0.693145752f)), __fmul_rn(k, 1.42860677e-6f));
    constexpr float SERIES[] = {1.38888889e-3f, 8.33333333e-3f, 4.16666667e-2f, 1.66666667e-1f, 0.5f, 1.f, 1.f};
    float p = 1.98412698e-4f;
#pragma unroll
    for (int i = 0; i < 7; i++) p = __fadd_rn(__fmul_rn(p, r), SERIES[i]);
    return __fmul_rn(p, __uint_as_float((__float_as_uint(shifted) + 127) << 23));
}

// How the logits of a row become weights; the best has weight 1.
struct Weigher {
    float highest, temperature, floor;

    __device__ Weigher(float highest, float temperature) : highest(highest), temperature(temperature), floor(-31.3f * temperature) {}

    __device__ __forceinline__ float operator()(float logit) const {
        if (logit == highest) return 1.f;
        const float below = __fsub_rn(logit, highest);
        // Spares almost all tokens the division.
        return below >= floor ? exp_alike(__fdiv_rn(below, temperature)) : 0.f;
    }
};

__device__ __forceinline__ u64 count_of(float weight) { return __float2ull_rn(__fmul_rn(weight, 17592186044416.f)); }

// The least whole number that is at least share / 2^64 of total; not 0.
__device__ __forceinline__ u64 share_of(u64 share, u64 total) {
    const u64 part = __umul64hi(share, total) + (share * total != 0);
    return part ? part : 1;
}

// ---- a block ----

struct Max {
    template <typename T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};
struct Min {
    template <typename T> __device__ T operator()(T a, T b) const { return a < b ? a : b; }
};
struct Sum {
    template <typename T> __device__ T operator()(T a, T b) const { return a + b; }
};

template <typename T, typename Op> __device__ __forceinline__ T warp_reduce(T x, Op op) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}

// Over a block of whole warps, given to every thread. `scratch` holds 32.
template <typename T, typename Op> __device__ T block_reduce(T x, T neutral, Op op, T *scratch) {
    x = warp_reduce(x, op);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_reduce(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : neutral, op);
}

// The sum of x over this thread and those before it; the sum over all in `total`.
__device__ u64 block_scan(u64 x, u64 *scratch, u64 &total) {
    const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const u64 other = __shfl_up_sync(0xffffffffu, x, lanes);
        if (lane >= lanes) x += other;
    }
    __syncthreads();
    if (lane == 31) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    u64 before = 0;
    total = 0;
    for (unsigned warp = 0; warp < warps; warp++) {
        if (warp == threadIdx.x / 32) before = total;
        total += scratch[warp];
    }
    return before + x;
}

// Adds to a 64-bit number in shared memory that is kept in two words, because those have an instruction.
__device__ __forceinline__ void add_wide(unsigned *low, unsigned *high, u64 x) {
    const unsigned old = atomicAdd(low, (unsigned)x);
    const unsigned more = (unsigned)(x >> 32) + (old + (unsigned)x < old);
    if (more) atomicAdd(high, more);
}

// ---- a row ----

struct Logits {
    float *at;
    unsigned len;

    // visit(id, logit) for the ids of [start, end) that fall to the `mine`th of `others` threads, rising. Both ends are multiples of
    // 4, or the end of the row.
    template <typename Visit> __device__ __forceinline__ void visit(unsigned start, unsigned end, unsigned mine, unsigned others, Visit visit) const {
        if (len % 4 == 0) {
            const float4 *quads = reinterpret_cast<const float4 *>(at);
            for (unsigned i = start / 4 + mine; i < end / 4; i += 4 * others) {
                float4 ahead[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    if (i + j * others < end / 4) ahead[j] = quads[i + j * others];
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const unsigned id = 4 * (i + j * others);
                    if (id < end) {
                        visit(id, ahead[j].x);
                        visit(id + 1, ahead[j].y);
                        visit(id + 2, ahead[j].z);
                        visit(id + 3, ahead[j].w);
                    }
                }
            }
        } else {
            for (unsigned id = start + mine; id < end; id += others) visit(id, at[id]);
        }
    }

    template <typename Visit> __device__ __forceinline__ void visit_all(Visit each) const { visit(0, len, threadIdx.x, blockDim.x, each); }
};

__device__ __forceinline__ Logits logits_of(float *logits, unsigned vocab, unsigned row) { return {logits + (size_t)row * vocab, vocab}; }

struct Slice {
    unsigned start, end;
};

__device__ __forceinline__ Slice slice_of(unsigned vocab, unsigned slice, unsigned slices) {
    const unsigned len = ((vocab + slices - 1) / slices + 3) / 4 * 4;
    const unsigned start = min(vocab, slice * len);
    return {start, min(vocab, start + len)};
}

// The best of all slices; the same in every thread.
__device__ u64 best_of(const u64 *of_slices, unsigned stride, unsigned slices) {
    u64 best = 0;
    for (unsigned slice = threadIdx.x % 32; slice < slices; slice += 32) best = Max()(best, of_slices[slice * stride]);
    return warp_reduce(best, Max());
}

// ---- log-probabilities, from the logits as they came: before any edit ----

// The highest logits of each slice.
extern "C" __global__ void __launch_bounds__(THREADS) sample_raw_top(float *logits, unsigned vocab, const Row *rows, State *states) {
    __shared__ u64 scratch[32];
    wait_for_previous_kernel();
    const Row &row = rows[blockIdx.y];
    if (row.logprobs == NONE) return;
    const Logits values = logits_of(logits, vocab, blockIdx.y);
    const Slice slice = slice_of(vocab, blockIdx.x, gridDim.x);
    u64 *top = states[blockIdx.y].raw_top[blockIdx.x];
    const auto best_below = [&](u64 bound) {
        u64 best = 0;
        values.visit(slice.start, slice.end, threadIdx.x, THREADS, [&](unsigned id, float logit) {
            const u64 other = ranked(logit, id);
            if (other < bound && other > best) best = other;
        });
        return best;
    };
    u64 mine = best_below(~0ull);
    const unsigned count = max(row.alternatives, 1u);
    for (unsigned i = 0; i < count; i++) {
        const u64 best = block_reduce<u64>(mine, 0, Max(), scratch);
        if (threadIdx.x == 0) top[i] = best;
        if (mine == best && best != 0) mine = best_below(best);
    }
}

// The counts of each slice at temperature 1.
extern "C" __global__ void __launch_bounds__(THREADS) sample_raw_mass(float *logits, unsigned vocab, const Row *rows, State *states) {
    __shared__ u64 scratch[32];
    wait_for_previous_kernel();
    if (rows[blockIdx.y].logprobs == NONE) return;
    State &state = states[blockIdx.y];
    const Slice slice = slice_of(vocab, blockIdx.x, gridDim.x);
    const Weigher weigh(logit_of(best_of(state.raw_top[0], TOP_MAX, gridDim.x)), 1.f);
    u64 mass = 0;
    logits_of(logits, vocab, blockIdx.y).visit(slice.start, slice.end, threadIdx.x, THREADS, [&](unsigned, float logit) {
        mass += count_of(weigh(logit));
    });
    mass = block_reduce<u64>(mass, 0, Sum(), scratch);
    if (threadIdx.x == 0) state.raw_mass[blockIdx.x] = mass;
}

// ---- penalties and bias ----

// Keeps in `olds` what the logits were.
extern "C" __global__ void __launch_bounds__(THREADS) sample_edit(float *logits, unsigned vocab, const Row *rows, const Edit *edits, float *olds) {
    wait_for_previous_kernel();
    const Row &row = rows[blockIdx.y];
    const Edit *own = edits + row.edits_start;
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < row.edits_len; i += gridDim.x * THREADS) {
        const unsigned token = own[i].token;
        if (token >= vocab || (i > 0 && own[i - 1].token == token)) continue;
        float &logit = logits[(size_t)blockIdx.y * vocab + token];
        float x = olds[row.edits_start + i] = logit;
        // One that is not finite stays so, to be found.
        if (!(x < INFINITY)) continue;
        const unsigned seen = own[i].seen;
        if (seen > 0 && row.repetition != 1.f) x = x > 0.f ? __fdiv_rn(x, row.repetition) : __fmul_rn(x, row.repetition);
        if (seen > 1) x = __fsub_rn(x, __fadd_rn(__fmul_rn(row.frequency, (float)(seen - 1)), row.presence));
        for (unsigned j = i; j < row.edits_len && own[j].token == token; j++) x = __fadd_rn(x, own[j].bias);
        // Infinity is the mark of a broken forward pass; a bias that large gets the largest number.
        logit = x == INFINITY ? 3.402823466e38f : x == x ? x : -INFINITY;
    }
}

// ---- the draw ----

// The best of each slice. Tokens that are not allowed get minus infinity.
extern "C" __global__ void __launch_bounds__(THREADS) sample_scan(float *logits, unsigned vocab, const Row *rows, const unsigned *masks, State *states) {
    __shared__ u64 scratch[32];
    __shared__ unsigned scratch_bad[32];
    wait_for_previous_kernel();
    const Row &row = rows[blockIdx.y];
    State &state = states[blockIdx.y];
    const Logits values = logits_of(logits, vocab, blockIdx.y);
    const Slice slice = slice_of(vocab, blockIdx.x, gridDim.x);
    const unsigned *mask = row.mask == NONE ? nullptr : masks + (size_t)row.mask * ((vocab + 63) / 64 * 2);
    float highest = -INFINITY;
    unsigned best = NONE, bad = NONE;
    const auto look = [&](unsigned id, float logit) {
        // Also true for what is not a number.
        if (!(logit < INFINITY)) bad = min(bad, id);
        if (logit > highest) {
            highest = logit;
            best = id;
        }
    };
    if (mask) {
        values.visit(slice.start, slice.end, threadIdx.x, THREADS, [&](unsigned id, float logit) {
            if (mask[id / 32] >> id % 32 & 1) {
                look(id, logit);
            } else {
                if (!(logit < INFINITY)) bad = min(bad, id);
                values.at[id] = -INFINITY;
            }
        });
    } else {
        values.visit(slice.start, slice.end, threadIdx.x, THREADS, look);
    }
    const u64 first = block_reduce<u64>(ranked(highest, best), 0, Max(), scratch);
    bad = block_reduce<unsigned>(bad, NONE, Min(), scratch_bad);
    if (threadIdx.x == 0) {
        state.best[blockIdx.x] = first;
        state.bad[blockIdx.x] = bad;
        state.cursor = 0;
    }
    if (row.kind == FILTERED) {
        for (unsigned bin = blockIdx.x * THREADS + threadIdx.x; bin < BINS; bin += gridDim.x * THREADS) {
            state.bin_len[bin] = 0;
            state.bin_mass[bin] = 0;
        }
    }
}

// The weight of a token, 0 where it cannot be drawn.
__device__ __forceinline__ float eligible(const Weigher &weigh, const Row &row, float logit) {
    const float weight = weigh(logit);
    return weight >= row.min_weight && count_of(weight) > 0 ? weight : 0.f;
}

__device__ __forceinline__ unsigned bin_of(float weight) { return (__float_as_uint(weight) - LEAST_BITS) >> BIN_SHIFT; }

// The counts of each slice; of rows with filters, the bins.
extern "C" __global__ void __launch_bounds__(THREADS) sample_weigh(float *logits, unsigned vocab, const Row *rows, State *states) {
    __shared__ u64 scratch[32];
    __shared__ unsigned len[BINS], low[BINS], high[BINS];
    wait_for_previous_kernel();
    const Row &row = rows[blockIdx.y];
    State &state = states[blockIdx.y];
    const u64 best = best_of(state.best, 1, gridDim.x);
    if (row.kind == GREEDY || best == 0) return;
    const Logits values = logits_of(logits, vocab, blockIdx.y);
    const Slice slice = slice_of(vocab, blockIdx.x, gridDim.x);
    const Weigher weigh(logit_of(best), row.temperature);
    if (row.kind == PLAIN) {
        u64 mass = 0;
        values.visit(slice.start, slice.end, threadIdx.x, THREADS, [&](unsigned, float logit) {
            const float weight = weigh(logit);
            if (weight >= row.min_weight) mass += count_of(weight);
        });
        mass = block_reduce<u64>(mass, 0, Sum(), scratch);
        if (threadIdx.x == 0) state.mass[blockIdx.x] = mass;
        return;
    }
    // The masses are asked for only where nothing else bounds the candidates.
    const bool with_mass = row.top_k == 0;
    for (unsigned bin = threadIdx.x; bin < BINS; bin += THREADS) len[bin] = low[bin] = high[bin] = 0;
    __syncthreads();
    values.visit(slice.start, slice.end, threadIdx.x, THREADS, [&](unsigned, float logit) {
        const float weight = eligible(weigh, row, logit);
        if (weight > 0.f) {
            const unsigned bin = bin_of(weight);
            atomicAdd(&len[bin], 1u);
            if (with_mass) add_wide(&low[bin], &high[bin], count_of(weight));
        }
    });
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < BINS; bin += THREADS) {
        if (len[bin]) {
            atomicAdd(&state.bin_len[bin], len[bin]);
            if (with_mass) atomicAdd(&state.bin_mass[bin], (u64)high[bin] << 32 | low[bin]);
        }
    }
}

// Lists the tokens of the bins that may be kept, in any order, unless they are too many.
extern "C" __global__ void __launch_bounds__(THREADS, 4) sample_collect(float *logits, unsigned vocab, const Row *rows, State *states) {
    constexpr int EACH = (BINS + THREADS - 1) / THREADS;
    __shared__ u64 scratch[32];
    __shared__ unsigned lowest_bin, wanted;
    wait_for_previous_kernel();
    const Row &row = rows[blockIdx.y];
    State &state = states[blockIdx.y];
    const u64 best = best_of(state.best, 1, gridDim.x);
    if (row.kind != FILTERED || best == 0) return;
    // Bins from the highest down, EACH a thread.
    u64 len = 0, mass = 0;
    for (int i = 0; i < EACH; i++) {
        const int bin = BINS - 1 - (int)(threadIdx.x * EACH + i);
        if (bin >= 0) {
            len += state.bin_len[bin];
            mass += state.bin_mass[bin];
        }
    }
    u64 all_len, all_mass;
    u64 len_here = block_scan(len, scratch, all_len) - len;
    u64 mass_here = block_scan(mass, scratch, all_mass) - mass;
    // As many as top-k, or as much as the nucleus.
    const u64 goal = row.top_k ? min((u64)row.top_k, all_len) : share_of(row.top_p, all_mass);
    for (int i = 0; i < EACH; i++) {
        const int bin = BINS - 1 - (int)(threadIdx.x * EACH + i);
        if (bin >= 0) {
            const u64 before = row.top_k ? len_here : mass_here;
            len_here += state.bin_len[bin];
            mass_here += state.bin_mass[bin];
            if (before < goal && (row.top_k ? len_here : mass_here) >= goal) {
                lowest_bin = bin;
                wanted = (unsigned)len_here;
            }
        }
    }
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        state.candidates = (unsigned)all_len;
        state.wanted = wanted;
        state.total = all_mass;
    }
    if (wanted > LISTED_MAX) return;
    const Slice slice = slice_of(vocab, blockIdx.x, gridDim.x);
    const Weigher weigh(logit_of(best), row.temperature);
    logits_of(logits, vocab, blockIdx.y).visit(slice.start, slice.end, threadIdx.x, THREADS, [&](unsigned id, float logit) {
        const float weight = eligible(weigh, row, logit);
        if (weight > 0.f && bin_of(weight) >= lowest_bin) {
            state.listed[atomicAdd(&state.cursor, 1u)] = (u64)__float_as_uint(weight) << 32 | (NONE - id);
        }
    });
}

// Shared memory of a row's end.
struct Scratch {
    u64 words[32];
    u64 above;
    unsigned found;
    union {
        u64 keys[LISTED_MAX];
        struct {
            unsigned low[RADIX], high[RADIX];
        } bins;
    };
};

// The first id of [start, end) at which the running sum of value(id, logit) exceeds `goal`, which the whole sum does.
template <typename Value> __device__ unsigned locate(const Logits &logits, unsigned start, unsigned end, u64 goal, Value value, Scratch &scratch) {
    const unsigned warps = blockDim.x / 32, warp = threadIdx.x / 32;
    while (end - start > blockDim.x) {
        // One part a warp; then the part that it happens in.
        const unsigned len = ((end - start + warps - 1) / warps + 127) / 128 * 128;
        u64 sum = 0;
        logits.visit(min(end, start + warp * len), min(end, start + (warp + 1) * len), threadIdx.x % 32, 32,
                     [&](unsigned id, float logit) { sum += value(id, logit); });
        sum = warp_reduce(sum, Sum());
        __syncthreads();
        if (threadIdx.x % 32 == 0) scratch.words[warp] = sum;
        __syncthreads();
        unsigned part = 0;
        while (part + 1 < warps && scratch.words[part] <= goal) goal -= scratch.words[part++];
        start += part * len;
        end = min(end, start + len);
    }
    const unsigned id = start + threadIdx.x;
    const u64 own = id < end ? value(id, logits.at[id]) : 0;
    u64 total;
    const u64 sum = block_scan(own, scratch.words, total);
    if (sum > goal && sum - own <= goal) scratch.found = id;
    __syncthreads();
    const unsigned found = scratch.found;
    __syncthreads();
    return found;
}

__device__ unsigned draw_plain(const Logits &logits, const Row &row, const State &state, unsigned slices, const Weigher &weigh, Scratch &scratch) {
    u64 total = 0;
    for (unsigned slice = 0; slice < slices; slice++) total += state.mass[slice];
    u64 goal = __umul64hi(row.uniform, total);
    unsigned slice = 0;
    while (slice + 1 < slices && state.mass[slice] <= goal) goal -= state.mass[slice++];
    const Slice part = slice_of(logits.len, slice, slices);
    const auto value = [&](unsigned, float logit) {
        const float weight = weigh(logit);
        return weight >= row.min_weight ? count_of(weight) : 0;
    };
    return locate(logits, part.start, part.end, goal, value, scratch);
}

// `len` is a power of two.
__device__ void sort_descending(u64 *keys, unsigned len) {
    for (unsigned size = 2; size <= len; size *= 2) {
        for (unsigned stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (unsigned pair = threadIdx.x; pair < len / 2; pair += blockDim.x) {
                const unsigned i = 2 * pair - (pair & (stride - 1));
                const u64 a = keys[i], b = keys[i + stride];
                if ((a < b) == ((i & size) == 0)) {
                    keys[i] = b;
                    keys[i + stride] = a;
                }
            }
        }
    }
    __syncthreads();
}

__device__ __forceinline__ unsigned power_of_two(unsigned x) {
    return x <= 1 ? 1 : 1u << (32 - __clz(x - 1));
}

// The place of the first of `len` keys whose running count reaches `goal`, which the whole does. `total` becomes the whole. `SHIFT`
// says where in a key the bits of the weight are.
template <int SHIFT> __device__ unsigned place_of(const u64 *keys, unsigned len, u64 (*goal_of)(u64 given, u64 total), u64 given, Scratch &scratch) {
    constexpr int EACH = LISTED_MAX / FINISHERS;
    u64 counts[EACH];
    u64 own = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const unsigned at = threadIdx.x * EACH + i;
        counts[i] = at < len ? count_of(__uint_as_float((unsigned)(keys[at] >> SHIFT))) : 0;
        own += counts[i];
    }
    u64 total;
    u64 sum = block_scan(own, scratch.words, total) - own;
    const u64 goal = goal_of(given, total);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (sum < goal && sum + counts[i] >= goal) scratch.found = threadIdx.x * EACH + i;
        sum += counts[i];
    }
    __syncthreads();
    const unsigned found = scratch.found;
    __syncthreads();
    return found;
}

__device__ u64 goal_of_nucleus(u64 top_p, u64 total) { return share_of(top_p, total); }
__device__ u64 goal_as_given(u64 goal, u64) { return goal; }
__device__ u64 goal_of_draw(u64 uniform, u64 total) { return __umul64hi(uniform, total) + 1; }

// Ranks the listed candidates, cuts, and draws among those left in the order of ids.
__device__ unsigned draw_listed(const Row &row, const State &state, Scratch &scratch) {
    u64 *keys = scratch.keys;
    unsigned kept = state.wanted;
    const unsigned room = power_of_two(kept);
    for (unsigned i = threadIdx.x; i < room; i += blockDim.x) keys[i] = i < kept ? state.listed[i] : 0;
    sort_descending(keys, room);
    if (row.top_k) kept = min(kept, row.top_k);
    if (row.nucleus) {
        // Without top-k the list is only the head of the candidates.
        kept = 1 + (row.top_k ? place_of<32>(keys, kept, goal_of_nucleus, row.top_p, scratch)
                              : place_of<32>(keys, kept, goal_as_given, share_of(row.top_p, state.total), scratch));
    }
    const unsigned room_kept = power_of_two(kept);
    for (unsigned i = threadIdx.x; i < room_kept; i += blockDim.x) keys[i] = i < kept ? keys[i] << 32 | keys[i] >> 32 : 0;
    sort_descending(keys, room_kept);
    const unsigned place = place_of<0>(keys, kept, goal_of_draw, row.uniform, scratch);
    return NONE - (unsigned)(keys[place] >> 32);
}

// The head of a ranking by weight, ties by id: all above `bits`, and those at `bits` whose id is below `end`.
struct Head {
    unsigned bits, end;
    u64 above; // the sum of what was ranked, above `bits`

    __device__ __forceinline__ bool has(unsigned id, unsigned weight) const { return weight > bits || (weight == bits && id < end); }
};

// The highest weight at which the sum of value(id, bits of the weight) from there up reaches `goal`, which the whole sum does.
template <typename Value> __device__ Head cut(const Logits &logits, const Row &row, const Weigher &weigh, u64 goal, Value value, Scratch &scratch) {
    constexpr int EACH = RADIX / FINISHERS;
    Head head = {0, logits.len, 0};
    for (int shift = 20; shift >= 0; shift -= 10) {
        for (unsigned bin = threadIdx.x; bin < RADIX; bin += blockDim.x) scratch.bins.low[bin] = scratch.bins.high[bin] = 0;
        __syncthreads();
        logits.visit_all([&](unsigned id, float logit) {
            const unsigned bits = __float_as_uint(eligible(weigh, row, logit));
            if (bits != 0 && bits >> (shift + 10) == head.bits >> (shift + 10)) {
                const u64 x = value(id, bits);
                const unsigned bin = bits >> shift & (RADIX - 1);
                if (x) add_wide(&scratch.bins.low[bin], &scratch.bins.high[bin], x);
            }
        });
        __syncthreads();
        u64 sums[EACH];
        u64 own = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const unsigned bin = RADIX - 1 - (threadIdx.x * EACH + i);
            sums[i] = (u64)scratch.bins.high[bin] << 32 | scratch.bins.low[bin];
            own += sums[i];
        }
        u64 total;
        u64 sum = head.above + block_scan(own, scratch.words, total) - own;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (sum < goal && sum + sums[i] >= goal) {
                scratch.found = RADIX - 1 - (threadIdx.x * EACH + i);
                scratch.above = sum;
            }
            sum += sums[i];
        }
        __syncthreads();
        head.bits |= scratch.found << shift;
        head.above = scratch.above;
        __syncthreads();
    }
    return head;
}

// The same for more candidates than can be listed, in passes over the row.
__device__ unsigned draw_in_passes(const Logits &logits, const Row &row, const State &state, const Weigher &weigh, Scratch &scratch) {
    Head head = {0, logits.len, 0};
    const auto bits_of = [&](float logit) { return __float_as_uint(eligible(weigh, row, logit)); };
    if (row.top_k && row.top_k < state.candidates) {
        head = cut(logits, row, weigh, row.top_k, [](unsigned, unsigned) { return 1ull; }, scratch);
        const auto tie = [&](unsigned, float logit) { return (u64)(bits_of(logit) == head.bits); };
        head.end = locate(logits, 0, logits.len, row.top_k - head.above - 1, tie, scratch) + 1;
    }
    const auto count_if_kept = [&](unsigned id, unsigned bits) { return head.has(id, bits) ? count_of(__uint_as_float(bits)) : 0; };
    const auto value = [&](unsigned id, float logit) { return count_if_kept(id, bits_of(logit)); };
    u64 total = state.total;
    if (row.top_k) {
        u64 mass = 0;
        logits.visit_all([&](unsigned id, float logit) { mass += value(id, logit); });
        total = block_reduce<u64>(mass, 0, Sum(), scratch.words);
    }
    if (row.nucleus) {
        const u64 goal = share_of(row.top_p, total);
        Head nucleus = cut(logits, row, weigh, goal, count_if_kept, scratch);
        const u64 each = count_of(__uint_as_float(nucleus.bits));
        const u64 ties = (goal - nucleus.above + each - 1) / each;
        const auto tie = [&](unsigned, float logit) { return (u64)(bits_of(logit) == nucleus.bits); };
        nucleus.end = locate(logits, 0, logits.len, ties - 1, tie, scratch) + 1;
        head = nucleus;
        total = nucleus.above + ties * each;
    }
    return locate(logits, 0, logits.len, __umul64hi(row.uniform, total), value, scratch);
}

// What the logit was before it was edited.
__device__ float raw_logit(const Logits &logits, const Row &row, const Edit *edits, const float *olds, unsigned token) {
    unsigned low = row.edits_start, high = row.edits_start + row.edits_len;
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (edits[middle].token < token) low = middle + 1;
        else high = middle;
    }
    return low < row.edits_start + row.edits_len && edits[low].token == token ? olds[low] : logits.at[token];
}

// The first warp merges what the slices found. `out` gets the chosen one's, then the ids, then theirs.
__device__ void write_logprobs(const State &state, unsigned slices, unsigned alternatives, float chosen, unsigned *out) {
    if (threadIdx.x >= 32) return;
    u64 mass = 0;
    for (unsigned slice = threadIdx.x; slice < slices; slice += 32) mass += state.raw_mass[slice];
    mass = warp_reduce(mass, Sum());
    u64 best = best_of(state.raw_top[0], TOP_MAX, slices);
    const double log_sum_exp = (double)logit_of(best) + log((double)mass * (1. / 17592186044416.));
    if (threadIdx.x == 0) out[0] = __float_as_uint((float)((double)chosen - log_sum_exp));
    unsigned next[SLICES_MAX / 32] = {};
    for (unsigned i = 0; i < TOP_MAX; i++) {
        u64 mine = 0;
#pragma unroll
        for (int j = 0; j < SLICES_MAX / 32; j++) {
            const unsigned slice = threadIdx.x + 32 * j;
            if (i < alternatives && slice < slices && next[j] < alternatives) mine = Max()(mine, state.raw_top[slice][next[j]]);
        }
        best = warp_reduce(mine, Max());
#pragma unroll
        for (int j = 0; j < SLICES_MAX / 32; j++) {
            const unsigned slice = threadIdx.x + 32 * j;
            if (best != 0 && slice < slices && next[j] < alternatives && state.raw_top[slice][next[j]] == best) next[j]++;
        }
        if (threadIdx.x == 0) {
            out[1 + i] = best ? id_of(best) : NONE;
            out[1 + TOP_MAX + i] = best ? __float_as_uint((float)((double)logit_of(best) - log_sum_exp)) : 0;
        }
    }
}

// A token for each row, and NONE or what is wrong with the row: NO_CANDIDATE, or the first id whose logit is not finite. A row that
// something is wrong with gets token 0.
extern "C" __global__ void __launch_bounds__(FINISHERS, 1)
    sample_finish(float *logits, unsigned vocab, const Row *rows, const Edit *edits, const float *olds, const State *states, unsigned slices,
                  unsigned *tokens, unsigned *faults, unsigned *logprobs) {
    __shared__ Scratch scratch;
    wait_for_previous_kernel();
    const Row &row = rows[blockIdx.x];
    const State &state = states[blockIdx.x];
    const Logits values = logits_of(logits, vocab, blockIdx.x);
    const u64 best = best_of(state.best, 1, slices);
    unsigned bad = NONE;
    for (unsigned slice = threadIdx.x % 32; slice < slices; slice += 32) bad = min(bad, state.bad[slice]);
    bad = warp_reduce(bad, Min());
    const unsigned fault = bad != NONE ? bad : best == 0 ? NO_CANDIDATE : NONE;
    unsigned token = 0;
    if (fault == NONE) {
        const Weigher weigh(logit_of(best), row.temperature);
        if (row.kind == GREEDY) token = id_of(best);
        else if (row.kind == PLAIN) token = draw_plain(values, row, state, slices, weigh, scratch);
        else if (state.wanted <= LISTED_MAX) token = draw_listed(row, state, scratch);
        else token = draw_in_passes(values, row, state, weigh, scratch);
        if (row.logprobs != NONE) {
            const float chosen = raw_logit(values, row, edits, olds, token);
            write_logprobs(state, slices, row.alternatives, chosen, logprobs + (size_t)row.logprobs * LOGPROB_WORDS);
        }
    }
    if (threadIdx.x == 0) {
        tokens[blockIdx.x] = token;
        faults[blockIdx.x] = fault;
    }
}
