// Which tokens go to which experts: the best experts of each token, and the pairs sorted by expert.
// ops/top_experts.py and ops/experts.py call it.

#include "indices.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include <omp.h>

namespace {

// Take the `top` largest of the numbers that are not out, the first of equal ones; what is taken is out. A
// NaN is never larger, so every place is filled whatever the numbers are.
void take_best(const float* numbers, int64_t count, int64_t top, uint8_t* is_out, int64_t* taken) {
    for (int64_t k = 0; k < top; k++) {
        int64_t best = -1;
        for (int64_t j = 0; j < count; j++)
            if (!is_out[j] && (best < 0 || numbers[j] > numbers[best])) best = j;
        taken[k] = best;
        is_out[best] = 1;
    }
}

}  // namespace

extern "C" {
// Of each token's scores: the `top` best within the best groups, best first; of equal ones the first. A
// group is judged by the sum of its `judges` best.
void top_experts(const float* scores, int64_t* chosen, int64_t tokens, int64_t experts, int64_t groups,
                 int64_t best_groups, int64_t judges, int64_t top) {
    int64_t size = experts / groups;
#pragma omp parallel
    {
        std::vector<float> of_groups(groups);
        std::vector<int64_t> picked(std::max(judges, std::max(best_groups, top)));
        std::vector<uint8_t> is_out(experts), group_is_out(groups);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < tokens; m++) {
            const float* row = scores + m * experts;
            std::fill(is_out.begin(), is_out.end(), 0);
            if (best_groups < groups) {
                for (int64_t g = 0; g < groups; g++) {
                    const float* group = row + g * size;
                    take_best(group, size, judges, is_out.data() + g * size, picked.data());
                    of_groups[g] = 0;
                    for (int64_t j = 0; j < judges; j++) of_groups[g] += group[picked[j]];
                }
                std::fill(group_is_out.begin(), group_is_out.end(), 0);
                take_best(of_groups.data(), groups, best_groups, group_is_out.data(), picked.data());
                // Those that were taken are now marked, so the marks are the other way round.
                for (int64_t g = 0; g < groups; g++)
                    std::fill(is_out.begin() + g * size, is_out.begin() + (g + 1) * size, !group_is_out[g]);
            }
            take_best(row, experts, top, is_out.data(), chosen + m * top);
        }
    }
}

// Sort pairs by expert, those of one expert by token; `slots` is the place of each pair. Pairs of expert
// number `experts` are dropped: they come last, and their slots are past the end of all others. Returns
// how many are kept.
int64_t sort_pairs(const int64_t* chosen, int64_t* pairs, int64_t* slots, int64_t* offsets, int64_t count,
                   int64_t experts) {
    if (!all_below(chosen, count, experts + 1)) return OUT_OF_RANGE;
    std::fill(offsets, offsets + experts + 1, 0);
    for (int64_t z = 0; z < count; z++)
        if (chosen[z] < experts) offsets[chosen[z] + 1]++;
    for (int64_t e = 0; e < experts; e++) offsets[e + 1] += offsets[e];
    std::vector<int64_t> next(offsets, offsets + experts + 1);
    for (int64_t z = 0; z < count; z++) {
        int64_t slot = next[chosen[z]]++;
        pairs[slot] = z;
        slots[z] = slot;
    }
    return offsets[experts];
}
}
