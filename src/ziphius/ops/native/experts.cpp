// The routed experts of a layer, forward and backward: rows gathered, multiplied and scattered block by
// block, so that what lies between two products never leaves the cache. ops/experts.py calls them.
//
// A pair is a token and one of its experts. `pairs` lists them by expert, `offsets` says where each
// expert's begin. Blocks and experts are shared out among threads; each sum is taken by one thread in a
// fixed order, so results depend neither on timing nor on the number of threads.
//
// Shapes: M tokens, K experts per token, E experts, D hidden, F expert width, Z pairs that are computed; Dp and
// Fp are padded to multiples of UNIT.

#include "gemm.h"
#include "indices.h"

#include <omp.h>

namespace {

constexpr int64_t BLOCK = 64;       // rows of a block
constexpr int64_t LONG_BLOCK = 128;  // where sums over rows are read and written once for each block
constexpr int64_t PACKED_BYTES = 64 << 20;  // of weights that are held packed at once

struct Block {
    int64_t expert, start, end;
};

std::vector<Block> blocks_of(const int64_t* offsets, int64_t from, int64_t until) {
    std::vector<Block> blocks;
    for (int64_t e = from; e < until; e++)
        for (int64_t start = offsets[e]; start < offsets[e + 1]; start += BLOCK)
            blocks.push_back({e, start, std::min(start + BLOCK, offsets[e + 1])});
    return blocks;
}

// Copy the rows of a block's tokens one below the other, zeros around them.
template <class T>
void gather(const T* rows, const int64_t* pairs, const Block& block, int64_t per_token, int64_t width, T* to) {
    int64_t stride = padded(width), count = block.end - block.start;
    for (int64_t i = 0; i < count; i++) {
        copy(rows + pairs[block.start + i] / per_token * width, width, to + i * stride);
        clear(to + i * stride + width, stride - width);
    }
    clear(to + count * stride, (padded(count) - count) * stride);
}

// gate_up[z] = gate and up of pair z, unless it is null; out[z] = its expert's output, not yet weighted.
template <class T, class W>
int64_t experts_forward(const T* x, const int64_t* pairs, const int64_t* offsets, const W* gate_up_weights,
                        const W* down_weights, T* gate_up, T* out, int64_t tokens, int64_t per_token,
                        int64_t kept, int64_t experts, int64_t hidden, int64_t width) {
    if (!are_starts(offsets, experts, kept) || !all_below(pairs, kept, tokens * per_token)) return OUT_OF_RANGE;
    int64_t Dp = padded(hidden), Fp = padded(width);
    int64_t first_size = Dp * 2 * Fp, size = first_size + Fp * Dp;
    // Experts are packed in waves, so that a layer of many large ones is never held twice.
    int64_t bytes = std::max<int64_t>(1, sizeof(T) * size);  // a width may be 0
    int64_t at_once = std::max<int64_t>(1, std::min<int64_t>(experts, PACKED_BYTES / bytes));
    static thread_local std::vector<T> packed_memory;
    T* packed = scratch(packed_memory, at_once * size);
#pragma omp parallel
    {
        static thread_local std::vector<T> x_memory, hidden_memory;
        static thread_local std::vector<float> sums_memory;
        T* x_rows = scratch(x_memory, BLOCK * Dp);
        T* hidden_rows = scratch(hidden_memory, BLOCK * Fp);
        float* sums = scratch(sums_memory, BLOCK * std::max(Dp, 2 * Fp));
        for (int64_t from = 0; from < experts; from += at_once) {
            int64_t until = std::min(experts, from + at_once);
            std::vector<Block> blocks = blocks_of(offsets, from, until);
#pragma omp for schedule(dynamic)
            for (int64_t e = from; e < until; e++) {
                if (offsets[e] == offsets[e + 1]) continue;
                const W* first = gate_up_weights + e * 2 * width * hidden;
                T* to = packed + (e - from) * size;
                pack(first, 1, hidden, hidden, width, to);
                pack(first + width * hidden, 1, hidden, hidden, width, to + Dp * Fp);
                pack(down_weights + e * hidden * width, 1, width, width, hidden, to + first_size);
            }
#pragma omp for schedule(dynamic)
            for (int64_t b = 0; b < int64_t(blocks.size()); b++) {
                const Block& block = blocks[b];
                int64_t count = block.end - block.start, rows = padded(count);
                const T* weights = packed + (block.expert - from) * size;
                gather(x, pairs, block, per_token, hidden, x_rows);
                T* kept = gate_up ? gate_up + block.start * 2 * width : nullptr;
                float* inner = target_of(kept, kept && rows == count && Fp == width, sums);
                multiply(rows, 2 * Fp, Dp, x_rows, Dp, weights, Dp, inner, 2 * Fp);
                if (kept) {
                    bring(inner, 2 * Fp, kept, 2 * width, count, width);
                    if (inner == sums) bring(sums + Fp, 2 * Fp, kept + width, 2 * width, count, width);
                }
                for (int64_t i = 0; i < rows; i++) {
                    const float *gate = inner + i * 2 * Fp, *up = gate + Fp;
                    T* to = hidden_rows + i * Fp;
#pragma omp simd
                    for (int64_t j = 0; j < Fp; j++) store(to + j, gate[j] * sigmoid(gate[j]) * up[j]);
                }
                T* place = out + block.start * hidden;
                float* target = target_of(place, rows == count && Dp == hidden, sums);
                multiply(rows, Dp, Fp, hidden_rows, Fp, weights + first_size, Fp, target, Dp);
                bring(target, Dp, place, hidden, count, hidden);
            }
        }
    }
    return FINE;
}

// From the gradient of each token's weighted sum: grad_rows[z] for its input, the gradient of each
// pair's weight, and of all experts' weights.
template <class T, class W>
int64_t experts_backward(const T* grad, const T* x, const int64_t* pairs, const int64_t* offsets,
                         const float* pair_weights, const T* gate_up, const W* gate_up_weights,
                         const W* down_weights, T* grad_rows, float* grad_pair_weights, float* grad_gate_up,
                         float* grad_down, int64_t tokens, int64_t per_token, int64_t kept, int64_t experts,
                         int64_t hidden, int64_t width) {
    if (!are_starts(offsets, experts, kept) || !all_below(pairs, kept, tokens * per_token)) return OUT_OF_RANGE;
    int64_t Dp = padded(hidden), Fp = padded(width);
#pragma omp parallel
    {
        static thread_local std::vector<T> memory;
        static thread_local std::vector<float> float_memory;
        T* own = scratch(memory, 3 * Fp * Dp + LONG_BLOCK * (3 * Dp + 5 * Fp));
        T *first = own, *second = first + 2 * Fp * Dp;
        T *x_rows = second + Fp * Dp, *grad_out = x_rows + LONG_BLOCK * Dp;
        T *packed = grad_out + LONG_BLOCK * Dp, *delta = packed + LONG_BLOCK * Dp;
        T *turned = delta + 2 * LONG_BLOCK * Fp, *inner = turned + 2 * LONG_BLOCK * Fp;
        float* sums = scratch(float_memory, LONG_BLOCK * std::max(Dp, Fp) + 3 * Fp * Dp);
        float *first_sums = sums + LONG_BLOCK * std::max(Dp, Fp), *second_sums = first_sums + 2 * Fp * Dp;
#pragma omp for schedule(dynamic)
        for (int64_t e = 0; e < experts; e++) {
            float *to_first = grad_gate_up + e * 2 * width * hidden, *to_second = grad_down + e * hidden * width;
            if (offsets[e] == offsets[e + 1]) {
                clear(to_first, 2 * width * hidden);
                clear(to_second, hidden * width);
                continue;
            }
            const W *gate_weights = gate_up_weights + e * 2 * width * hidden, *up_weights = gate_weights + width * hidden;
            // The gate's and the up projection's rows are padded apart, so each panel is packed in halves.
            for (int64_t j = 0; j < hidden; j += UNIT) {
                int64_t columns = std::min(UNIT, hidden - j);
                T* panel = first + j * 2 * Fp;
                pack(gate_weights + j, hidden, 1, width, columns, panel);
                pack(up_weights + j, hidden, 1, width, columns, panel + Fp * UNIT);
            }
            pack(down_weights + e * hidden * width, width, 1, hidden, width, second);
            bool add = false;
            for (int64_t start = offsets[e]; start < offsets[e + 1]; start += LONG_BLOCK, add = true) {
                Block block{e, start, std::min(start + LONG_BLOCK, offsets[e + 1])};
                int64_t count = block.end - start, rows = padded(count);
                gather(grad, pairs, block, per_token, hidden, grad_out);
                multiply(rows, Fp, Dp, grad_out, Dp, second, Dp, sums, Fp);
                clear(delta, rows * 2 * Fp);
                clear(inner, rows * Fp);
                for (int64_t i = 0; i < count; i++) {
                    int64_t pair = pairs[start + i];
                    const float* from = sums + i * Fp;
                    const T *gate = gate_up + (start + i) * 2 * width, *up = gate + width;
                    T *to_gate = delta + i * 2 * Fp, *to_up = to_gate + Fp, *to = inner + i * Fp;
                    float weight = pair_weights[pair], dot = 0;
#pragma omp simd reduction(+ : dot)
                    for (int64_t j = 0; j < width; j++) {
                        float a = load(gate[j]), s = sigmoid(a), u = load(up[j]), d = from[j];
                        float activation = a * s;
                        dot += d * activation * u;
                        store(to_gate + j, weight * d * u * s * (1.0f + a * (1.0f - s)));
                        store(to_up + j, weight * d * activation);
                        store(to + j, weight * activation * u);
                    }
                    grad_pair_weights[pair] = dot;
                }
                T* place = grad_rows + start * hidden;
                float* target = target_of(place, rows == count && Dp == hidden, sums);
                multiply(rows, Dp, 2 * Fp, delta, 2 * Fp, first, 2 * Fp, target, Dp);
                bring(target, Dp, place, hidden, count, hidden);
                gather(x, pairs, block, per_token, hidden, x_rows);
                pack(x_rows, Dp, 1, rows, Dp, packed);
                multiply_transposed(2 * Fp, Dp, rows, delta, 2 * Fp, turned, packed, rows, first_sums,
                                    Dp, add);
                pack(grad_out, Dp, 1, rows, Dp, packed);
                multiply_transposed(Fp, Dp, rows, inner, Fp, turned, packed, rows, second_sums, Dp,
                                    add);
            }
            bring(first_sums, Dp, to_first, hidden, width, hidden);
            bring(first_sums + Fp * Dp, Dp, to_first + width * hidden, hidden, width, hidden);
            for (int64_t strip = 0; strip < hidden; strip += 16)
                for (int64_t i = 0; i < width; i++)
                    for (int64_t j = strip; j < std::min(strip + 16, hidden); j++)
                        to_second[j * width + i] = second_sums[i * Dp + j];
        }
    }
    return FINE;
}

}  // namespace

