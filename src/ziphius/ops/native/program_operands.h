// What products of a program multiply: rows of buffers, made ready in the type of the weights.

#pragma once

#include "program.h"
#include "program_rows.h"

namespace {

// Rows of a buffer: one after the other, or those of a list.
struct Rows {
    const float* first;
    int64_t stride;
    const int64_t* list;

    const float* row(int64_t i) const { return first + (list ? list[i] : i) * stride; }
};

// What weights of type T are multiplied by: their own type where a CPU has units for it.
#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
template <class T>
using Factor = T;
#else
template <class T>
using Factor = float;
#endif

template <class T>
struct Operand {
    const Factor<T>* at;
    int64_t stride;
};

// Terms come in pairs where weights are bfloat16.
template <class T>
int64_t used_terms(int64_t terms) {
    return std::is_same_v<T, float> ? terms : (terms + 1) / 2 * 2;
}

// Rows as products read them: normalised, in the type of a factor, and zeros up to whole panels.
template <class T>
Operand<T> prepare(const Step& step, const Rows& rows, int64_t first, int64_t count, int64_t width, const Norm& norm,
                   std::vector<Factor<T>>& memory) {
    const float* weight = step.weight<float>(norm.weight);
    if constexpr (std::is_same_v<Factor<T>, float>)
        if (!weight && !rows.list && used_terms<T>(width) == width) return {rows.row(first), rows.stride};
    int64_t stride = padded(width), filled = step.by_tiles ? padded(count) : count;
    auto* to = scratch(memory, filled * stride);
    for (int64_t i = 0; i < count; i++) {
        if (weight)
            norm_row(rows.row(first + i), weight, float(norm.eps), width, to + i * stride);
        else
            store_row(rows.row(first + i), to + i * stride, width);
        clear(to + i * stride + width, stride - width);
    }
    clear(to + count * stride, (filled - count) * stride);
    return {to, stride};
}

// C [rows, columns] = A B; by matrix units rows are written up to a whole number of them.
template <class T>
void product(const Step& step, int64_t rows, int64_t columns, int64_t terms, Operand<T> a, const T* b, float* c,
             int64_t c_stride) {
    int64_t depth = padded(terms);
    if constexpr (std::is_same_v<Factor<T>, T>)
        if (step.by_tiles &&
            multiply_by_tiles(padded(rows), columns, depth, a.at, a.stride, b, depth, c, c_stride, false))
            return;
    multiply_rows(rows, columns, used_terms<T>(terms), a.at, a.stride, b, depth, c, c_stride);
}

}  // namespace
