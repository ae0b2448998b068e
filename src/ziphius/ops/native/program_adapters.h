// Adapters of low rank (LoRA, arXiv 2106.09685) that some rows of a step have: what they add to projections, in products
// of which each row is computed as if it were alone. Rows without one are left as they are.

#pragma once

#include "program_operands.h"

namespace {

constexpr int64_t ADAPTER_ROWS = 32;  // of a block

// Note which adapter each token has, and gather the tokens of each one in blocks; adapters are pairs of an arena and a
// table of parts. Returns whether the adapters of the sequences are among them.
inline bool gather_adapters(Step& step, const int64_t* of_sequences, const int64_t* adapters, int64_t num_adapters) {
    const Batch& batch = step.batch;
    for (int64_t z = 0; z < batch.sequences; z++)
        if (of_sequences[z] < NONE || of_sequences[z] >= num_adapters) return false;
    step.adapters.assign(batch.tokens, NONE);
    for (int64_t z = 0; z < batch.sequences; z++)
        std::fill(step.adapters.begin() + batch.starts[z], step.adapters.begin() + batch.starts[z + 1], of_sequences[z]);
    step.adapted.reserve(batch.tokens);  // blocks point into it
    for (int64_t x = 0; x < num_adapters; x++) {
        int64_t start = int64_t(step.adapted.size());
        for (int64_t m = 0; m < batch.tokens; m++)
            if (step.adapters[m] == x) step.adapted.push_back(m);
        for (int64_t end = int64_t(step.adapted.size()); start < end; start += ADAPTER_ROWS)
            step.adapter_blocks.push_back({reinterpret_cast<const uint8_t*>(adapters[2 * x]),
                                           reinterpret_cast<const AdapterPart*>(adapters[2 * x + 1]),
                                           step.adapted.data() + start, std::min(ADAPTER_ROWS, end - start)});
    }
    return true;
}

ALONE void scaled_row(const float* row, float scaling, int64_t width, float* to, bool into_sum) {
    if (into_sum) {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) to[j] += scaling * row[j];
    } else {
#pragma omp simd
        for (int64_t j = 0; j < width; j++) to[j] = scaling * row[j];
    }
}

template <class T>
void low_rank(const LowRank& op, const Step& step, Team& team) {
    static thread_local std::vector<Factor<T>> memory, inner_memory;
    static thread_local std::vector<float> inner_sums, outer_sums;
    if (step.adapter_blocks.empty()) return;
    team.each(int64_t(step.adapter_blocks.size()) * op.heads, [&](int64_t task) {
        const AdapterBlock& block = step.adapter_blocks[task / op.heads];
        int64_t head = task % op.heads, stride = step.stride(op.to);
        const AdapterPart& part = block.parts[op.slot];
        float* to = step.at(op.to) + head * op.to_step;
        bool adds = op.into == ADD;
        int64_t depth = padded(op.inputs), rank = padded(part.rank), columns = padded(op.outputs);
        if (!part.rank) {
            for (int64_t i = 0; !adds && i < block.count; i++) clear(to + block.tokens[i] * stride, columns);
            return;
        }
        Rows rows{step.at(op.from) + head * op.from_step, step.stride(op.from), block.tokens};
        Operand<T> operand = prepare<T>(step, rows, 0, block.count, op.inputs, op.norm, memory);
        const T* down = block.weight<T>(part.down) + head * op.down_each * depth * rank;
        float* inner = scratch(inner_sums, padded(block.count) * rank);
        product(step, block.count, rank, op.inputs, operand, down, inner, rank);
        operand = prepare<T>(step, Rows{inner, rank, nullptr}, 0, block.count, part.rank, Norm{NONE, 0}, inner_memory);
        const T* up = block.weight<T>(part.up) + head * op.up_each * rank * columns;
        float* outer = scratch(outer_sums, padded(block.count) * columns);
        product(step, block.count, columns, part.rank, operand, up, outer, columns);
        for (int64_t i = 0; i < block.count; i++)
            scaled_row(outer + i * columns, float(part.scaling), adds ? op.outputs : columns,
                       to + block.tokens[i] * stride, adds);
    });
}

}  // namespace
