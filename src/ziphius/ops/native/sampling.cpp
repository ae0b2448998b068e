// The next token of each row of logits, with its log-probability, in two passes over the row; sampling.py
// calls it, and ops/sampling.py has the same in PyTorch.
//
// Every row is summed in one order, in blocks of BLOCK and lanes of LANES, whatever other rows there are, however
// many threads, and wherever the row lies in memory: so ids and log-probabilities are the same to the last bit.

#include "indices.h"
#include "numbers.h"

#include <functional>
#include <omp.h>
#include <vector>

namespace {

constexpr int64_t LANES = 16, BLOCK = 64;

// exp(x), and 0 for what is masked: fast_exp never falls below 1e-38.
inline float weight_of(float x) { return x < -87.0f ? 0.0f : fast_exp(x); }

// The output function of SplitMix64.
inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

// Output `position` of SplitMix64 from the state `key`, as a number in (0, 1).
inline double uniform(int64_t key, int64_t position) {
    uint64_t counter = uint64_t(position) + 1;
    return (double(mix(uint64_t(key) + counter * 0x9E3779B97F4A7C15u) >> 12) + 0.5) * 0x1p-52;
}

float largest(const float* x, int64_t count) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < count; j++) top = std::max(top, x[j]);
    return top;
}

int64_t first_equal(const float* x, int64_t count, float value) {
    for (int64_t from = 0; from < count; from += BLOCK) {
        int64_t end = std::min(from + BLOCK, count);
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int64_t j = from; j < end; j++) found |= x[j] == value;
        if (!found) continue;
        while (x[from] != value) from++;
        return from;
    }
    return 0;  // NaN alone
}

// f(j) of at most BLOCK numbers, summed.
template <class F>
inline float block_sum(int64_t count, const F& f) {
    float block[BLOCK], lanes[LANES];
    if (count == BLOCK) {
#pragma omp simd
        for (int64_t j = 0; j < BLOCK; j++) block[j] = f(j);
    } else {
        clear(block, BLOCK);
        for (int64_t j = 0; j < count; j++) block[j] = f(j);
    }
    for (int64_t l = 0; l < LANES; l++) lanes[l] = block[l];
    for (int64_t from = LANES; from < BLOCK; from += LANES)
        for (int64_t l = 0; l < LANES; l++) lanes[l] += block[from + l];
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

// The sum of f(j) over all numbers; `reached`, if wanted, is the sum up to the end of each block.
template <class F>
double sum(int64_t count, double* reached, const F& f) {
    double total = 0;
    for (int64_t from = 0; from < count; from += BLOCK) {
        total += block_sum(std::min(BLOCK, count - from), [=](int64_t j) { return f(from + j); });
        if (reached) reached[from / BLOCK] = total;
    }
    return total;
}

// The first number at which the sum of f reaches `share` of all; `reached` is what `sum` left.
template <class F>
int64_t inverse_cdf(int64_t count, const double* reached, double share, const F& f) {
    int64_t blocks = (count + BLOCK - 1) / BLOCK;
    double target = share * reached[blocks - 1];
    // Not past the last block: nothing is below a sum that is NaN.
    int64_t block = std::min<int64_t>(std::lower_bound(reached, reached + blocks, target) - reached, blocks - 1);
    int64_t from = block * BLOCK, end = std::min(from + BLOCK, count), last = from;
    double before = block ? reached[block - 1] : 0;
    // This sum and the block's own differ in the last bits: the draw must not fall behind its end.
    for (int64_t j = from; j < end; j++) {
        float weight = f(j);
        if (weight > 0) last = j;
        before += weight;
        if (before >= target && weight > 0) return j;
    }
    return last;
}

struct Scratch {
    std::vector<float> scaled, weights, some;
    std::vector<double> reached;
};

// The `k`-th largest number, or -inf where fewer are above that.
float kth_largest(const float* x, int64_t count, int64_t k, std::vector<float>& held) {
    float floor = -INFINITY;
    int64_t room = std::max(2 * k, BLOCK), kept = 0;
    held.resize(room);
    auto cut = [&] {
        std::nth_element(held.begin(), held.begin() + (k - 1), held.begin() + kept, std::greater<float>());
        floor = held[k - 1];
        kept = k;
    };
    for (int64_t j = 0; j < count; j++) {
        held[kept] = x[j];  // without a branch, which nothing could foresee
        kept += x[j] > floor;
        if (kept == room) cut();
    }
    if (kept < k) return -INFINITY;
    cut();
    return floor;
}

// The least likely of the fewest tokens whose weights reach `goal`, the more likely first.
float nucleus_floor(const float* weights, int64_t count, double goal, double total, std::vector<float>& held) {
    // What all tokens below this have together is not needed to reach the goal.
    float idle = float(0.999 * (total - goal) / double(count));
    held.resize(count);
    int64_t kept = 0;
    for (int64_t j = 0; j < count; j++) {
        held[kept] = weights[j];
        kept += weights[j] >= idle && weights[j] > 0;
    }
    // Groups of about equal weights: the bits of positive floats are ordered as they are.
    constexpr int64_t GROUPS = 1024;
    auto group_of = [](float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        return std::min<int64_t>(bits >> 20, GROUPS - 1);
    };
    double mass[GROUPS] = {};
    for (int64_t j = 0; j < kept; j++) mass[group_of(held[j])] += held[j];
    double before = 0;
    int64_t group = GROUPS - 1;
    while (group > 0 && before + mass[group] < goal) before += mass[group--];
    int64_t inside = 0;
    for (int64_t j = 0; j < kept; j++)
        if (group_of(held[j]) == group) held[inside++] = held[j];
    std::sort(held.begin(), held.begin() + inside, std::greater<float>());
    float floor = 0;
    for (int64_t j = 0; j < inside && before < goal; before += held[j++]) floor = held[j];
    return floor;
}

struct Filters {
    int64_t top_k;
    double top_p;
    float min_p;
    bool any(int64_t limit) const { return (top_k && top_k < limit) || top_p < 1 || min_p > 0; }
};

// Draw from what the filters leave of the weights of scaled logits, which are `total` in all.
int64_t draw_filtered(const float* x, int64_t limit, double total, const Filters& filters, double share, Scratch& own) {
    float* weights = own.weights.data();
    if (filters.top_k && filters.top_k < limit) {
        float lowest = kth_largest(x, limit, filters.top_k, own.some);
#pragma omp simd
        for (int64_t j = 0; j < limit; j++) weights[j] = x[j] < lowest ? 0.0f : weights[j];
        if (filters.top_p < 1) total = sum(limit, nullptr, [=](int64_t j) { return weights[j]; });
    }
    float least = filters.min_p;  // the most likely token weighs 1
    if (filters.top_p < 1)
        least = std::max(least, nucleus_floor(weights, limit, filters.top_p * total, total, own.some));
    auto kept = [=](int64_t j) { return weights[j] < least ? 0.0f : weights[j]; };
    sum(limit, own.reached.data(), kept);
    return inverse_cdf(limit, own.reached.data(), share, kept);
}

const float* scaled_row(const float* row, int64_t width, float temperature, Scratch& own) {
    if (temperature == 1) return row;
    own.scaled.resize(width);
    float* to = own.scaled.data();
#pragma omp simd
    for (int64_t j = 0; j < width; j++) to[j] = row[j] / temperature;
    return to;
}

struct Normal {
    float top, normalizer;
    double total;
};

// log sum exp of a row. Tokens are drawn up to `limit`: `top` is the largest of those, `total` what their weights
// are in all; `reached` and `weights` receive what `sum` and each of them is, if that is wanted.
Normal normalize(const float* x, int64_t width, int64_t limit, double* reached, float* weights) {
    float top = largest(x, limit), more = largest(x + limit, width - limit);
    double total;
    if (weights) {
#pragma omp simd
        for (int64_t j = 0; j < limit; j++) weights[j] = weight_of(x[j] - top);
        total = sum(limit, reached, [=](int64_t j) { return weights[j]; });
    } else {
        total = sum(limit, reached, [=](int64_t j) { return weight_of(x[j] - top); });
    }
    if (limit == width) return {top, top + float(std::log(total)), total};
    float all = std::max(top, more);
    double rest = sum(width - limit, nullptr, [=](int64_t j) { return weight_of(x[limit + j] - all); });
    double share = all > top ? std::exp(double(top) - double(all)) : 1;
    return {top, all + float(std::log(total * share + rest)), total};
}

bool in_parallel(int64_t rows, int64_t width) { return rows > 1 && rows * width > 16384; }

}  // namespace

