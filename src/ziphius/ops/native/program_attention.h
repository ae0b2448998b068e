// The attention of a program: blocks of queries that share their keys, and their splits where threads are many.

#pragma once

#include "paged_attention.h"
#include "program_operands.h"

namespace {

// Heads of a few tokens of one sequence that share a key head.
struct QueryBlock {
    int64_t sequence, token, tokens, key_head, head, heads;
    int64_t last;  // position of the last token
};

inline std::vector<QueryBlock> query_blocks(const Attend& op, const Step& step) {
    const Batch& batch = step.batch;
    int64_t group = op.heads / op.key_heads, heads = std::min(group, MOST_ROWS);
    int64_t tokens = std::max<int64_t>(1, MOST_ROWS / heads);
    std::vector<QueryBlock> blocks;
    for (int64_t z = 0; z < batch.sequences; z++)
        for (int64_t m = batch.starts[z]; m < batch.starts[z + 1]; m += tokens) {
            int64_t count = std::min(tokens, batch.starts[z + 1] - m);
            for (int64_t g = 0; g < op.key_heads; g++)
                for (int64_t h = 0; h < group; h += heads)
                    blocks.push_back({z, m, count, g, g * group + h, std::min(heads, group - h),
                                      step.positions[m + count - 1]});
        }
    // The longest first, so that no thread is left with one when the others are done.
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const QueryBlock& a, const QueryBlock& b) { return a.last > b.last; });
    return blocks;
}

template <class F>
Queries<F> queries_of(const Attend& op, const Step& step, const QueryBlock& block, std::vector<F>& memory) {
    Queries<F> queries;
    queries.stride = padded(op.key_width);
    F* to = scratch(memory, MOST_ROWS * queries.stride);
    queries.first = to;
    queries.count = block.tokens * block.heads, queries.heads = op.heads / op.key_heads;
    queries.key_width = op.key_width, queries.value_width = op.value_width;
    queries.window = op.window, queries.sinks = op.sinks, queries.scale = float(op.scale);
    for (int64_t t = 0; t < block.tokens; t++)
        for (int64_t h = 0; h < block.heads; h++) {
            int64_t m = block.token + t, r = t * block.heads + h;
            store_row(step.at(op.queries, m) + (block.head + h) * queries.stride, to + r * queries.stride, queries.stride);
            queries.positions[r] = step.positions[m];
        }
    return queries;
}

template <class T, class C>
void split_of(const Attend& op, const Step& step, const QueryBlock& block, int64_t split, State* states, float* out,
              int64_t stride) {
    static thread_local std::vector<float> key_memory, value_memory;
    const int64_t* table = step.batch.tables + block.sequence * step.batch.blocks;
    static thread_local std::vector<Mixed<T, C>> query_memory;
    Queries<Mixed<T, C>> queries = queries_of<Mixed<T, C>>(op, step, block, query_memory);
    bool latent = op.value_weight != NONE;
    Pages<C> keys{step.part<C>(op.layer, 0), step.shape(op.layer, 0), block.key_head * op.key_width, op.key_width,
                  step.block_size, table, key_memory};
    if (latent) return attend_split(queries, keys, static_cast<Pages<C>*>(nullptr), split, states, out, stride);
    Pages<C> values{step.part<C>(op.layer, 1), step.shape(op.layer, 1), block.key_head * op.value_width,
                    op.value_width, step.block_size, table, value_memory};
    attend_split(queries, keys, &values, split, states, out, stride);
}

// From the last state of each row to what the output projection reads; latents become values on the way, W_v (p c).
template <class T>
void finish(const Attend& op, const Step& step, const QueryBlock& block, const State* states, float* out,
            int64_t stride) {
    static thread_local std::vector<Factor<T>> memory;
    static thread_local std::vector<float> sums_memory;
    for (int64_t r = 0; r < block.tokens * block.heads; r++) {
        float inverse = 1.0f / states[r].sum;
        for (int64_t j = 0; j < stride; j++) out[r * stride + j] *= inverse;
        int64_t token = block.token + r / block.heads, head = block.head + r % block.heads;
        if (op.latents.buffer != NONE && step.has_adapter(token))
            copy(out + r * stride, op.value_width, step.at(op.latents, token) + head * padded(op.value_width));
    }
    int64_t depth = padded(op.value_width), columns = padded(op.out_width);
    float* sums = scratch(sums_memory, padded(block.tokens) * columns);
    for (int64_t h = 0; h < block.heads; h++) {
        const float* from = out + h * stride;
        int64_t from_stride = block.heads * stride;
        if (op.value_weight != NONE) {
            Operand<T> operand = prepare<T>(step, Rows{from, from_stride, nullptr}, 0, block.tokens, op.value_width,
                                         Norm{NONE, 0}, memory);
            const T* weight = step.weight<T>(op.value_weight) + (block.head + h) * depth * columns;
            product(step, block.tokens, columns, op.value_width, operand, weight, sums, columns);
            from = sums, from_stride = columns;
        }
        for (int64_t t = 0; t < block.tokens; t++)
            copy(from + t * from_stride, op.out_width, step.at(op.to, block.token + t) + (block.head + h) * op.out_width);
    }
}

