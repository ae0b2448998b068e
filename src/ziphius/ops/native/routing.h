// Which experts a token goes to, by its scores. routing.cpp shares tokens out among threads for training, the
// program of program.cpp among those of a step.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// Defined in routing.cpp.
extern "C" int64_t sort_pairs(const int64_t* chosen, int64_t* pairs, int64_t* slots, int64_t* offsets, int64_t count,
                              int64_t experts);

namespace {

// Take the `top` largest of the numbers that are not out, the first of equal ones; what is taken is out. A
// NaN is never larger, so every place is filled whatever the numbers are.
inline void take_best(const float* numbers, int64_t count, int64_t top, uint8_t* is_out, int64_t* taken) {
    for (int64_t k = 0; k < top; k++) {
        int64_t best = -1;
        for (int64_t j = 0; j < count; j++)
            if (!is_out[j] && (best < 0 || numbers[j] > numbers[best])) best = j;
        taken[k] = best;
        is_out[best] = 1;
    }
}

// The `top` best experts within the best groups, best first; of equal ones the first. A group is judged by the
// sum of its `judges` best. Reused from token to token.
class ExpertChoice {
  public:
    ExpertChoice(int64_t experts, int64_t groups, int64_t best_groups, int64_t judges, int64_t top)
        : experts_(experts), groups_(groups), best_groups_(best_groups), judges_(judges), top_(top), of_groups_(groups),
          picked_(std::max(judges, std::max(best_groups, top))), is_out_(experts), group_is_out_(groups) {}

    void choose(const float* scores, int64_t* chosen) {
        std::fill(is_out_.begin(), is_out_.end(), 0);
        if (best_groups_ < groups_) leave_best_groups(scores);
        take_best(scores, experts_, top_, is_out_.data(), chosen);
    }

  private:
    void leave_best_groups(const float* scores) {
        int64_t size = experts_ / groups_;
        for (int64_t g = 0; g < groups_; g++) {
            const float* group = scores + g * size;
            take_best(group, size, judges_, is_out_.data() + g * size, picked_.data());
            of_groups_[g] = 0;
            for (int64_t j = 0; j < judges_; j++) of_groups_[g] += group[picked_[j]];
        }
        std::fill(group_is_out_.begin(), group_is_out_.end(), 0);
        take_best(of_groups_.data(), groups_, best_groups_, group_is_out_.data(), picked_.data());
        // Those that were taken are now marked, so the marks are the other way round.
        for (int64_t g = 0; g < groups_; g++)
            std::fill(is_out_.begin() + g * size, is_out_.begin() + (g + 1) * size, !group_is_out_[g]);
    }

    int64_t experts_, groups_, best_groups_, judges_, top_;
    std::vector<float> of_groups_;
    std::vector<int64_t> picked_;
    std::vector<uint8_t> is_out_, group_is_out_;
};

}  // namespace
