// Rotation of heads by position (RoPE, arXiv 2104.09864): neighbouring pairs as V2 and V3 do, or halves as Llama
// and Qwen do. `direction` -1 rotates back.

#pragma once

#include "numbers.h"

namespace {

template <class T>
inline void rotate_pairs(const T* from, T* to, const float* cosine, const float* sine, int64_t pairs,
                         float direction) {
    for (int64_t i = 0; i < pairs; i++) {
        float a = load(from[2 * i]), b = load(from[2 * i + 1]);
        float c = cosine[i], s = direction * sine[i];
        store(to + 2 * i, a * c - b * s);
        store(to + 2 * i + 1, b * c + a * s);
    }
}

// Number i with number i + half.
template <class T>
inline void rotate_halves(const T* from, T* to, const float* cosine, const float* sine, int64_t half,
                          float direction) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = load(from[i]), b = load(from[half + i]), s = direction * sine[i];
        store(to + i, a * cosine[i] - b * s);
        store(to + half + i, b * cosine[i] + a * s);
    }
}

}  // namespace
