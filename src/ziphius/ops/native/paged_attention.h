// Softmax attention over keys and values that lie in pages, for a few rows of queries: what each row gets is the same
// whatever rows are beside it, wherever pages lie and however the work is shared out.
//
// Keys are taken in tiles of TILE, which begin at multiples of it in their sequence, with a running maximum
// (FlashAttention-2, arXiv 2307.08691, section 3.1); SPLIT keys are one state, and states are joined in the order of
// the sequence, so that several threads may compute those of one row. A value is summed key after key. Where weights
// and cache are bfloat16 and a CPU multiplies pairs of such, queries and the weights of keys are rounded to it as well.

#pragma once

#include "attention_scores.h"
#include "eight_bits.h"

namespace {

constexpr int64_t SPLIT = 512;
constexpr int64_t MOST_ROWS = 36;

#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif
// In what keys and values are multiplied: T is of the weights, C of the cache.
template <class T, class C>
using Mixed = std::conditional_t<PAIRS && std::is_same_v<T, bf16> && std::is_same_v<C, bf16>, bf16, float>;

inline int64_t whole(int64_t count) { return (count + LANES - 1) / LANES * LANES; }
inline int64_t groups(int64_t count) { return (count + GROUP - 1) / GROUP * GROUP; }

// One key more, in bfloat16 two, for each sum of some rows.
template <int ROWS, int VECTORS>
inline void add_values(const float* probs, const float* const* values, int64_t column, int64_t,
                       floats (&sums)[ROWS][VECTORS]) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
        floats right = load_floats(values[0] + column + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) sums[r][v] = multiply_add(spread(probs[r * TILE]), right, sums[r][v]);
    }
}

#if defined(__AVX512BF16__)
// Numbers of a row from the i-th on, as many as a register holds.
inline __m512bh piece(const bf16* row, int64_t i, int64_t width) {
    constexpr int64_t most = 2 * LANES;
    auto there = __mmask32(width - i >= most ? ~0u : (1u << (width - i)) - 1);
    return (__m512bh)_mm512_maskz_loadu_epi16(there, row + i);
}

// Numbers of two rows in turn: the i-th of each for i from HALF * LANES on.
template <int HALF>
inline __m512bh in_turn(__m512bh first, __m512bh second) {
    typedef uint16_t halves __attribute__((vector_size(64)));
    halves places;
    for (int i = 0; i < 2 * LANES; i++) places[i] = uint16_t(HALF * LANES + i / 2 + i % 2 * 2 * LANES);
    return (__m512bh)_mm512_permutex2var_epi16((__m512i)first, (__m512i)places, (__m512i)second);
}

template <int ROWS, int VECTORS>
inline void add_values(const bf16* probs, const bf16* const* values, int64_t column, int64_t width,
                       floats (&sums)[ROWS][VECTORS]) {
    auto weighed = [&](int v, __m512bh right) {
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            std::memcpy(&pair, probs + r * TILE, sizeof(pair));
            sums[r][v] = (floats)_mm512_dpbf16_ps((__m512)sums[r][v], (__m512bh)_mm512_set1_epi32(pair), right);
        }
    };
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v += 2) {
        __m512bh first = piece(values[0], column + v * LANES, width), second = piece(values[1], column + v * LANES, width);
        weighed(v, in_turn<0>(first, second));
        if constexpr (VECTORS > 1) weighed(v + 1, in_turn<1>(first, second));
    }
}
#endif

// out [ROWS, VECTORS registers] += probs [ROWS, count] times the values' numbers from `column` on.
template <int ROWS, int VECTORS, class F>
inline void weigh(const F* probs, const F* const* values, int64_t count, int64_t column, int64_t width, float* out,
                  int64_t stride) {
    constexpr int64_t KEYS = sizeof(float) / sizeof(F);
    floats sums[ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) sums[r][v] = load_floats(out + r * stride + column + v * LANES);
    for (int64_t j = 0; j < count; j += KEYS) add_values(probs + j, values + j, column, width, sums);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) *reinterpret_cast<floats*>(out + r * stride + column + v * LANES) = sums[r][v];
}

template <int ROWS, int VECTORS, class F>
inline void weigh_all(const F* probs, const F* const* values, int64_t count, int64_t width, float* out, int64_t stride,
                      int64_t column = 0) {
    for (; column + VECTORS * LANES <= whole(width); column += VECTORS * LANES)
        weigh<ROWS, VECTORS>(probs, values, count, column, width, out, stride);
    if constexpr (VECTORS > 1) weigh_all<ROWS, VECTORS / 2>(probs, values, count, width, out, stride, column);
}

