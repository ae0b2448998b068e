// The pointwise and gather parts of a training step, fused for CPUs. ops/native/__init__.py compiles
// and binds them; each has a plain PyTorch twin in ops/ that tests hold it to.
//
// Rows are split over OpenMP threads in fixed blocks, so results depend on the number of threads only
// where a reduction crosses rows (weight gradients of norms), and never on timing.

#include "numbers.h"

#include <omp.h>
#include <vector>

namespace {

// With `update`, what is normalised is sum = x + update, which is kept too.
template <class In, class Out>
void rms_norm(const In* x, const Out* update, const float* weight, In* sum, Out* out, float* inverse,
              int64_t rows, int64_t width, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const In* row = x + i * width;
        if (update) {
            const Out* more = update + i * width;
            In* to = sum + i * width;
#pragma omp simd
            for (int64_t j = 0; j < width; j++) store(to + j, load(row[j]) + load(more[j]));
            row = to;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < width; j++) squares += load(row[j]) * load(row[j]);
        float scale = 1.0f / std::sqrt(squares / width + eps);
        inverse[i] = scale;
        Out* to = out + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) store(to + j, load(row[j]) * scale * weight[j]);
    }
}

// dx = s (w g - x s^2 mean(w g x)); dw = sum over rows of g x s. `grad_sum`, the gradient that reaches the sum
// by other ways, is added to dx; `grad_update` receives dx in the other dtype. Both may be null.
template <class In, class Out>
void rms_norm_backward(const Out* grad, const In* grad_sum, const In* x, const float* weight,
                       const float* inverse, In* grad_x, Out* grad_update, float* grad_weight, int64_t rows,
                       int64_t width) {
    int threads = omp_get_max_threads();
    std::vector<float> partial(size_t(threads) * width, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        float* own = partial.data() + size_t(omp_get_thread_num()) * width;
        std::vector<float> dx(width);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) {
            const Out* g = grad + i * width;
            const In* row = x + i * width;
            float s = inverse[i], dot = 0, *d = dx.data();
#pragma omp simd reduction(+ : dot)
            for (int64_t j = 0; j < width; j++) dot += load(g[j]) * weight[j] * load(row[j]);
            float pull = dot * s * s / width;
#pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                float gj = load(g[j]), xj = load(row[j]);
                own[j] += gj * xj * s;
                d[j] = s * (gj * weight[j] - xj * pull);
            }
            if (grad_sum) {
                const In* more = grad_sum + i * width;
#pragma omp simd
                for (int64_t j = 0; j < width; j++) d[j] += load(more[j]);
            }
#pragma omp simd
            for (int64_t j = 0; j < width; j++) store(grad_x + i * width + j, d[j]);
            if (grad_update) {
#pragma omp simd
                for (int64_t j = 0; j < width; j++) store(grad_update + i * width + j, d[j]);
            }
        }
    }
    for (int64_t j = 0; j < width; j++) {
        float sum = 0;
        for (int t = 0; t < threads; t++) sum += partial[size_t(t) * width + j];
        grad_weight[j] = sum;
    }
}

// Rows of gate and up are `stride` apart, so that they may lie side by side; those of the result are not.
template <class T>
void swiglu(const T* gate, const T* up, T* out, int64_t rows, int64_t width, int64_t stride) {
#pragma omp parallel for schedule(static) if (rows * width > 4096)
    for (int64_t i = 0; i < rows; i++) {
        const T *a = gate + i * stride, *b = up + i * stride;
        T* to = out + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) store(to + j, load(a[j]) * sigmoid(load(a[j])) * load(b[j]));
    }
}

template <class T>
void swiglu_backward(const T* grad, const T* gate, const T* up, T* grad_gate, T* grad_up, int64_t rows,
                     int64_t width, int64_t stride) {
#pragma omp parallel for schedule(static) if (rows * width > 4096)
    for (int64_t i = 0; i < rows; i++) {
        const T *g = grad + i * width, *a = gate + i * stride, *b = up + i * stride;
        T *to_gate = grad_gate + i * stride, *to_up = grad_up + i * stride;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            float x = load(a[j]), s = sigmoid(x), d = load(g[j]);
            store(to_gate + j, d * load(b[j]) * s * (1.0f + x * (1.0f - s)));
            store(to_up + j, d * x * s);
        }
    }
}

// out[m] = base[m] + sum over k of weights[m, k] * rows_in[slot[m, k]]; a slot past the end adds nothing, nor
// does a base that is null.
template <class T, class Out>
void combine(const T* rows_in, int64_t num_rows, const int64_t* slot, const float* weights, const T* base, Out* out,
             int64_t tokens, int64_t per_token, int64_t width) {
#pragma omp parallel
    {
        std::vector<float> sum(width);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < tokens; m++) {
            for (int64_t j = 0; j < width; j++) sum[j] = base ? load(base[m * width + j]) : 0.0f;
            for (int64_t k = 0; k < per_token; k++) {
                int64_t at = slot[m * per_token + k];
                if (at >= num_rows) continue;
                float weight = weights ? weights[m * per_token + k] : 1.0f;
                const T* row = rows_in + at * width;
                float* to = sum.data();
#pragma omp simd
                for (int64_t j = 0; j < width; j++) to[j] += weight * load(row[j]);
            }
            Out* to = out + m * width;
            const float* from = sum.data();
#pragma omp simd
            for (int64_t j = 0; j < width; j++) store(to + j, from[j]);
        }
    }
}

