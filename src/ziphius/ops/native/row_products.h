// Products of gemm.h for any number of rows, of which each is computed as if it were alone.

#pragma once

#include "gemm.h"

#include <type_traits>

namespace {

// Tiles of at most ROWS rows, as even as can be: few rows are few sums at a time, which wait for each other.
template <int ROWS, int VECTORS, class S, class T>
void even_tiles(int64_t m, int64_t k, const S* a, int64_t a_stride, const T* b, int64_t apart, float* c,
                int64_t c_stride) {
    for (int64_t tiles = (m + ROWS - 1) / ROWS; tiles > 0; tiles--) {
        int64_t rows = (m + tiles - 1) / tiles;
        auto tile = [&](auto count) {
            constexpr int64_t number = decltype(count)::value;
            tile_of<number, VECTORS, (number > 1)>(k, a, a_stride, 1, b, apart, c, c_stride, false);
        };
        if (rows == 1) tile(std::integral_constant<int, 1>());
        if constexpr (ROWS > 1)
            if (rows == 2) tile(std::integral_constant<int, 2>());
        if constexpr (ROWS > 2) {
            if (rows == 3) tile(std::integral_constant<int, 3>());
            if (rows == 4) tile(std::integral_constant<int, 4>());
            if (rows == 5) tile(std::integral_constant<int, 5>());
            if (rows == 6) tile(std::integral_constant<int, 6>());
        }
        m -= rows, a += rows * a_stride, c += rows * c_stride;
    }
}

// Columns j to n in strips of VECTORS registers, as many as are whole; returns where they end.
template <int ROWS, int VECTORS, class S, class T>
int64_t strips(int64_t j, int64_t m, int64_t n, int64_t k, const S* a, int64_t a_stride, const T* b, int64_t depth,
               float* c, int64_t c_stride) {
    constexpr int64_t strip = VECTORS * LANES, numbers = sizeof(float) / sizeof(T);
    int64_t panel = depth * UNIT;
    for (; j + strip <= n; j += strip)
        even_tiles<ROWS, VECTORS>(m, k, a, a_stride, b + j / UNIT * panel + j % UNIT * numbers, panel / numbers, c + j,
                                  c_stride);
    return j;
}

// C = A B for any number of rows and, in float32, of terms; columns are still a multiple of UNIT. A row of C is
// the same whatever rows are beside it: each of its numbers is summed from the first term to the last, in
// whatever tile. Eight sums or more go on at once, because each waits four cycles for the term before.
template <class S, class T>
void multiply_rows(int64_t m, int64_t n, int64_t k, const S* a, int64_t a_stride, const T* b, int64_t depth, float* c,
                   int64_t c_stride) {
    constexpr int ONE = 8, TWO = 4, PANEL = UNIT / LANES;
    int64_t j = 0;
    if (m == 1) {
        j = strips<1, ONE>(j, m, n, k, a, a_stride, b, depth, c, c_stride);
        strips<1, PANEL>(j, m, n, k, a, a_stride, b, depth, c, c_stride);
    } else if (m == 2) {
        j = strips<2, TWO>(j, m, n, k, a, a_stride, b, depth, c, c_stride);
        strips<2, PANEL>(j, m, n, k, a, a_stride, b, depth, c, c_stride);
    } else {
        j = strips<6, WIDE>(j, m, n, k, a, a_stride, b, depth, c, c_stride);
        strips<6, NARROW>(j, m, n, k, a, a_stride, b, depth, c, c_stride);
    }
}

}  // namespace
