// Products of many rows with a weight that fits into a core's cache: it is packed once a call, while rows are
// read, and results written, where they lie. Libraries pack both sides. ops/linear.py calls them.
//
// Shapes: M rows, I numbers of a row that goes in, O of one that comes out.

#include "gemm.h"

#include <omp.h>

namespace {

constexpr int64_t ROWS = 64;    // of a block that one thread multiplies
constexpr int64_t TERMS = 128;  // of a weight's gradient, summed at once

// Rows as they lie, or filled up with zeros to multiples of UNIT in both directions.
template <class T>
struct Rows {
    const T* at;
    int64_t stride;

    Rows(const T* from, int64_t from_stride, int64_t count, int64_t width, std::vector<T>& memory)
        : at(from), stride(from_stride) {
        if (count % UNIT == 0 && width % UNIT == 0) return;
        stride = padded(width);
        T* to = scratch(memory, padded(count) * stride);
        copy_rows(from, from_stride, count, width, to);
        at = to;
    }
};

// out[M, O] = x[M, I] B; number i of column o of B lies at weight[i * row_stride + o * column_stride].
template <class T, class W>
void dense(const T* x, const W* weight, T* out, int64_t rows, int64_t in_width, int64_t out_width,
           int64_t row_stride, int64_t column_stride) {
    int64_t terms = padded(in_width), columns = padded(out_width);
    static thread_local std::vector<T> packed_memory;
    T* packed = scratch(packed_memory, terms * columns);
#pragma omp parallel
    {
        static thread_local std::vector<T> memory;
        static thread_local std::vector<float> sums_memory;
        float* sums = scratch(sums_memory, ROWS * columns);
#pragma omp for schedule(static)
        for (int64_t o = 0; o < out_width; o += UNIT)
            pack(weight + o * column_stride, row_stride, column_stride, in_width, std::min(UNIT, out_width - o),
                 packed + o * terms);
#pragma omp for schedule(dynamic)
        for (int64_t m = 0; m < rows; m += ROWS) {
            int64_t count = std::min(ROWS, rows - m);
            Rows<T> block(x + m * in_width, in_width, count, in_width, memory);
            T* place = out + m * out_width;
            float* target = target_of(place, count % UNIT == 0 && columns == out_width, sums);
            multiply(padded(count), columns, terms, block.at, block.stride, packed, terms, target, columns);
            bring(target, columns, place, out_width, count, out_width);
        }
    }
}

// out[O, I] = grad[M, O]^T x[M, I]; zeros of no rows. Threads share out the longer side of `out`, so each sum is one thread's.
void dense_gradient(const bf16* grad, const bf16* x, float* out, int64_t rows, int64_t in_width, int64_t out_width) {
    if (rows == 0) {
        std::fill(out, out + out_width * in_width, 0.0f);
        return;
    }
#pragma omp parallel
    {
        static thread_local std::vector<bf16> grad_memory, packed_memory, turned_memory;
        static thread_local std::vector<float> sums_memory;
        int64_t threads = omp_get_num_threads(), own = omp_get_thread_num();
        bool by_out = out_width >= in_width;
        int64_t units = padded(by_out ? out_width : in_width) / UNIT;
        int64_t first = units * own / threads * UNIT, last = units * (own + 1) / threads * UNIT;
        int64_t out_first = by_out ? first : 0, out_last = by_out ? std::min(last, out_width) : out_width;
        int64_t in_first = by_out ? 0 : first, in_last = by_out ? in_width : std::min(last, in_width);
        int64_t height = out_last - out_first, width = in_last - in_first, columns = padded(width);
        bf16* packed = scratch(packed_memory, TERMS * columns);
        bf16* turned = scratch(turned_memory, TERMS * padded(height));
        bool fits = height % UNIT == 0 && width % UNIT == 0;
        float* target = out + out_first * in_width + in_first;
        int64_t stride = fits ? in_width : columns;
        if (!fits) target = scratch(sums_memory, padded(height) * columns);
        for (int64_t m = 0; height > 0 && width > 0 && m < rows; m += TERMS) {
            int64_t count = std::min(TERMS, rows - m), terms = padded(count);
            Rows<bf16> block(grad + m * out_width + out_first, out_width, count, height, grad_memory);
            pack(x + m * in_width + in_first, in_width, 1, count, width, packed);
            multiply_transposed(padded(height), columns, terms, block.at, block.stride, turned, packed, terms, target,
                                stride, m > 0);
        }
        if (!fits) bring(target, stride, out + out_first * in_width + in_first, in_width, height, width);
    }
}

}  // namespace

extern "C" {
#define DENSE(suffix, T, W)                                                                               \
    void dense_##suffix(const T* x, const W* weight, T* out, int64_t rows, int64_t in_width,              \
                        int64_t out_width, int64_t row_stride, int64_t column_stride) {                   \
        dense(x, weight, out, rows, in_width, out_width, row_stride, column_stride);                      \
    }
DENSE(ff, float, float)
DENSE(bf, bf16, float)
DENSE(bb, bf16, bf16)

void dense_gradient_b(const bf16* grad, const bf16* x, float* out, int64_t rows, int64_t in_width,
                      int64_t out_width) {
    dense_gradient(grad, x, out, rows, in_width, out_width);
}
}
