// From projections to the heads of attention and back, rotations included. heads.py calls them.

#include "rotary.h"

#include <vector>

namespace {

// Queries [B, T, N, P + R] to heads-first [B, N, T, P + R] with the last R rotated, or back.
template <class T>
void latent_queries(const T* from, T* to, const float* cosine, const float* sine, int64_t batch,
                    int64_t tokens, int64_t heads, int64_t nope, int64_t rope, int backward) {
    int64_t width = nope + rope;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t t = 0; t < tokens; t++) {
            const float *c = cosine + (b * tokens + t) * rope / 2, *s = sine + (b * tokens + t) * rope / 2;
            for (int64_t n = 0; n < heads; n++) {
                int64_t token_first = ((b * tokens + t) * heads + n) * width;
                int64_t head_first = ((b * heads + n) * tokens + t) * width;
                const T* source = from + (backward ? head_first : token_first);
                T* target = to + (backward ? token_first : head_first);
                copy(source, nope, target);
                rotate_pairs(source + nope, target + nope, c, s, rope / 2, backward ? -1.0f : 1.0f);
            }
        }
    }
}

// Rotate each head of each token [tokens, heads, 2 * half]; rows of `from` are `stride` apart.
template <class T>
void rotate(const T* from, T* to, const float* cosine, const float* sine, int64_t tokens, int64_t heads,
            int64_t half, int64_t stride, int halves, int backward) {
    float direction = backward ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) if (tokens * heads * half > 8192)
    for (int64_t t = 0; t < tokens; t++) {
        const float *c = cosine + t * half, *s = sine + t * half;
        for (int64_t n = 0; n < heads; n++) {
            const T* head = from + t * stride + n * 2 * half;
            T* target = to + (t * heads + n) * 2 * half;
            if (halves)
                rotate_halves(head, target, c, s, half, direction);
            else
                rotate_pairs(head, target, c, s, half, direction);
        }
    }
}

// Expanded [B, T, N, P + V] and the shared rotated key [B, T, R] to heads-first keys [B, N, T, P + R]
// and values [B, N, T, V].
template <class T>
void latent_keys(const T* expanded, const T* shared, T* keys, T* values, int64_t batch, int64_t tokens,
                 int64_t heads, int64_t nope, int64_t rope, int64_t value) {
    int64_t width = nope + rope;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t t = 0; t < tokens; t++) {
            for (int64_t n = 0; n < heads; n++) {
                const T* source = expanded + ((b * tokens + t) * heads + n) * (nope + value);
                int64_t row = (b * heads + n) * tokens + t;
                T* key = keys + row * width;
                copy(source, nope, key);
                copy(shared + (b * tokens + t) * rope, rope, key + nope);
                copy(source + nope, value, values + row * value);
            }
        }
    }
}

template <class T>
void latent_keys_backward(const T* grad_keys, const T* grad_values, T* grad_expanded, T* grad_shared,
                          int64_t batch, int64_t tokens, int64_t heads, int64_t nope, int64_t rope,
                          int64_t value) {
    int64_t width = nope + rope;
#pragma omp parallel
    {
        std::vector<float> sum(rope);
#pragma omp for schedule(static) collapse(2)
        for (int64_t b = 0; b < batch; b++) {
            for (int64_t t = 0; t < tokens; t++) {
                std::fill(sum.begin(), sum.end(), 0.0f);
                for (int64_t n = 0; n < heads; n++) {
                    T* target = grad_expanded + ((b * tokens + t) * heads + n) * (nope + value);
                    int64_t row = (b * heads + n) * tokens + t;
                    const T* key = grad_keys + row * width;
                    copy(key, nope, target);
                    copy(grad_values + row * value, value, target + nope);
                    for (int64_t j = 0; j < rope; j++) sum[j] += load(key[nope + j]);
                }
                for (int64_t j = 0; j < rope; j++) store(grad_shared + (b * tokens + t) * rope + j, sum[j]);
            }
        }
    }
}

}  // namespace

extern "C" {
#define HEADS(suffix, T)                                                                                  \
    void latent_queries_##suffix(const T* from, T* to, const float* c, const float* s, int64_t batch,     \
                                 int64_t tokens, int64_t heads, int64_t nope, int64_t rope,               \
                                 int backward) {                                                          \
        latent_queries(from, to, c, s, batch, tokens, heads, nope, rope, backward);                       \
    }                                                                                                     \
    void rotate_##suffix(const T* from, T* to, const float* c, const float* s, int64_t tokens,           \
                         int64_t heads, int64_t half, int64_t stride, int halves, int backward) {        \
        rotate(from, to, c, s, tokens, heads, half, stride, halves, backward);                           \
    }                                                                                                    \
    void latent_keys_##suffix(const T* expanded, const T* shared, T* keys, T* values, int64_t batch,      \
                              int64_t tokens, int64_t heads, int64_t nope, int64_t rope,                  \
                              int64_t value) {                                                            \
        latent_keys(expanded, shared, keys, values, batch, tokens, heads, nope, rope, value);             \
    }                                                                                                     \
    void latent_keys_backward_##suffix(const T* gk, const T* gv, T* ge, T* gs, int64_t batch,             \
                                       int64_t tokens, int64_t heads, int64_t nope, int64_t rope,         \
                                       int64_t value) {                                                   \
        latent_keys_backward(gk, gv, ge, gs, batch, tokens, heads, nope, rope, value);                    \
    }
HEADS(f, float)
HEADS(b, bf16)
}
