// What is done to single rows. Each function is compiled once and alone, so that a row gets the same bits from it in
// every operation, task and batch; sums go over registers in one order, which hangs on the width alone.

#pragma once

#include "gemm.h"

#define ALONE __attribute__((noinline))

namespace {

inline float total(floats x) {
    float sum = 0;
    for (int64_t i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

inline floats load_floats(const float* from) { return *reinterpret_cast<const floats*>(from); }

// The numbers that are left of a row, with zeros behind them.
inline floats load_floats(const float* from, int64_t count) {
    floats x = {};
    std::memcpy(&x, from, sizeof(float) * count);
    return x;
}

ALONE float sum_of_squares(const float* row, int64_t width) {
    constexpr int64_t CHAINS = 4;  // each sum waits for the one before
    floats sums[CHAINS] = {};
    int64_t j = 0;
    for (; j + CHAINS * LANES <= width; j += CHAINS * LANES)
        for (int64_t c = 0; c < CHAINS; c++) {
            floats x = load_floats(row + j + c * LANES);
            sums[c] = multiply_add(x, x, sums[c]);
        }
    for (; j < width; j += LANES) {
        floats x = j + LANES <= width ? load_floats(row + j) : load_floats(row + j, width - j);
        sums[0] = multiply_add(x, x, sums[0]);
    }
    return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// RMS norm (arXiv 1910.07467).
template <class T>
ALONE void norm_row(const float* row, const float* weight, float eps, int64_t width, T* to) {
    float scale = 1.0f / std::sqrt(sum_of_squares(row, width) / width + eps);
#pragma omp simd
    for (int64_t j = 0; j < width; j++) store(to + j, row[j] * scale * weight[j]);
}

template <class T>
ALONE void load_row(const T* row, int64_t width, float* to) {
#pragma omp simd
    for (int64_t j = 0; j < width; j++) to[j] = load(row[j]);
}

// Cosines, then sines, of each frequency; angles are float32 as in models/rope.py.
ALONE void angles_row(int64_t position, const float* frequencies, int64_t pairs, float factor, float* to) {
    for (int64_t i = 0; i < pairs; i++) {
        double angle = float(position) * frequencies[i];
        to[i] = float(std::cos(angle)) * factor;
        to[pairs + i] = float(std::sin(angle)) * factor;
    }
}

ALONE void add_row(const float* row, const float* bias, int64_t width, float* to, bool into_sum) {
    if (into_sum) {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) to[j] += bias ? row[j] + bias[j] : row[j];
    } else {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) to[j] = bias ? row[j] + bias[j] : row[j];
    }
}

ALONE void gate_row(const float* gate, const float* up, int64_t width, float* to) {
#pragma omp simd
    for (int64_t j = 0; j < width; j++) to[j] = gate[j] * sigmoid(gate[j]) * up[j];
}

// stream += base + sum of weight[k] * rows[k].
ALONE void combine_row(const float* base, const float* rows, int64_t stride, const float* weights, int64_t count,
                       int64_t width, float* stream) {
    constexpr int64_t STRIP = 4 * LANES;
    for (int64_t first = 0; first < width; first += STRIP) {
        int64_t columns = std::min(STRIP, width - first);
        float sums[STRIP] = {};
        if (base) copy(base + first, columns, sums);
        for (int64_t k = 0; k < count; k++) {
            const float* row = rows + k * stride + first;
            float weight = weights[k];
#pragma omp simd
            for (int64_t j = 0; j < columns; j++) sums[j] += weight * row[j];
        }
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) stream[first + j] += sums[j];
    }
}

}  // namespace
