// Softmax attention over keys and values that lie in pages, for a few rows of queries: what each row gets is the same
// whatever rows are beside it, wherever pages lie and however the work is shared out.
//
// Keys are taken in tiles of TILE, which begin at multiples of it in their sequence, with a running maximum
// (FlashAttention-2, arXiv 2307.08691, section 3.1); SPLIT keys are one state, and states are joined in the order of
// the sequence, so that several threads may compute those of one row. A score is the sum over registers of a query
// times a key, and then of the numbers of a register; a value is summed key after key.

#pragma once

#include "eight_bits.h"

namespace {

constexpr int64_t TILE = 128, SPLIT = 512;
constexpr int64_t MOST_ROWS = 36;
constexpr int64_t SCORES = 8;  // that are summed up together

inline int64_t whole(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, places{__VA_ARGS__})
#endif
typedef float eight __attribute__((vector_size(32), aligned(4)));
typedef int32_t places __attribute__((vector_size(32)));

// The upper half of a register added to the lower one, where a register has sixteen numbers.
inline eight folded(const floats& x) {
#if defined(__AVX512F__)
    auto whole = (__m512)x;
    __m512d upper = _mm512_castps_pd(whole);
    return (eight)_mm512_castps512_ps256(whole) + (eight)_mm256_castpd_ps(_mm512_extractf64x4_pd(upper, 1));
#else
    return x;
#endif
}

// Sum up eight registers, in three rounds that add pairs of neighbours: number i of the result is the sum of x[i].
inline eight totals(const floats (&x)[SCORES]) {
    eight twos[4], fours[2];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; i++) {
        eight a = folded(x[2 * i]), b = folded(x[2 * i + 1]);
        twos[i] = PICK(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + PICK(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 2
    for (int64_t i = 0; i < 2; i++) {
        eight a = twos[2 * i], b = twos[2 * i + 1];
        fours[i] = PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return PICK(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) + PICK(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

template <int QUERIES>
inline void dots(const float* const* queries, const float* const* keys, int64_t width, float* scores) {
    constexpr int KEYS = SCORES / QUERIES;
    floats sums[SCORES] = {};
    for (int64_t i = 0; i < width; i += LANES) {
        floats key[KEYS];
#pragma GCC unroll 8
        for (int k = 0; k < KEYS; k++) key[k] = load_floats(keys[k] + i);
#pragma GCC unroll 8
        for (int q = 0; q < QUERIES; q++) {
            floats query = load_floats(queries[q] + i);
#pragma GCC unroll 8
            for (int k = 0; k < KEYS; k++) sums[q * KEYS + k] = multiply_add(query, key[k], sums[q * KEYS + k]);
        }
    }
    eight all = totals(sums);
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; q++)
        std::memcpy(scores + q * TILE, reinterpret_cast<float*>(&all) + q * KEYS, sizeof(float) * KEYS);
}

// Scores [rows, TILE] of the rows for `count` keys; pointers to keys are filled up to a multiple of SCORES. On the way
// the rows of the next tile are asked for, since a long context is not near the core.
template <class C>
void score(const float* const* queries, int64_t rows, const float* const* keys, int64_t count, int64_t width,
           float* scores, const C* const* next, int64_t num_next, int64_t used) {
    constexpr int64_t line = 64 / sizeof(C);
    for (int64_t j = 0; j < count; j += SCORES) {
        for (int64_t k = j; k < std::min(j + SCORES, num_next); k++)
            for (int64_t i = 0; i < used; i += line) __builtin_prefetch(next[k] + i, 0, 2);
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4)
            for (int64_t k = 0; k < SCORES; k += 2) dots<4>(queries + r, keys + j + k, width, scores + r * TILE + j + k);
        if (r + 2 <= rows) {
            for (int64_t k = 0; k < SCORES; k += 4) dots<2>(queries + r, keys + j + k, width, scores + r * TILE + j + k);
            r += 2;
        }
        if (r < rows) dots<1>(queries + r, keys + j, width, scores + r * TILE + j);
    }
}

// out [ROWS, VECTORS registers] += probs [ROWS, count] times the values' numbers from `column` on.
template <int ROWS, int VECTORS>
inline void weigh(const float* probs, const float* const* values, int64_t count, int64_t column, float* out,
                  int64_t stride) {
    floats sums[ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) sums[r][v] = load_floats(out + r * stride + column + v * LANES);
    for (int64_t j = 0; j < count; j++) {
        const float* value = values[j] + column;
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            floats right = load_floats(value + v * LANES);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) sums[r][v] = multiply_add(spread(probs[r * TILE + j]), right, sums[r][v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) *reinterpret_cast<floats*>(out + r * stride + column + v * LANES) = sums[r][v];
}

template <int ROWS, int VECTORS>
inline void weigh_all(const float* probs, const float* const* values, int64_t count, int64_t width, float* out,
                      int64_t stride) {
    int64_t column = 0;
    for (; column + VECTORS * LANES <= width; column += VECTORS * LANES)
        weigh<ROWS, VECTORS>(probs, values, count, column, out, stride);
    for (; column < width; column += LANES) weigh<ROWS, 1>(probs, values, count, column, out, stride);
}

inline void mean(const float* probs, int64_t rows, const float* const* values, int64_t count, int64_t width, float* out,
                 int64_t stride) {
    for (int64_t tiles = (rows + 5) / 6; tiles > 0; tiles--) {
        int64_t own = (rows + tiles - 1) / tiles;
        if (own == 1) weigh_all<1, 8>(probs, values, count, width, out, stride);
        if (own == 2) weigh_all<2, 4>(probs, values, count, width, out, stride);
        if (own == 3) weigh_all<3, 4>(probs, values, count, width, out, stride);
        if (own == 4) weigh_all<4, 2>(probs, values, count, width, out, stride);
        if (own == 5) weigh_all<5, 2>(probs, values, count, width, out, stride);
        if (own == 6) weigh_all<6, 2>(probs, values, count, width, out, stride);
        rows -= own, probs += own * TILE, out += own * stride;
    }
}

// What a row has seen so far: the largest score, the sum of exp(scale (s - top)), and the values weighed by them.
struct State {
    float top, sum;
};

// Scores become weights, and what was seen before is held against the new largest score.
ALONE void soften(float* scores, int64_t count, float scale, State& state, float* out, int64_t width) {
    floats tops;
    for (int64_t i = 0; i < LANES; i++) tops[i] = state.top;
    for (int64_t j = 0; j < count; j += LANES) {
        floats s = load_floats(scores + j);
        tops = s > tops ? s : tops;
    }
    float top = tops[0];
    for (int64_t i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
    if (top == -INFINITY) return clear(scores, count);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) scores[j] = scores[j] == -INFINITY ? 0.0f : fast_exp(scale * (scores[j] - top));
    floats sums = {};
    for (int64_t j = 0; j < count; j += LANES) sums += load_floats(scores + j);
    if (top != state.top) {
        float factor = state.top == -INFINITY ? 0.0f : fast_exp(scale * (state.top - top));
        state.sum *= factor;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) out[j] *= factor;
    }
    state.sum += total(sums);
    state.top = top;
}

// Bring the state of the keys that come next into that of all before.
ALONE void join(State& state, float* out, const State& next, const float* next_out, float scale, int64_t width) {
    if (next.top == -INFINITY) return;
    float top = std::max(state.top, next.top);
    float old = state.top == -INFINITY ? 0.0f : fast_exp(scale * (state.top - top));
    float more = fast_exp(scale * (next.top - top));
#pragma omp simd
    for (int64_t j = 0; j < width; j++) {
        float kept = out[j] * old;
        out[j] = kept + next_out[j] * more;
    }
    state.sum *= old;
    state.sum += next.sum * more;
    state.top = top;
}

// Where the rows of a sequence lie in a part of the cache. In float32, in whole registers, they are read in place.
template <class C>
struct Pages {
    const C* part;
    RowShape shape;
    int64_t column, used, block_size;
    const int64_t* table;
    std::vector<float>& memory;

    // Where `count` rows from `start` on lie, at most TILE: their columns, of 8 bits their scales.
    void find(int64_t start, int64_t count, const C** rows) const {
        for (int64_t j = 0; j < count;) {
            int64_t block = (start + j) / block_size, offset = (start + j) % block_size;
            const C* row = part + (table[block] * block_size + offset) * shape.stride + (HAS_SCALES<C> ? 0 : column);
            for (int64_t end = std::min(count, j + block_size - offset); j < end; j++, row += shape.stride) rows[j] = row;
        }
    }

    // Point to these rows in float32, and to the last one again up to a multiple of SCORES.
    void point(const C* const* found, int64_t count, const float** rows) const {
        int64_t stride = whole(used);
        bool in_place = std::is_same_v<C, float> && used == stride;
        float* copies = in_place ? nullptr : scratch(memory, TILE * stride);
        for (int64_t j = 0; j < count; j++) {
            if constexpr (std::is_same_v<C, float>)
                if (in_place) {
                    rows[j] = found[j];
                    continue;
                }
            if constexpr (HAS_SCALES<C>)
                unpack_row(found[j], shape, column, used, copies + j * stride);
            else
                load_row(found[j], used, copies + j * stride);
            clear(copies + j * stride + used, stride - used);
            rows[j] = copies + j * stride;
        }
        for (int64_t j = count; j < (count + SCORES - 1) / SCORES * SCORES; j++) rows[j] = rows[count - 1];
    }
};

// A few rows of one sequence; row r is of the token at positions[r], and `out` lies `stride` apart.
struct Queries {
    const float* rows[MOST_ROWS];
    int64_t positions[MOST_ROWS];
    int64_t count, key_width, value_width, window, sinks;
    float scale;

    // Keys that come after the last one any row sees.
    int64_t end() const { return *std::max_element(positions, positions + count) + 1; }
    // Whether no row sees any key from `start` to `end`: both lie outside the window of all.
    bool unseen(int64_t start, int64_t end) const {
        return window && start >= sinks && end <= *std::min_element(positions, positions + count) - window + 1;
    }
};

// Hide what row r does not see of the keys from `start` on.
inline void hide(const Queries& queries, int64_t r, int64_t start, int64_t count, float* scores) {
    int64_t position = queries.positions[r];
    for (int64_t j = std::max<int64_t>(0, position + 1 - start); j < count; j++) scores[j] = -INFINITY;
    if (!queries.window) return;
    int64_t until = std::min(count, position - queries.window + 1 - start);
    for (int64_t j = std::max<int64_t>(0, queries.sinks - start); j < until; j++) scores[j] = -INFINITY;
}

// The state of every row after the keys of split number `split`, from nothing. Latent attention has its values in its
// keys; then `values` is null.
template <class C>
void attend_split(const Queries& queries, const Pages<C>& keys, const Pages<C>* values, int64_t split, State* states,
                  float* out, int64_t stride) {
    alignas(64) float scores[MOST_ROWS * TILE];
    const float *key_rows[TILE], *value_rows[TILE];
    const C *found[TILE], *next[TILE], *found_values[TILE];
    std::fill(states, states + queries.count, State{-INFINITY, 0.0f});
    clear(out, queries.count * stride);
    int64_t end = std::min(queries.end(), (split + 1) * SPLIT), width = whole(queries.value_width);
    for (int64_t start = split * SPLIT; start < end; start += TILE) {
        int64_t count = std::min(TILE, end - start), num_next = std::min(TILE, end - start - count);
        if (queries.unseen(start, start + count)) continue;
        keys.find(start, count, found);
        keys.find(start + count, num_next, next);
        keys.point(found, count, key_rows);
        score(queries.rows, queries.count, key_rows, count, whole(queries.key_width), scores, next, num_next, keys.used);
        for (int64_t r = 0; r < queries.count; r++) {
            hide(queries, r, start, whole(count), scores + r * TILE);
            soften(scores + r * TILE, whole(count), queries.scale, states[r], out + r * stride, width);
        }
        if (values) {
            values->find(start, count, found_values);
            values->point(found_values, count, value_rows);
        }
        mean(scores, queries.count, values ? value_rows : key_rows, count, width, out, stride);
    }
}

}  // namespace