extern "C" {
// A temperature of 0 takes the most likely token, the first of equal ones. Rows lie `stride` apart. Tokens from
// `limit` on are never drawn, and count for log-probabilities.
void sample(const float* logits, int64_t stride, const int64_t* keys, const float* temperatures, const int64_t* top_k,
            const double* top_p, const float* min_p, const int64_t* positions, int64_t* ids, float* logprobs,
            float* normalizers, int64_t rows, int64_t width, int64_t limit) {
#pragma omp parallel for schedule(static) if (in_parallel(rows, width))
    for (int64_t i = 0; i < rows; i++) {
        thread_local Scratch own;
        bool greedy = temperatures[i] == 0;
        const float* x = scaled_row(logits + i * stride, width, greedy ? 1.0f : temperatures[i], own);
        Filters filters = {top_k[i], top_p[i], min_p[i]};
        bool filtered = !greedy && filters.any(limit);
        own.reached.resize((limit + BLOCK - 1) / BLOCK);
        if (filtered) own.weights.resize(limit);
        Normal normal = normalize(x, width, limit, own.reached.data(), filtered ? own.weights.data() : nullptr);
        double share = uniform(keys[i], positions[i]);
        if (greedy)
            ids[i] = first_equal(x, limit, normal.top);
        else if (filtered)
            ids[i] = draw_filtered(x, limit, normal.total, filters, share, own);
        else
            ids[i] = inverse_cdf(limit, own.reached.data(), share,
                                 [=](int64_t j) { return weight_of(x[j] - normal.top); });
        normalizers[i] = normal.normalizer;
        logprobs[i] = x[ids[i]] - normal.normalizer;
    }
}

// The same log-probabilities of given tokens.
int64_t score(const float* logits, int64_t stride, const int64_t* ids, const float* temperatures, float* logprobs,
              float* normalizers, int64_t rows, int64_t width, int64_t limit) {
    if (!all_below(ids, rows, width)) return OUT_OF_RANGE;
#pragma omp parallel for schedule(static) if (in_parallel(rows, width))
    for (int64_t i = 0; i < rows; i++) {
        thread_local Scratch own;
        const float* x = scaled_row(logits + i * stride, width, temperatures[i] == 0 ? 1.0f : temperatures[i], own);
        normalizers[i] = normalize(x, width, limit, nullptr, nullptr).normalizer;
        logprobs[i] = x[ids[i]] - normalizers[i];
    }
    return FINE;
}
}