// States and sums of a block of queries: of one split, or of all that came before.
struct Seen {
    State* states;
    float* out;

    Seen(float* memory) : states(reinterpret_cast<State*>(memory)), out(memory + MOST_ROWS * sizeof(State) / sizeof(float)) {}
    static int64_t size(const Attend& op) {
        return MOST_ROWS * (whole(op.value_width) + int64_t(sizeof(State) / sizeof(float)));
    }
    void join_all(const Attend& op, const QueryBlock& block, const Seen& next) const {
        int64_t stride = whole(op.value_width);
        for (int64_t r = 0; r < block.tokens * block.heads; r++)
            join(states[r], out + r * stride, next.states[r], next.out + r * stride, float(op.scale), stride);
    }
};

// Whether threads share out the splits of a block too: where blocks are too few for all of them.
inline bool spreads(const std::vector<QueryBlock>& blocks, int64_t threads) {
    return threads > 1 && int64_t(blocks.size()) < 4 * threads && !blocks.empty() && blocks[0].last >= SPLIT;
}

// Numbers in which the splits of an operation wait to be joined.
inline int64_t waiting_size(const Attend& op, const Step& step, int64_t threads) {
    if (threads == 1) return 0;
    std::vector<QueryBlock> blocks = query_blocks(op, step);
    if (!spreads(blocks, threads)) return 0;
    int64_t splits = 0;
    for (const QueryBlock& block : blocks) splits += block.last / SPLIT + 1;
    return splits * Seen::size(op);
}

template <class T, class C>
void attend_spread(const Attend& op, const Step& step, Team& team, const std::vector<QueryBlock>& blocks) {
    int64_t stride = whole(op.value_width), count = int64_t(blocks.size());
    std::vector<int64_t> first{0};  // unit of each block's first split
    for (const QueryBlock& block : blocks) first.push_back(first.back() + block.last / SPLIT + 1);
    auto seen_by = [&](int64_t unit) { return Seen(step.waiting + unit * Seen::size(op)); };
    team.each(first[count], [&](int64_t unit) {
        int64_t b = std::upper_bound(first.begin(), first.end(), unit) - first.begin() - 1;
        Seen seen = seen_by(unit);
        split_of<T, C>(op, step, blocks[b], unit - first[b], seen.states, seen.out, stride);
    });
    team.each(count, [&](int64_t b) {
        Seen seen = seen_by(first[b]);
        for (int64_t unit = first[b] + 1; unit < first[b + 1]; unit++) seen.join_all(op, blocks[b], seen_by(unit));
        finish<T>(op, step, blocks[b], seen.states, seen.out, stride);
    });
}

template <class T, class C>
void attend(const Attend& op, const Step& step, Team& team) {
    static thread_local std::vector<float> memory;
    int64_t stride = whole(op.value_width);
    std::vector<QueryBlock> blocks = query_blocks(op, step);
    if (spreads(blocks, team.threads())) return attend_spread<T, C>(op, step, team, blocks);
    team.each(int64_t(blocks.size()), [&](int64_t task) {
        const QueryBlock& block = blocks[task];
        float* own = scratch(memory, 2 * Seen::size(op));
        Seen seen(own), next(own + Seen::size(op));
        split_of<T, C>(op, step, block, 0, seen.states, seen.out, stride);
        for (int64_t split = 1; split <= block.last / SPLIT; split++) {
            split_of<T, C>(op, step, block, split, next.states, next.out, stride);
            seen.join_all(op, block, next);
        }
        finish<T>(op, step, block, seen.states, seen.out, stride);
    });
}

}  // namespace
