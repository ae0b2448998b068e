// The pointwise and gather parts of a training step, fused for CPUs; pointwise.py calls them. Each has a
// plain PyTorch twin in ops/ that tests hold it to.
//
// Rows are split over OpenMP threads in fixed blocks, so results depend on the number of threads only
// where a reduction crosses rows (weight gradients of norms), and never on timing.

#include "indices.h"
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
template <class T>
int64_t combine(const T* rows_in, int64_t num_rows, const int64_t* slot, const float* weights, const T* base, T* out,
                int64_t tokens, int64_t per_token, int64_t width) {
    if (!all_below(slot, tokens * per_token, INT64_MAX)) return OUT_OF_RANGE;
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
            T* to = out + m * width;
            const float* from = sum.data();
#pragma omp simd
            for (int64_t j = 0; j < width; j++) store(to + j, from[j]);
        }
    }
    return FINE;
}

// One row of logits: its loss, and its gradient in place of the logits.
template <class T>
int64_t cross_entropy(T* logits, const int64_t* targets, float* losses, float* normalizers, int64_t rows,
                      int64_t width) {
    if (!all_below(targets, rows, width)) return OUT_OF_RANGE;
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
        float inverse = 1.0f / sum;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) store(row + j, fast_exp(load(row[j]) - top) * inverse);
        store(row + targets[i], fast_exp(chosen - top) / sum - 1.0f);
    }
    return FINE;
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
    int64_t combine_##suffix(const T* in, int64_t num_rows, const int64_t* slot, const float* weights,    \
                             const T* base, T* out, int64_t tokens, int64_t per_token, int64_t width) {   \
        return combine(in, num_rows, slot, weights, base, out, tokens, per_token, width);                 \
    }                                                                                                     \
    int64_t cross_entropy_##suffix(T* logits, const int64_t* targets, float* losses, float* normalizers,  \
                                   int64_t rows, int64_t width) {                                         \
        return cross_entropy(logits, targets, losses, normalizers, rows, width);                          \
    }
PLAIN(f, float)
PLAIN(b, bf16)
}