template <class F>
inline void mean(const F* probs, int64_t rows, const F* const* values, int64_t count, int64_t width, float* out,
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

    // Point to these rows as they are, and to the last one again up to whole groups.
    void point(const C* const* found, int64_t count, const bf16** rows) const {
        static_assert(std::is_same_v<C, bf16>, "others are read in float32");
        for (int64_t j = 0; j < groups(count); j++) rows[j] = found[std::min(j, count - 1)];
    }

    // The same in float32.
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
        for (int64_t j = count; j < groups(count); j++) rows[j] = rows[count - 1];
    }
};

// A few rows of one sequence; row r is of the token at positions[r], and `out` lies `stride` apart.
template <class F>
struct Queries {
    const F* first;
    int64_t stride;
    int64_t positions[MOST_ROWS];
    int64_t count, heads, key_width, value_width, window, sinks;  // heads: that share a key
    float scale;

    // Keys that come after the last one any row sees.
    int64_t end() const { return *std::max_element(positions, positions + count) + 1; }
    // Whether no row sees any key from `start` to `end`: both lie outside the window of all.
    bool unseen(int64_t start, int64_t end) const {
        return window && start >= sinks && end <= *std::min_element(positions, positions + count) - window + 1;
    }
};

// Hide what row r does not see of the keys from `start` on.
template <class F>
void hide(const Queries<F>& queries, int64_t r, int64_t start, int64_t count, float* scores) {
    int64_t position = queries.positions[r];
    for (int64_t j = std::max<int64_t>(0, position + 1 - start); j < count; j++) scores[j] = -INFINITY;
    if (!queries.window) return;
    int64_t until = std::min(count, position - queries.window + 1 - start);
    for (int64_t j = std::max<int64_t>(0, queries.sinks - start); j < until; j++) scores[j] = -INFINITY;
}

// The state of every row after the keys of split number `split`, from nothing. Latent attention has its values in its
// keys; then `values` is null.
template <class F, class C>
void attend_split(const Queries<F>& queries, const Pages<C>& keys, const Pages<C>* values, int64_t split, State* states,
                  float* out, int64_t stride) {
    alignas(64) float scores[MOST_ROWS * TILE];
    alignas(64) bf16 rounded[std::is_same_v<F, bf16> ? MOST_ROWS * TILE : 1];
    const F *key_rows[TILE], *value_rows[TILE];
    const C *found[TILE], *next[TILE], *found_values[TILE];
    std::fill(states, states + queries.count, State{-INFINITY, 0.0f});
    clear(out, queries.count * stride);
    int64_t end = std::min(queries.end(), (split + 1) * SPLIT), width = queries.value_width;
    int64_t terms = std::is_same_v<F, float> ? whole(queries.key_width) : queries.key_width;
    for (int64_t start = split * SPLIT; start < end; start += TILE) {
        int64_t count = std::min(TILE, end - start), num_next = std::min(TILE, end - start - count);
        if (queries.unseen(start, start + count)) continue;
        keys.find(start, count, found);
        keys.find(start + count, num_next, next);
        keys.point(found, count, key_rows);
        score(queries.first, queries.count, queries.stride, queries.heads, key_rows, count, terms, scores, [&](int64_t j) {
            // A long context is not near the core.
            for (int64_t i = 0; j < num_next && i < keys.used; i += 64 / int64_t(sizeof(C)))
                __builtin_prefetch(next[j] + i, 0, 2);
        });
        for (int64_t r = 0; r < queries.count; r++) {
            float* row = scores + r * TILE;
            hide(queries, r, start, whole(count), row);
            soften(row, whole(count), queries.scale, states[r], out + r * stride, whole(width));
            if constexpr (std::is_same_v<F, bf16>) store_row(row, rounded + r * TILE, whole(count));
        }
        if (values) {
            values->find(start, count, found_values);
            values->point(found_values, count, value_rows);
        }
        const F* const* weighed = values ? value_rows : key_rows;
        if constexpr (std::is_same_v<F, bf16>)
            mean(rounded, queries.count, weighed, count, width, out, stride);
        else
            mean(scores, queries.count, weighed, count, width, out, stride);
    }
}

}  // namespace
