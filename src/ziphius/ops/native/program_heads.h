// From projections to queries and to the rows that the cache keeps: norms of heads, rotations, and of latent
// attention the key projection.

#pragma once

#include "program_operands.h"
#include "rotary.h"

namespace {

constexpr int64_t HEIGHT = 32;  // tokens of a task

// [latent | rotated key], as models/attention/latent.py caches it.
template <class C>
ALONE void latent_row(const float* from, const float* weight, float eps, const float* angles, int64_t latent,
                      int64_t rope, C* to) {
    float rotated[256];
    norm_row(from, weight, eps, latent, to);
    for (int64_t first = 0; first < rope; first += 256) {
        int64_t count = std::min<int64_t>(256, rope - first);
        rotate_pairs(from + latent + first, rotated, angles + first / 2, angles + rope / 2 + first / 2, count / 2, 1.0f);
        store_row(rotated, to + latent + first, count);
    }
}

// The same row, rounded to 8 bits.
template <class C>
void scaled_latent_row(const float* from, const float* weight, float eps, const float* angles, int64_t latent,
                       int64_t rope, const RowShape& shape, C* to) {
    static thread_local std::vector<float> memory;
    float* row = scratch(memory, latent + rope);
    latent_row(from, weight, eps, angles, latent, rope, row);
    pack_row(row, shape, to);
}

ALONE void rotated_pairs(const float* from, const float* angles, int64_t rope, float* to) {
    rotate_pairs(from, to, angles, angles + rope / 2, rope / 2, 1.0f);
}

// The tasks of the first kind write the cache, those of the second are a block of tokens of one head.
template <class T, class C>
void latent_heads(const LatentHeads& op, const Step& step, Team& team) {
    static thread_local std::vector<Factor<T>> memory;
    const Batch& batch = step.batch;
    const RowShape& shape = step.shape(op.layer, 0);
    int64_t blocks = (batch.tokens + HEIGHT - 1) / HEIGHT;
    int64_t head_width = op.nope + op.rope, depth = padded(op.nope), columns = padded(op.latent);
    int64_t query_width = padded(op.latent + op.rope);
    C* part = step.part<C>(op.layer, 0);
    team.each(blocks * (op.heads + 1), [&](int64_t task) {
        int64_t first = task / (op.heads + 1) * HEIGHT, head = task % (op.heads + 1) - 1;
        int64_t count = std::min(HEIGHT, batch.tokens - first);
        if (head < 0) {
            for (int64_t m = first; m < first + count; m++) {
                const float *row = step.at(op.row, m), *norm = step.weight<float>(op.norm.weight);
                const float* angles = step.at(op.angles, m);
                C* slot = part + batch.slots[m] * shape.stride;
                if constexpr (HAS_SCALES<C>)
                    scaled_latent_row(row, norm, float(op.norm.eps), angles, op.latent, op.rope, shape, slot);
                else
                    latent_row(row, norm, float(op.norm.eps), angles, op.latent, op.rope, slot);
            }
            return;
        }
        const float* from = step.at(op.queries, first) + head * head_width;
        float* to = step.at(op.to, first) + head * query_width;
        int64_t stride = step.stride(op.queries), to_stride = step.stride(op.to);
        Operand<T> operand = prepare<T>(step, Rows{from, stride, nullptr}, 0, count, op.nope, Norm{NONE, 0}, memory);
        const T* weight = step.weight<T>(op.key_weight) + head * depth * columns;
        static thread_local std::vector<float> sums_memory;
        float* sums = scratch(sums_memory, padded(count) * columns);
        product(step, count, columns, op.nope, operand, weight, sums, columns);
        for (int64_t i = 0; i < count; i++) {
            copy(sums + i * columns, op.latent, to + i * to_stride);
            float* tail = to + i * to_stride + op.latent;
            rotated_pairs(from + i * stride + op.nope, step.at(op.angles, first + i), op.rope, tail);
            clear(tail + op.rope, query_width - op.latent - op.rope);
        }
    });
}

// One head, normalised if the model does, and rotated.
template <class C>
ALONE void grouped_head(const float* from, const float* weight, float eps, const float* angles, int64_t width,
                        float* normed, float* rotated, C* to) {
    if (weight) {
        norm_row(from, weight, eps, width, normed);
        from = normed;
    }
    rotate_halves(from, rotated, angles, angles + width / 2, width / 2, 1.0f);
    store_row(rotated, to, width);
}

template <class C>
void grouped_heads(const GroupedHeads& op, const Step& step, Team& team) {
    static thread_local std::vector<float> memory;
    const Batch& batch = step.batch;
    int64_t width = op.width, padded_width = padded(width), row_width = op.key_heads * width;
    float* normed = scratch(memory, 2 * padded_width + row_width);
    float *rotated = normed + padded_width, *joined = rotated + padded_width;
    const float *query_norm = step.weight<float>(op.query_norm.weight), *key_norm = step.weight<float>(op.key_norm.weight);
    C *keys = step.part<C>(op.layer, 0), *values = step.part<C>(op.layer, 1);
    const RowShape &key_shape = step.shape(op.layer, 0), &value_shape = step.shape(op.layer, 1);
    constexpr int64_t FEW = 4;
    team.each((batch.tokens + FEW - 1) / FEW, [&](int64_t task) {
        for (int64_t m = task * FEW; m < std::min(batch.tokens, (task + 1) * FEW); m++) {
            const float* angles = step.at(op.angles, m);
            for (int64_t n = 0; n < op.heads; n++) {
                float* to = step.at(op.to, m) + n * padded_width;
                grouped_head(step.at(op.queries, m) + n * width, query_norm, float(op.query_norm.eps), angles, width,
                             normed, rotated, to);
                clear(to + width, padded_width - width);
            }
            C *key = keys + batch.slots[m] * key_shape.stride, *value = values + batch.slots[m] * value_shape.stride;
            auto write_keys = [&](auto* to) {
                for (int64_t g = 0; g < op.key_heads; g++)
                    grouped_head(step.at(op.keys, m) + g * width, key_norm, float(op.key_norm.eps), angles, width,
                                 normed, rotated, to + g * width);
            };
            if constexpr (HAS_SCALES<C>) {
                write_keys(joined);
                pack_row(joined, key_shape, key);
                pack_row(step.at(op.values, m), value_shape, value);
            } else {
                write_keys(key);
                store_row(step.at(op.values, m), value, row_width);
            }
        }
    });
}

}  // namespace
