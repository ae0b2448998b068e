// Softmax attention, one head at a time: scores are computed for a block of queries and the keys they can
// see, in the backward pass anew, and never leave the cache. ops/attention.py calls it.
//
// With p = exp(scale q k - lse), delta = sum of grad * out over a row, and dp = grad v:
// grad_v = p^T grad, ds = scale p (dp - delta), grad_q = ds k, grad_k = ds^T q.
// Source: FlashAttention-2 (arXiv 2307.08691), section 3.1.2.
//
// Shapes: heads of all sequences in one row, Q queries, S keys, H width of queries and keys, V of values;
// Sp, Hp and Vp are padded to multiples of UNIT.

#include "gemm.h"

#include <omp.h>

namespace {

constexpr int64_t QUERIES = 32;  // of a block
constexpr int64_t VECTOR = 16;   // numbers at once: rows are filled up, which saves the loop's scalar end

// Of a product's sum, the terms that are taken: vectors of float32 need no padding.
template <class T>
int64_t terms(int64_t count) {
    return sizeof(T) == sizeof(float) ? count : padded(count);
}

// exp(s - lse) below; here with the largest score in place of lse, which is found on the way.
template <class T>
void attention_forward(const T* query, const T* key, const T* value, const uint8_t* mask, T* out, float* lse,
                       int64_t heads_per_mask, int64_t heads, int64_t queries, int64_t keys, int64_t width,
                       int64_t value_width, int causal, float scale) {
    int64_t Hp = padded(width), Vp = padded(value_width), Sp = padded(keys);
#pragma omp parallel
    {
        static thread_local std::vector<T> memory;
        static thread_local std::vector<float> float_memory;
        T* across_keys = scratch(memory, Sp * (Hp + Vp) + QUERIES * (Hp + Sp));
        T *value_rows = across_keys + Sp * Hp, *query_rows = value_rows + Sp * Vp;
        T* probs = query_rows + QUERIES * Hp;
        float* scores = scratch(float_memory, QUERIES * (Sp + Vp));
        float* sums = scores + QUERIES * Sp;
#pragma omp for schedule(dynamic)
        for (int64_t h = 0; h < heads; h++) {
            pack(key + h * keys * width, 1, width, width, keys, across_keys);
            pack(value + h * keys * value_width, value_width, 1, keys, value_width, value_rows);
            for (int64_t start = 0; start < queries; start += QUERIES) {
                int64_t count = std::min(QUERIES, queries - start), rows = padded(count);
                int64_t at = h * queries + start;
                int64_t seen = causal ? std::min(Sp, padded(start + count)) : Sp;
                float inverse[QUERIES];
                copy_rows(query + at * width, width, count, width, query_rows);
                multiply(rows, seen, terms<T>(width), query_rows, Hp, across_keys, Hp, scores, seen);
                for (int64_t i = 0; i < count; i++) {
                    int64_t visible = causal ? start + i + 1 : keys;
                    int64_t whole = (visible + VECTOR - 1) / VECTOR * VECTOR;
                    float *s = scores + i * seen, top = -INFINITY, sum = 0;
                    T* p = probs + i * seen;
                    if (mask) {
                        const uint8_t* may = mask + ((h / heads_per_mask) * queries + start + i) * keys;
#pragma omp simd
                        for (int64_t j = 0; j < visible; j++) s[j] = may[j] ? s[j] : -INFINITY;
                    }
                    for (int64_t j = visible; j < whole; j++) s[j] = -INFINITY;
                    // load: given a reference, std::max is left to scalars.
#pragma omp simd reduction(max : top)
                    for (int64_t j = 0; j < whole; j++) top = std::max(top, load(s[j]));
#pragma omp simd reduction(+ : sum)
                    for (int64_t j = 0; j < whole; j++) {
                        float prob = s[j] == -INFINITY ? 0.0f : fast_exp(scale * (s[j] - top));
                        store(p + j, prob);
                        sum += prob;
                    }
                    clear(p + whole, seen - whole);
                    inverse[i] = sum > 0 ? 1.0f / sum : 0.0f;  // a row that sees nothing is 0
                    lse[at + i] = scale * top + std::log(sum);
                }
                clear(probs + count * seen, (rows - count) * seen);
                multiply(rows, Vp, seen, probs, seen, value_rows, Sp, sums, Vp);
                for (int64_t i = 0; i < count; i++) {
                    float* from = sums + i * Vp;
#pragma omp simd
                    for (int64_t j = 0; j < value_width; j++) from[j] *= inverse[i];
                    store_row(from, out + (at + i) * value_width, value_width);
                }
            }
        }
    }
}

template <class T>
void attention_backward(const T* query, const T* key, const T* value, const T* out, const T* grad,
                        const float* lse, const uint8_t* mask, T* grad_query, T* grad_key, T* grad_value,
                        int64_t heads_per_mask, int64_t heads, int64_t queries, int64_t keys, int64_t width,
                        int64_t value_width, int causal, float scale) {
    int64_t Hp = padded(width), Vp = padded(value_width), Sp = padded(keys);
#pragma omp parallel
    {
        static thread_local std::vector<T> memory;
        static thread_local std::vector<float> float_memory;
        T* across_keys = scratch(memory, Sp * (2 * Hp + Vp) +
                                             QUERIES * (Hp + Vp + std::max(Hp, Vp) + 3 * Sp));
        T *across_values = across_keys + Sp * Hp, *key_rows = across_values + Sp * Vp;
        T *query_rows = key_rows + Sp * Hp, *grad_rows = query_rows + QUERIES * Hp;
        T *packed = grad_rows + QUERIES * Vp, *probs = packed + QUERIES * std::max(Hp, Vp);
        T *deltas = probs + QUERIES * Sp, *turned = deltas + QUERIES * Sp;
        float* key_sums = scratch(float_memory, Sp * (Hp + Vp) + QUERIES * (2 * Sp + Hp));
        float *value_sums = key_sums + Sp * Hp, *scores = value_sums + Sp * Vp;
        float *grad_probs = scores + QUERIES * Sp, *query_sums = grad_probs + QUERIES * Sp;
#pragma omp for schedule(dynamic)
        for (int64_t h = 0; h < heads; h++) {
            const T *head_key = key + h * keys * width, *head_value = value + h * keys * value_width;
            pack(head_key, 1, width, width, keys, across_keys);
            pack(head_value, 1, value_width, value_width, keys, across_values);
            pack(head_key, width, 1, keys, width, key_rows);
            std::fill(key_sums, key_sums + Sp * (Hp + Vp), 0.0f);
            for (int64_t start = 0; start < queries; start += QUERIES) {
                int64_t count = std::min(QUERIES, queries - start), rows = padded(count);
                int64_t at = h * queries + start;
                int64_t seen = causal ? std::min(Sp, padded(start + count)) : Sp;
                copy_rows(query + at * width, width, count, width, query_rows);
                copy_rows(grad + at * value_width, value_width, count, value_width, grad_rows);
                multiply(rows, seen, terms<T>(width), query_rows, Hp, across_keys, Hp, scores, seen);
                multiply(rows, seen, terms<T>(value_width), grad_rows, Vp, across_values, Vp, grad_probs,
                         seen);
                clear(probs, rows * seen);
                clear(deltas, rows * seen);
                for (int64_t i = 0; i < count; i++) {
                    const T *o = out + (at + i) * value_width, *g = grad + (at + i) * value_width;
                    float delta = 0, own_lse = lse[at + i];
#pragma omp simd reduction(+ : delta)
                    for (int64_t j = 0; j < value_width; j++) delta += load(o[j]) * load(g[j]);
                    int64_t visible = causal ? start + i + 1 : keys;
                    const float *s = scores + i * seen, *d = grad_probs + i * seen;
                    T *p = probs + i * seen, *ds = deltas + i * seen;
                    if (mask) {
                        const uint8_t* may = mask + ((h / heads_per_mask) * queries + start + i) * keys;
#pragma omp simd
                        for (int64_t j = 0; j < visible; j++) {
                            float prob = may[j] ? fast_exp(scale * s[j] - own_lse) : 0.0f;
                            store(p + j, prob);
                            store(ds + j, scale * prob * (d[j] - delta));
                        }
                    } else {
#pragma omp simd
                        for (int64_t j = 0; j < visible; j++) {
                            float prob = fast_exp(scale * s[j] - own_lse);
                            store(p + j, prob);
                            store(ds + j, scale * prob * (d[j] - delta));
                        }
                    }
                }
                multiply(rows, Hp, seen, deltas, seen, key_rows, Sp, query_sums, Hp);
                for (int64_t i = 0; i < count; i++)
                    store_row(query_sums + i * Hp, grad_query + (at + i) * width, width);
                pack(grad_rows, Vp, 1, rows, Vp, packed);
                multiply_transposed(seen, Vp, rows, probs, seen, turned, packed, rows, value_sums,
                                    Vp, true);
                pack(query_rows, Hp, 1, rows, Hp, packed);
                multiply_transposed(seen, Hp, rows, deltas, seen, turned, packed, rows, key_sums, Hp, true);
            }
            for (int64_t i = 0; i < keys; i++) {
                store_row(key_sums + i * Hp, grad_key + (h * keys + i) * width, width);
                store_row(value_sums + i * Vp, grad_value + (h * keys + i) * value_width, value_width);
            }
        }
    }
}

}  // namespace

extern "C" {
#define ATTENTION(suffix, T)                                                                              \
    void attention_forward_##suffix(const T* q, const T* k, const T* v, const uint8_t* mask, T* out,      \
                                    float* lse, int64_t heads_per_mask, int64_t heads, int64_t queries,   \
                                    int64_t keys, int64_t width, int64_t value_width, int causal,         \
                                    float scale) {                                                        \
        attention_forward(q, k, v, mask, out, lse, heads_per_mask, heads, queries, keys, width,           \
                          value_width, causal, scale);                                                    \
    }                                                                                                     \
    void attention_backward_##suffix(const T* q, const T* k, const T* v, const T* out, const T* grad,     \
                                     const float* lse, const uint8_t* mask, T* gq, T* gk, T* gv,          \
                                     int64_t heads_per_mask, int64_t heads, int64_t queries,              \
                                     int64_t keys, int64_t width, int64_t value_width, int causal,        \
                                     float scale) {                                                       \
        attention_backward(q, k, v, out, grad, lse, mask, gq, gk, gv, heads_per_mask, heads, queries,     \
                           keys, width, value_width, causal, scale);                                      \
    }
ATTENTION(f, float)
ATTENTION(b, bf16)
}
