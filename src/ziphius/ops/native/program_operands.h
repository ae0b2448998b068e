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

template <class T>
struct Operand {
    const T* at;
    int64_t stride;
};

// Rows as products read them: normalised, rounded to T, and zeros up to whole panels.
template <class T>
Operand<T> prepare(const Step& step, const Rows& rows, int64_t first, int64_t count, int64_t width, const Norm& norm,
                   std::vector<T>& memory) {
    const float* weight = step.weight<float>(norm.weight);
    if constexpr (std::is_same_v<T, float>)
        if (!weight && !rows.list) return {rows.row(first), rows.stride};
    int64_t stride = padded(width), filled = step.by_tiles ? padded(count) : count;
    T* to = scratch(memory, filled * stride);
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

inline int64_t used_terms(int64_t terms, const float*) { return terms; }
inline int64_t used_terms(int64_t terms, const bf16*) { return padded(terms); }

// C [rows, columns] = A B; by matrix units rows are written up to a whole number of them.
template <class T>
void product(const Step& step, int64_t rows, int64_t columns, int64_t terms, Operand<T> a, const T* b, float* c,
             int64_t c_stride) {
    int64_t depth = padded(terms);
    if (step.by_tiles && multiply_by_tiles(padded(rows), columns, depth, a.at, a.stride, b, depth, c, c_stride, false))
        return;
    multiply_rows(rows, columns, used_terms(terms, b), a.at, a.stride, b, depth, c, c_stride);
}

}  // namespace
