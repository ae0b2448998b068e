// The operations of a program that are products: projections, gated feed-forward layers, routed experts.
//
// Rows are cut into blocks, columns into runs of panels, and a task is one of each: where rows are few, threads share
// out columns. No cut changes a bit.

#pragma once

#include "program_operands.h"
#include "routing.h"

namespace {

// Rows of a block: what a thread holds of A stays in its cache.
inline int64_t block_rows(int64_t terms) { return terms <= 512 ? 96 : terms <= 1024 ? 64 : 32; }

// Cuts `panels` into equal runs, enough for all threads if there are few blocks of rows, and none too long for the
// sums of a block of rows to stay in the cache.
struct Runs {
    static constexpr int64_t LONGEST = 16, SHORTEST = 4;
    int64_t panels, count;

    Runs(int64_t panels, int64_t blocks, int64_t threads) : panels(panels) {
        int64_t pieces = (panels + LONGEST - 1) / LONGEST;
        if (threads > 1 && blocks > 0) pieces = std::max(pieces, std::min(panels / SHORTEST, 4 * threads / blocks));
        count = std::max<int64_t>(1, pieces);
    }
    // Even numbers of panels: a row alone is multiplied by two at a time.
    int64_t start(int64_t run) const { return run == count ? panels : run * panels / count / 2 * 2; }
};

template <class T>
void project(const Project& op, const Step& step, Team& team) {
    static thread_local std::vector<Factor<T>> memory;
    static thread_local std::vector<float> sums_memory;
    bool is_head = op.into == LOGITS;
    Rows rows{step.at(op.from), step.stride(op.from), is_head ? step.batch.wanted : nullptr};
    float* to = is_head ? step.logits : step.at(op.to);
    int64_t to_stride = is_head ? op.outputs : step.stride(op.to);
    int64_t count = is_head ? step.batch.num_wanted : step.batch.tokens;
    int64_t height = block_rows(op.inputs), blocks = (count + height - 1) / height, depth = padded(op.inputs);
    const T* weight = step.weight<T>(op.weight);
    const float* bias = step.weight<float>(op.bias);
    Runs runs(padded(op.outputs) / UNIT, blocks, team.threads());
    Operand<T> operand{};
    int64_t ready = NONE;
    team.each(blocks * runs.count, [&](int64_t task) {
        int64_t block = task / runs.count, run = task % runs.count;
        int64_t first = block * height, number = std::min(height, count - first);
        if (ready != block) operand = prepare<T>(step, rows, first, number, op.inputs, op.norm, memory), ready = block;
        int64_t column = runs.start(run) * UNIT, width = runs.start(run + 1) * UNIT - column;
        int64_t columns = std::min(width, op.outputs - column);
        float* place = to + first * to_stride + column;
        bool straight = op.into == STORE && !bias && !step.by_tiles;
        float* sums = straight ? place : scratch(sums_memory, padded(number) * width);
        int64_t stride = straight ? to_stride : width;
        product(step, number, width, op.inputs, operand, weight + column * depth, sums, stride);
        if (straight) return;
        for (int64_t i = 0; i < number; i++)
            add_row(sums + i * stride, bias ? bias + column : nullptr, columns, place + i * to_stride, op.into == ADD);
    });
}

// What the adapters of rows add to a gated layer's products: of row i that of token `first` + i.
struct Updates {
    Place place;
    int64_t first, width;  // of the layer
};

// Some rows through a run of a gated layer's panels, to their columns of `to`.
template <class T>
void gated_run(const Step& step, int64_t rows, int64_t inputs, Operand<T> operand, const T* weight, int64_t from,
               int64_t until, float* to, int64_t to_stride, const Updates& updates) {
    static thread_local std::vector<float> memory;
    int64_t width = 2 * (until - from) * UNIT;
    float* sums = scratch(memory, padded(rows) * width);
    product(step, rows, width, inputs, operand, weight + 2 * from * UNIT * padded(inputs), sums, width);
    for (int64_t i = 0; i < rows; i++) {
        bool adapted = updates.place.buffer != NONE && step.has_adapter(updates.first + i);
        const float* update = adapted ? step.at(updates.place, updates.first + i) : nullptr;
        for (int64_t panel = from; panel < until; panel++) {
            float *gate = sums + i * width + 2 * (panel - from) * UNIT, *up = gate + UNIT;
            if (adapted) {
                add_row(update + panel * UNIT, nullptr, UNIT, gate, true);
                add_row(update + padded(updates.width) + panel * UNIT, nullptr, UNIT, up, true);
            }
            gate_row(gate, up, UNIT, to + i * to_stride + panel * UNIT);
        }
    }
}

template <class T>
void gated(const Gated& op, const Step& step, Team& team) {
    static thread_local std::vector<Factor<T>> memory;
    Rows rows{step.at(op.from), step.stride(op.from), nullptr};
    int64_t height = block_rows(op.inputs), blocks = (step.batch.tokens + height - 1) / height;
    Runs runs(padded(op.width) / UNIT, blocks, team.threads());
    Operand<T> operand{};
    int64_t ready = NONE;
    team.each(blocks * runs.count, [&](int64_t task) {
        int64_t block = task / runs.count, run = task % runs.count;
        int64_t first = block * height, number = std::min(height, step.batch.tokens - first);
        if (ready != block) operand = prepare<T>(step, rows, first, number, op.inputs, op.norm, memory), ready = block;
        gated_run(step, number, op.inputs, operand, step.weight<T>(op.weight), runs.start(run), runs.start(run + 1),
                  step.at(op.to, first), step.stride(op.to), Updates{op.updates, first, op.width});
    });
}

// Pairs of a token and one of its experts, sorted by expert and cut into blocks. Every thread sorts them for itself,
// which is sooner done than waiting for another one to.
struct Dispatch {
    struct Block {
        int64_t expert, start, count;
    };
    std::vector<int64_t> pairs, places, tokens, offsets;
    std::vector<Block> blocks;  // those of the shared expert, number E, come last: its pairs are the tokens