extern "C" {
#define EXPERTS(suffix, T, W)                                                                             \
    int64_t experts_forward_##suffix(const T* x, const int64_t* pairs, const int64_t* offsets,            \
                                     const W* first, const W* second, T* gate_up, T* out, int64_t tokens, \
                                     int64_t per_token, int64_t kept, int64_t experts, int64_t hidden,    \
                                     int64_t width) {                                                     \
        return experts_forward(x, pairs, offsets, first, second, gate_up, out, tokens, per_token, kept,   \
                               experts, hidden, width);                                                   \
    }                                                                                                     \
    int64_t experts_backward_##suffix(                                                                    \
        const T* grad, const T* x, const int64_t* pairs, const int64_t* offsets, const float* pair_weights, \
        const T* gate_up, const W* first, const W* second, T* grad_rows, float* grad_pair_weights,        \
        float* grad_first, float* grad_second, int64_t tokens, int64_t per_token, int64_t kept,           \
        int64_t experts, int64_t hidden, int64_t width) {                                                 \
        return experts_backward(grad, x, pairs, offsets, pair_weights, gate_up, first, second, grad_rows, \
                                grad_pair_weights, grad_first, grad_second, tokens, per_token, kept,      \
                                experts, hidden, width);                                                  \
    }
EXPERTS(ff, float, float)
EXPERTS(bf, bf16, float)
EXPERTS(bb, bf16, bf16)
}
