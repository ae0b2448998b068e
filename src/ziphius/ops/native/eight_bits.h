// Rows of a cache in 8 bits a number, the bytes of ops/cache_rows.py: scales in float32, what is kept in bfloat16, then
// the numbers, those of a group times its scale. What a row becomes hangs on its own numbers alone.

#pragma once

#include "program_rows.h"

namespace {

struct int8 {
    int8_t bits;
    static constexpr float LARGEST = 127;
};
struct fp8 {  // e4m3: a sign, 4 bits of exponent, 3 of mantissa (arXiv 2209.05433)
    uint8_t bits;
    static constexpr float LARGEST = 448;
};

template <class C>
constexpr bool HAS_SCALES = std::is_same_v<C, int8> || std::is_same_v<C, fp8>;
constexpr float SMALLEST = 0x1p-100f;

// How a row of a part lies, as Pages of program.py writes it down; `stride` is in numbers, of 8 bits in bytes.
struct RowShape {
    int64_t stride, width, scale_width, kept;

    int64_t rounded() const { return width - kept; }
    int64_t scales() const { return (rounded() + scale_width - 1) / scale_width; }
    int64_t first_byte() const { return 4 * scales() + 2 * kept; }
};

inline float load(int8 x) { return float(x.bits); }
inline float load(fp8 x) {
    int32_t size = x.bits & 0x7f;
    int32_t bits = (size << 20) + (120 << 23);
    float normal;
    std::memcpy(&normal, &bits, 4);
    float value = size < 8 ? float(size) * 0x1p-9f : normal;
    return x.bits & 0x80 ? -value : value;
}
// Round to nearest even; a NaN, whose scale is one too, becomes any number.
inline void store(int8* p, float x) { p->bits = int8_t(std::nearbyint(std::min(127.0f, std::max(-127.0f, x)))); }
inline void store(fp8* p, float x) {
    float size = std::min(448.0f, std::max(0.0f, std::fabs(x)));
    int32_t bits;
    std::memcpy(&bits, &size, 4);
    int32_t normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3);
    int32_t found = size < 0x1p-6f ? int32_t(std::nearbyint(size * 512)) : normal;
    p->bits = uint8_t(found | (std::signbit(x) ? 0x80 : 0));
}

// Signs aside, the bits of numbers are in their order, with those that are not finite above all others.
inline float largest(const float* row, int64_t count) {
    int32_t most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < count; j++) {
        int32_t bits;
        std::memcpy(&bits, row + j, 4);
        most = std::max(most, bits & 0x7fffffff);
    }
    float out;
    std::memcpy(&out, &most, 4);
    return out;
}

template <class C>
ALONE void pack_row(const float* row, const RowShape& shape, C* to) {
    auto* scales = reinterpret_cast<char*>(to);
    C* numbers = to + shape.first_byte();
    int64_t rounded = shape.rounded();
    for (int64_t first = 0; first < rounded; first += shape.scale_width, scales += 4) {
        int64_t count = std::min(shape.scale_width, rounded - first);
        float most = largest(row + first, count);
        bool is_small = most < SMALLEST;
        float scale = is_small ? 0 : most / C::LARGEST, inverse = is_small ? 0 : C::LARGEST / most;
        std::memcpy(scales, &scale, 4);
#pragma omp simd
        for (int64_t j = first; j < first + count; j++) store(numbers + j, row[j] * inverse);
    }
    auto* kept = reinterpret_cast<bf16*>(scales);
    for (int64_t j = 0; j < shape.kept; j++) store(kept + j, row[rounded + j]);
    clear(numbers + rounded, shape.stride - shape.first_byte() - rounded);
}

// The numbers of a row from `column` on.
template <class C>
ALONE void unpack_row(const C* row, const RowShape& shape, int64_t column, int64_t count, float* to) {
    const C* numbers = row + shape.first_byte();
    int64_t rounded = shape.rounded(), end = std::min(column + count, rounded);
    for (int64_t first = column; first < end;) {
        int64_t group = first / shape.scale_width, until = std::min(end, (group + 1) * shape.scale_width);
        float scale;
        std::memcpy(&scale, reinterpret_cast<const char*>(row) + 4 * group, 4);
#pragma omp simd
        for (int64_t j = first; j < until; j++) to[j - column] = load(numbers[j]) * scale;
        first = until;
    }
    auto* kept = reinterpret_cast<const bf16*>(reinterpret_cast<const char*>(row) + 4 * shape.scales());
    for (int64_t j = std::max(column, rounded); j < column + count; j++) to[j - column] = load(kept[j - rounded]);
}

}  // namespace
