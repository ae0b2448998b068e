// The two number types of the kernels, and the pointwise functions that several of them use.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline void store(float* p, float x) { *p = x; }
inline void store(bf16* p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // Round to nearest even; a NaN keeps a set mantissa bit.
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    p->bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

// memcpy and memset of numbers; where there are none, pointers may be null, as those of empty tensors are.
template <class T>
inline void copy(const T* from, int64_t count, T* to) {
    if (count) std::memcpy(static_cast<void*>(to), from, sizeof(T) * count);
}
template <class T>
inline void clear(T* to, int64_t count) {
    if (count) std::memset(static_cast<void*>(to), 0, sizeof(T) * count);
}

// exp for vector loops: 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 2e-7.
inline float fast_exp(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    float n = std::nearbyint(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

}  // namespace