    void sort(const int64_t* chosen, int64_t count, const Experts& op, int64_t height) {
        int64_t pairs_count = count * op.top;
        pairs.resize(pairs_count), places.resize(pairs_count), tokens.resize(pairs_count);
        offsets.resize(op.experts + 1);
        sort_pairs(chosen, pairs.data(), places.data(), offsets.data(), pairs_count, op.experts);
        for (int64_t z = 0; z < pairs_count; z++) tokens[z] = pairs[z] / op.top;
        blocks.clear();
        for (int64_t e = 0; e < op.experts; e++) cut(e, offsets[e], offsets[e + 1], height);
        if (op.shared_width) cut(op.experts, 0, count, height);
    }

  private:
    void cut(int64_t expert, int64_t start, int64_t end, int64_t height) {
        for (; start < end; start += height) blocks.push_back({expert, start, std::min(height, end - start)});
    }
};

// First all experts' gated products, then all their output projections, then the sums: where a token is alone, threads
// share out the columns of its few experts.
template <class T>
void experts(const Experts& op, const Step& step, Team& team) {
    static thread_local Dispatch dispatch;
    static thread_local std::vector<Factor<T>> memory;
    static thread_local std::vector<float> sums_memory;
    int64_t tokens = step.batch.tokens, depth = padded(op.hidden);
    int64_t inner_width = padded(op.width), shared_width = padded(op.shared_width);
    auto* chosen = reinterpret_cast<const int64_t*>(step.at(op.chosen));
    float *inner = step.at(op.inner), *out = step.at(op.out);
    dispatch.sort(chosen, tokens, op, block_rows(std::max(op.hidden, std::max(op.width, op.shared_width))));
    int64_t blocks = int64_t(dispatch.blocks.size());

    Runs runs(std::max(inner_width, shared_width) / UNIT, blocks, team.threads());
    Operand<T> operand{};
    int64_t ready = NONE;
    team.each(blocks * runs.count, [&](int64_t task) {
        const auto& block = dispatch.blocks[task / runs.count];
        bool shared = block.expert == op.experts;
        Runs own(runs);
        own.panels = (shared ? shared_width : inner_width) / UNIT;
        int64_t from = own.start(task % runs.count), until = own.start(task % runs.count + 1);
        if (from == until) return;
        Rows rows{step.at(op.stream), step.stride(op.stream), shared ? nullptr : dispatch.tokens.data()};
        if (ready != task / runs.count) {
            operand = prepare<T>(step, rows, block.start, block.count, op.hidden, op.norm, memory);
            ready = task / runs.count;
        }
        if (shared)
            gated_run(step, block.count, op.hidden, operand, step.weight<T>(op.shared_first), from, until,
                      step.at(op.shared_inner, block.start), step.stride(op.shared_inner),
                      Updates{op.updates, block.start, op.shared_width});
        else
            gated_run(step, block.count, op.hidden, operand,
                      step.weight<T>(op.first) + block.expert * 2 * inner_width * depth, from, until,
                      inner + block.start * inner_width, inner_width, Updates{{NONE, 0}, 0, 0});
    });

    Runs outputs(depth / UNIT, blocks, team.threads());
    ready = NONE;
    team.each(blocks * outputs.count, [&](int64_t task) {
        const auto& block = dispatch.blocks[task / outputs.count];
        bool shared = block.expert == op.experts;
        int64_t from = outputs.start(task % outputs.count) * UNIT, width = shared ? op.shared_width : op.width;
        int64_t columns = outputs.start(task % outputs.count + 1) * UNIT - from;
        Rows rows{inner, inner_width, nullptr};
        if (shared) rows = {step.at(op.shared_inner), step.stride(op.shared_inner), nullptr};
        if (ready != task / outputs.count) {
            operand = prepare<T>(step, rows, block.start, block.count, width, Norm{NONE, 0}, memory);
            ready = task / outputs.count;
        }
        const T* weight = shared ? step.weight<T>(op.shared_second)
                                 : step.weight<T>(op.second) + block.expert * inner_width * depth;
        float* sums = scratch(sums_memory, padded(block.count) * columns);
        product(step, block.count, columns, width, operand, weight + from * padded(width), sums, columns);
        for (int64_t i = 0; i < block.count; i++) {
            float* to = shared ? step.at(op.shared_out, block.start + i) : out + dispatch.pairs[block.start + i] * depth;
            copy(sums + i * columns, columns, to + from);
        }
    });

    constexpr int64_t HEIGHT = 16;
    const float* weights = step.at(op.weights);
    team.each((tokens + HEIGHT - 1) / HEIGHT, [&](int64_t task) {
        for (int64_t m = task * HEIGHT; m < std::min(tokens, (task + 1) * HEIGHT); m++)
            combine_row(op.shared_width ? step.at(op.shared_out, m) : nullptr, out + m * op.top * depth, depth,
                        weights + m * op.top, op.top, op.hidden, step.at(op.stream, m));
    });
}

// Scores are computed as the gates of models/gates do it, exp by the library: near-ties decide routes.
inline void score_row(float* logits, const Choose& op) {
    if (op.scoring == BY_SIGMOID)
        for (int64_t e = 0; e < op.experts; e++) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    if (op.scoring != BY_SOFTMAX) return;
    float top = *std::max_element(logits, logits + op.experts), sum = 0;
    for (int64_t e = 0; e < op.experts; e++) sum += logits[e] = std::exp(logits[e] - top);
    for (int64_t e = 0; e < op.experts; e++) logits[e] /= sum;
}

inline void weigh_row(const float* scores, const int64_t* chosen, const Choose& op, float* weights) {
    float sum = 0, top = scores[chosen[0]];
    for (int64_t k = 1; k < op.top; k++) top = std::max(top, scores[chosen[k]]);  // replayed ones come in any order
    for (int64_t k = 0; k < op.top; k++) {
        weights[k] = op.over_chosen ? std::exp(scores[chosen[k]] - top) : scores[chosen[k]];
        sum += weights[k];
    }
    if (op.normalise) sum += 1e-20f;
    for (int64_t k = 0; k < op.top; k++) {
        if (op.normalise || op.over_chosen) weights[k] /= sum;
        weights[k] *= float(op.scaling);
    }
}

inline void choose(const Choose& op, const Step& step, Team& team) {
    constexpr int64_t HEIGHT = 16;
    ExpertChoice choice(op.experts, op.groups, op.best_groups, op.judges, op.top);
    std::vector<float> biased(op.experts);
    const float* bias = step.weight<float>(op.bias);
    auto* chosen = reinterpret_cast<int64_t*>(step.at(op.chosen));
    float* weights = step.at(op.weights);
    team.each((step.batch.tokens + HEIGHT - 1) / HEIGHT, [&](int64_t task) {
        for (int64_t m = task * HEIGHT; m < std::min(step.batch.tokens, (task + 1) * HEIGHT); m++) {
            float* scores = step.at(op.logits, m);
            score_row(scores, op);
            int64_t *own = chosen + m * op.top, route = (m * step.route_layers + op.route) * op.top;
            if (step.replayed) {
                for (int64_t k = 0; k < op.top; k++) own[k] = step.replayed[route + k];
            } else {
                for (int64_t e = 0; e < op.experts; e++) biased[e] = scores[e] + (bias ? bias[e] : 0.0f);
                choice.choose(biased.data(), own);
            }
            weigh_row(scores, own, op, weights + m * op.top);
            if (step.routes)
                for (int64_t k = 0; k < op.top; k++) step.routes[route + k] = int16_t(own[k]);
        }
    });
}

}  // namespace
