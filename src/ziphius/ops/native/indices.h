// Checks of what kernels take indices from: a wrong one is told to the caller, and nothing is read or written.

#pragma once

#include <cstdint>

namespace {

// What a kernel returns that checks its indices.
constexpr int64_t FINE = 0, OUT_OF_RANGE = -1;

inline bool all_below(const int64_t* numbers, int64_t count, int64_t end) {
    bool fine = true;
    for (int64_t i = 0; i < count; i++) fine &= uint64_t(numbers[i]) < uint64_t(end);
    return fine;
}

// Whether groups begin where the one before ends, the first at 0, and the last ends at `end`.
inline bool are_starts(const int64_t* starts, int64_t groups, int64_t end) {
    bool fine = starts[0] == 0 && starts[groups] == end;
    for (int64_t g = 0; g < groups; g++) fine &= starts[g] <= starts[g + 1];
    return fine;
}

}  // namespace