// One row of logits: its loss, and its gradient times `scale` in place of the logits.
template <class T>
void cross_entropy(T* logits, const int64_t* targets, float* losses, float* normalizers, float scale,
                   int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        T* row = logits + i * width;
        float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
        for (int64_t j = 0; j < width; j++) top = std::max(top, load(row[j]));
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) sum += fast_exp(load(row[j]) - top);
        float normalizer = top + std::log(sum);
        float chosen = load(row[targets[i]]);
        losses[i] = normalizer - chosen;
        normalizers[i] = normalizer;
        float inverse = scale / sum;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) store(row + j, fast_exp(load(row[j]) - top) * inverse);
        store(row + targets[i], (fast_exp(chosen - top) / sum - 1.0f) * scale);
    }
}

// Rotate neighbouring pairs; `direction` -1 rotates back.
template <class T>
inline void rotate_pairs(const T* from, T* to, const float* cosine, const float* sine, int64_t pairs,
                         float direction) {
    for (int64_t i = 0; i < pairs; i++) {
        float a = load(from[2 * i]), b = load(from[2 * i + 1]);
        float c = cosine[i], s = direction * sine[i];
        store(to + 2 * i, a * c - b * s);
        store(to + 2 * i + 1, b * c + a * s);
    }
}

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
                std::memcpy(static_cast<void*>(target), source, sizeof(T) * nope);
                rotate_pairs(source + nope, target + nope, c, s, rope / 2, backward ? -1.0f : 1.0f);
            }
        }
    }
}

// Rotate number i with number i + half.
template <class T>
inline void rotate_halves(const T* from, T* to, const float* cosine, const float* sine, int64_t half,
                          float direction) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = load(from[i]), b = load(from[half + i]), s = direction * sine[i];
        store(to + i, a * cosine[i] - b * s);
        store(to + half + i, b * cosine[i] + a * s);
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
                std::memcpy(static_cast<void*>(key), source, sizeof(T) * nope);
                std::memcpy(static_cast<void*>(key + nope), shared + (b * tokens + t) * rope, sizeof(T) * rope);
                std::memcpy(static_cast<void*>(values + row * value), source + nope, sizeof(T) * value);
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
                    std::memcpy(static_cast<void*>(target), key, sizeof(T) * nope);
                    std::memcpy(static_cast<void*>(target + nope), grad_values + row * value, sizeof(T) * value);
                    for (int64_t j = 0; j < rope; j++) sum[j] += load(key[nope + j]);
                }
                for (int64_t j = 0; j < rope; j++) store(grad_shared + (b * tokens + t) * rope + j, sum[j]);
            }
        }
    }
}

}  // namespace

// One symbol per dtype: _f for float32, _b for bfloat16; two letters where input and output differ.
extern "C" {
#define NORM(suffix, In, Out)                                                                            \
    void rms_norm_##suffix(const In* x, const Out* update, const float* w, In* sum, Out* out,            \
                           float* inverse, int64_t rows, int64_t width, float eps) {                     \
        rms_norm(x, update, w, sum, out, inverse, rows, width, eps);                                     \
    }                                                                                                    \
    void rms_norm_backward_##suffix(const Out* g, const In* gsum, const In* x, const float* w,           \
                                    const float* inverse, In* gx, Out* gupdate, float* gw, int64_t rows, \
                                    int64_t width) {                                                     \
        rms_norm_backward(g, gsum, x, w, inverse, gx, gupdate, gw, rows, width);                         \
    }
NORM(ff, float, float)
NORM(fb, float, bf16)
NORM(bb, bf16, bf16)

#define PLAIN(suffix, T)                                                                                  \
    void swiglu_##suffix(const T* gate, const T* up, T* out, int64_t rows, int64_t width,                \
                         int64_t stride) {                                                               \
        swiglu(gate, up, out, rows, width, stride);                                                      \
    }                                                                                                    \
    void swiglu_backward_##suffix(const T* g, const T* gate, const T* up, T* gg, T* gu, int64_t rows,    \
                                  int64_t width, int64_t stride) {                                       \
        swiglu_backward(g, gate, up, gg, gu, rows, width, stride);                                       \
    }                                                                                                    \
    void combine_##suffix(const T* in, int64_t num_rows, const int64_t* slot, const float* weights,      \
                          const T* base, T* out, int64_t tokens, int64_t per_token, int64_t width) {     \
        combine(in, num_rows, slot, weights, base, out, tokens, per_token, width);                       \
    }                                                                                                    \
    void cross_entropy_##suffix(T* logits, const int64_t* targets, float* losses, float* normalizers,     \
                                float scale, int64_t rows, int64_t width) {                               \
        cross_entropy(logits, targets, losses, normalizers, scale, rows, width);                          \
    }                                                                                                     \
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
PLAIN(f, float)
PLAIN(b, bf16)
}
