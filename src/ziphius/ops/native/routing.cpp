// Which tokens go to which experts: the best experts of each token, and the pairs sorted by expert.
// ops/top_experts.py and ops/experts.py call it.

#include "indices.h"
#include "routing.h"

#include <omp.h>

extern "C" {
// Of each token's scores: the `top` best within the best groups, best first; of equal ones the first. A
// group is judged by the sum of its `judges` best.
void top_experts(const float* scores, int64_t* chosen, int64_t tokens, int64_t experts, int64_t groups,
                 int64_t best_groups, int64_t judges, int64_t top) {
#pragma omp parallel
    {
        ExpertChoice choice(experts, groups, best_groups, judges, top);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < tokens; m++) choice.choose(scores + m * experts, chosen + m * top);
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
