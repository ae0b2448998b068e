// Scores of a few queries for a tile of keys: what a score is hangs on its query and its key alone.
//
// With wide registers keys can be turned, so that a register holds a number of each of sixteen keys, and a score is
// summed number after number, as in any product. That costs what it saves where a token has few queries for a key; a
// score is then summed over registers of numbers, and over the numbers of the last one. Which way is taken hangs on the
// model alone.

#pragma once

#include "program_rows.h"
#include "row_products.h"

namespace {

constexpr int64_t TILE = 128;
constexpr int64_t GROUP = 16;  // a tile has pointers to a multiple of it, the last ones to the last key again
constexpr int64_t MANY = 8;    // queries of a token for a key, from which on keys are turned

#if defined(__AVX512F__)

// Number i of each of sixteen rows in a line, for all numbers, in bfloat16 for all pairs of them.
template <class F>
inline void turn_group(const F* const* rows, int64_t width, float* to) {
    constexpr int64_t numbers = sizeof(float) / sizeof(F);  // in a word
    int64_t words = (width + numbers - 1) / numbers;
    for (int64_t first = 0; first < words; first += LINE) {
        line square[LINE];
        auto there = __mmask16(words - first >= LINE ? 0xffffu : (1u << (words - first)) - 1);
#pragma GCC unroll 16
        for (int64_t i = 0; i < LINE; i++) square[i] = (line)_mm512_maskz_loadu_ps(there, rows[i] + first * numbers);
        exchange<8>(square);
        exchange<4>(square);
        exchange<2>(square);
        exchange<1>(square);
        // Behind the last word come zeros, which nobody reads.
#pragma GCC unroll 16
        for (int64_t i = 0; i < LINE; i++) *reinterpret_cast<line*>(to + (first + i) * UNIT) = square[i];
    }
}

template <class F, class Prefetch>
void score_turned(const F* queries, int64_t rows, int64_t stride, const F* const* keys, int64_t count, int64_t width,
           float* scores, Prefetch prefetch) {
    static thread_local std::vector<float> memory;
    constexpr int64_t numbers = sizeof(float) / sizeof(F);
    int64_t words = (width + numbers - 1) / numbers, depth = (words + LINE - 1) / LINE * LINE;
    float* turned = scratch(memory, TILE * depth);
    for (int64_t j = 0; j < count; j += GROUP) {
        for (int64_t k = j; k < j + GROUP; k++) prefetch(k);
        turn_group(keys + j, width, turned + j / UNIT * UNIT * depth + j % UNIT);
    }
    multiply_rows(rows, padded(count), words * numbers, queries, stride, reinterpret_cast<const F*>(turned),
                  depth * numbers, scores, TILE);
}

#endif

constexpr int64_t SCORES = 8;  // that are summed up together

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
inline void dots(const float* queries, int64_t stride, const float* const* keys, int64_t width, float* scores) {
    constexpr int KEYS = SCORES / QUERIES;
    floats sums[SCORES] = {};
    for (int64_t i = 0; i < width; i += LANES) {
        floats key[KEYS];
#pragma GCC unroll 8
        for (int k = 0; k < KEYS; k++) key[k] = load_floats(keys[k] + i);
#pragma GCC unroll 8
        for (int q = 0; q < QUERIES; q++) {
            floats query = load_floats(queries + q * stride + i);
#pragma GCC unroll 8
            for (int k = 0; k < KEYS; k++) sums[q * KEYS + k] = multiply_add(query, key[k], sums[q * KEYS + k]);
        }
    }
    eight all = totals(sums);
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES; q++)
        std::memcpy(scores + q * TILE, reinterpret_cast<float*>(&all) + q * KEYS, sizeof(float) * KEYS);
}

// Keys have zeros up to whole registers here.
template <class Prefetch>
void score_straight(const float* queries, int64_t rows, int64_t stride, const float* const* keys, int64_t count,
                    int64_t width, float* scores, Prefetch prefetch) {
    for (int64_t j = 0; j < count; j += SCORES) {
        for (int64_t k = j; k < j + SCORES; k++) prefetch(k);
        const float* query = queries;
        float* to = scores + j;
        int64_t left = rows;
        for (; left >= 4; left -= 4, query += 4 * stride, to += 4 * TILE)
            for (int64_t k = 0; k < SCORES; k += 2) dots<4>(query, stride, keys + j + k, width, to + k);
        if (left >= 2) {
            for (int64_t k = 0; k < SCORES; k += 4) dots<2>(query, stride, keys + j + k, width, to + k);
            left -= 2, query += 2 * stride, to += 2 * TILE;
        }
        if (left) dots<1>(query, stride, keys + j, width, to);
    }
}

// Scores [rows, TILE] of queries [rows, stride] for `count` keys; `prefetch(j)` is called for every key on the way, and
// `heads` is how many queries of a token there are for a key.
template <class F, class Prefetch>
void score(const F* queries, int64_t rows, int64_t stride, int64_t heads, const F* const* keys, int64_t count,
           int64_t width, float* scores, Prefetch prefetch) {
#if defined(__AVX512F__)
    if (!std::is_same_v<F, float> || heads >= MANY)
        return score_turned(queries, rows, stride, keys, count, width, scores, prefetch);
#endif
    if constexpr (std::is_same_v<F, float>)
        score_straight(queries, rows, stride, keys, count, width, scores, prefetch);
}

}  // namespace
