// One number of a run of words. ops/digest.py calls it and says what the number is.

#include <cstdint>

extern "C" {
int64_t digest(const int32_t* words, int64_t count) {
    uint64_t sum = 0;
    // Sums of integers have no order, so that the number of threads changes nothing.
#pragma omp parallel for simd schedule(static) reduction(+ : sum) if (count > 65536)
    for (int64_t i = 0; i < count; i++) {
        uint64_t factor = uint64_t(i) * 0x9E3779B97F4A7C15u;
        factor = (factor ^ (factor >> 30)) * 0xBF58476D1CE4E5B9u;
        factor = (factor ^ (factor >> 27)) * 0x94D049BB133111EBu;
        sum += uint64_t(int64_t(words[i])) * ((factor ^ (factor >> 31)) | 1);
    }
    return int64_t(sum);
}
}
