// Products of float rows with INT8 weights, on INT8 numbers: rows are quantized as they come, the
// products are summed in int32, and each sum leaves the accumulator as a float. ops/int8.py is the
// plain PyTorch twin, whose integers are the same.
//
// Two forms, equal bit for bit: AMX tiles where processor and kernel offer them, plain loops that
// compilers turn into VNNI or widening multiplications elsewhere. Weights stay as checkpoints store
// them, [N, K] row by row: a tile holds 16 of those rows, so it is the activations, few and made
// here, that are laid out for the tile product, and results leave a tile transposed.

#include "indices.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AMX_INT8__) && defined(__AVX512F__) && defined(__linux__)
#define ZIPHIUS_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t ROWS = 16;                   // of a tile
constexpr int64_t DEPTH = 64;                  // int8 numbers of a tile's row
constexpr int64_t TILE_BYTES = ROWS * DEPTH;
constexpr int64_t STRIP = 2 * ROWS;            // weight rows of one task
constexpr int64_t WORTH_THREADS = 1 << 19;     // multiplications; fewer end before a thread wakes
constexpr float LARGEST = 127.0f;
constexpr float SMALLEST_AMAX = 1e-30f;        // 127 / it is finite; a row of zeros stays zeros

// Rows of one group, all multiplied by the same weights.
struct Segment {
    int64_t first, end;   // rows of x
    int64_t first_tile;   // of its packed rows
    const int8_t* weight; // [N, K]
    const float* scale;   // [N]
};

// Round a row to int8 by its own largest magnitude; return what a step is worth.
template <class Int>
inline float quantize_row(const float* x, Int* q, int64_t width) {
    // The largest magnitude by its bits: they grow with the number, and NaN is above infinity, so a
    // broken row gets a broken scale and its results are broken too, as they would be in float.
    int32_t largest = 0;
    for (int64_t k = 0; k < width; k++) {
        int32_t bits;
        std::memcpy(&bits, x + k, 4);
        largest = std::max(largest, bits & 0x7fffffff);
    }
    float amax;
    std::memcpy(&amax, &largest, 4);
    if (amax < SMALLEST_AMAX) amax = SMALLEST_AMAX;
    float inverse = LARGEST / amax;
    for (int64_t k = 0; k < width; k++) q[k] = Int(int32_t(std::nearbyint(x[k] * inverse)));
    return amax / LARGEST;
}

// Lay a quantized row out as one of the 16 columns of its tiles, four numbers side by side.
inline void pack_row(const int8_t* q, int64_t blocks, int64_t column, int8_t* tiles) {
    for (int64_t four = 0; four < blocks * DEPTH / 4; four++)
        std::memcpy(tiles + four * DEPTH + 4 * column, q + 4 * four, 4);
}

// Rows come as int16: every processor multiplies and adds pairs of those in one instruction.
void plain_strip(const Segment& s, int64_t n0, int64_t n1, const int16_t* q, const float* steps,
                 const float* bias, float* out, int64_t N, int64_t K, int16_t* wide) {
    for (int64_t n = n0; n < n1; n++) {
        const int8_t* weight = s.weight + n * K;
        for (int64_t k = 0; k < K; k++) wide[k] = weight[k];
        for (int64_t row = s.first; row < s.end; row++) {
            const int16_t* a = q + row * K;
            int32_t sum = 0;
            for (int64_t k = 0; k < K; k++) sum += int32_t(a[k]) * int32_t(wide[k]);
            float value = float(sum) * (steps[row] * s.scale[n]);
            out[row * N + n] = bias ? value + bias[n] : value;
        }
    }
}

#ifdef ZIPHIUS_TILES

bool has_tiles() {
    // Linux hands the tile registers out on demand; asking again changes nothing.
    static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    return granted;
}

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    TileConfig() {
        for (int tile = 0; tile < 8; tile++) row_bytes[tile] = DEPTH, rows[tile] = ROWS;
    }
};

// Sets the tiles up for a thread and puts back what was there: other libraries share them.
class Tiles {
  public:
    Tiles() {
        _tile_storeconfig(before_);
        // Static, because GCC sees the instruction read 8 bytes and would drop stores of the rest.
        static const TileConfig ours;
        _tile_loadconfig(&ours);
    }
    ~Tiles() { _tile_loadconfig(before_); }

  private:
    alignas(64) uint8_t before_[64];
};

// Where the tiles of 16 weight rows are read: from the weights, or from copies where they end.
class WeightRows {
  public:
    void set(const int8_t* weight, int64_t n0, int64_t N, int64_t K) {
        int64_t blocks = (K + DEPTH - 1) / DEPTH, whole = K / DEPTH, rows = std::min(ROWS, N - n0);
        weight += n0 * K;
        base_ = weight, stride_ = K, step_ = DEPTH, direct_ = whole;
        if (rows == ROWS && whole == blocks) return;
        if (rows < ROWS) direct_ = 0;
        copy_.assign((blocks - direct_) * TILE_BYTES, 0);
        for (int64_t block = direct_; block < blocks; block++)
            for (int64_t row = 0; row < rows; row++)
                // Up to the end of the row: what follows the last one is not ours to read.
                std::memcpy(copy_.data() + (block - direct_) * TILE_BYTES + row * DEPTH,
                            weight + row * K + block * DEPTH, std::min(DEPTH, K - block * DEPTH));
    }
    const int8_t* at(int64_t block) const {
        return block < direct_ ? base_ + block * step_ : copy_.data() + (block - direct_) * TILE_BYTES;
    }
    int64_t stride(int64_t block) const { return block < direct_ ? stride_ : DEPTH; }

  private:
    const int8_t* base_;
    int64_t stride_, step_, direct_;
    std::vector<int8_t> copy_;
};

// sums[2 * i + j] = 16 weight rows i times 16 packed rows j.
template <bool TWO_STRIPS, bool TWO_TILES>
void tile_products(const WeightRows* strips, const int8_t* packed, int64_t blocks, int32_t* sums) {
    _tile_zero(0);
    if (TWO_TILES) _tile_zero(1);
    if (TWO_STRIPS) _tile_zero(2);
    if (TWO_STRIPS && TWO_TILES) _tile_zero(3);
    for (int64_t block = 0; block < blocks; block++) {
        _tile_loadd(4, strips[0].at(block), strips[0].stride(block));
        _tile_loadd(6, packed + block * TILE_BYTES, DEPTH);
        _tile_dpbssd(0, 4, 6);
        if (TWO_TILES) {
            _tile_loadd(7, packed + (blocks + block) * TILE_BYTES, DEPTH);
            _tile_dpbssd(1, 4, 7);
        }
        if (TWO_STRIPS) {
            _tile_loadd(5, strips[1].at(block), strips[1].stride(block));
            _tile_dpbssd(2, 5, 6);
        }
        if (TWO_STRIPS && TWO_TILES) _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums, DEPTH);
    if (TWO_TILES) _tile_stored(1, sums + 256, DEPTH);
    if (TWO_STRIPS) _tile_stored(2, sums + 512, DEPTH);
    if (TWO_STRIPS && TWO_TILES) _tile_stored(3, sums + 768, DEPTH);
}

// Exchange rows and columns of 16 x 16 numbers: pairs, fours, eights, halves.
inline void transpose(const int32_t* sums, __m512i* t) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(sums + 16 * i);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    // r[4 g + c] holds, of rows 4g .. 4g + 3, the columns c, c + 4, c + 8, c + 12.
    for (int c = 0; c < 4; c++) {
        __m512i low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
        __m512i high = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        t[c] = _mm512_shuffle_i32x4(low, high, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(low, high, 0xdd);
        low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        high = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(low, high, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(low, high, 0xdd);
    }
}

// Write 16 x 16 sums, [weight row, row], as floats to [row, weight row].
inline void leave(const int32_t* sums, int64_t rows, int64_t columns, const float* steps,
                  const float* scale, const float* bias, float* out, int64_t N) {
    __mmask16 mask = __mmask16((1u << columns) - 1);
    __m512 scales = _mm512_maskz_loadu_ps(mask, scale);
    __m512 biases = bias ? _mm512_maskz_loadu_ps(mask, bias) : _mm512_setzero_ps();
    __m512i t[16];
    if (rows == 1) {  // decoding one sequence: a column of 16, not worth exchanging the rest
        const __m512i places = _mm512_slli_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 4);
        t[0] = _mm512_i32gather_epi32(places, sums, 4);
    } else {
        transpose(sums, t);
    }
    for (int64_t row = 0; row < rows; row++) {
        __m512 factors = _mm512_mul_ps(_mm512_set1_ps(steps[row]), scales);
        __m512 values = _mm512_mul_ps(_mm512_cvtepi32_ps(t[row]), factors);
        if (bias) values = _mm512_add_ps(values, biases);
        _mm512_mask_storeu_ps(out + row * N, mask, values);
    }
}

void tile_strip(const Segment& s, int64_t n0, const int8_t* packed, const float* steps,
                const float* bias, float* out, int64_t N, int64_t K, WeightRows* strips) {
    alignas(64) int32_t sums[4 * 256];
    int64_t blocks = (K + DEPTH - 1) / DEPTH;
    bool two_strips = n0 + ROWS < N;
    strips[0].set(s.weight, n0, N, K);
    if (two_strips) strips[1].set(s.weight, n0 + ROWS, N, K);
    for (int64_t row = s.first; row < s.end; row += 2 * ROWS) {
        bool two_tiles = row + ROWS < s.end;
        const int8_t* tiles =
            packed + (s.first_tile + (row - s.first) / ROWS) * blocks * TILE_BYTES;
        auto products = two_strips
                            ? (two_tiles ? tile_products<true, true> : tile_products<true, false>)
                            : (two_tiles ? tile_products<false, true> : tile_products<false, false>);
        products(strips, tiles, blocks, sums);
        for (int i = 0; i <= two_strips; i++)
            for (int j = 0; j <= two_tiles; j++) {
                int64_t n = n0 + i * ROWS, first = row + j * ROWS;
                leave(sums + (2 * i + j) * 256, std::min(ROWS, s.end - first), std::min(ROWS, N - n),
                      steps + first, s.scale + n, bias ? bias + n : nullptr, out + first * N + n, N);
            }
    }
}

#else

bool has_tiles() { return false; }

#endif

// Quantize the rows of one thread's share; with tiles, into their places of `packed`.
void quantize(const std::vector<Segment>& segments, const float* x, int16_t* plain, int8_t* packed,
              float* steps, int64_t K, bool tiles) {
    int64_t blocks = (K + DEPTH - 1) / DEPTH;
    std::vector<int8_t> one(tiles ? blocks * DEPTH : 0, 0);
    for (const Segment& s : segments) {
#pragma omp for schedule(static) nowait
        for (int64_t row = s.first; row < s.end; row++) {
            if (!tiles) {
                steps[row] = quantize_row(x + row * K, plain + row * K, K);
                continue;
            }
            steps[row] = quantize_row(x + row * K, one.data(), K);
            int64_t place = row - s.first;
            pack_row(one.data(), blocks, place % ROWS,
                     packed + (s.first_tile + place / ROWS) * blocks * TILE_BYTES);
        }
    }
}

void linear(const float* x, int64_t rows, const int64_t* starts, int64_t groups,
            const int8_t* weight, const float* scale, const float* bias, float* out, int64_t N,
            int64_t K, bool tiles) {
    static thread_local std::vector<int8_t> packed;
    static thread_local std::vector<int16_t> plain;
    static thread_local std::vector<float> steps;
    static thread_local std::vector<Segment> segments;
    int64_t whole[] = {0, rows}, tile_count = 0;
    if (!starts) starts = whole;
    segments.clear();
    for (int64_t g = 0; g < groups; g++)
        if (starts[g] < starts[g + 1]) {
            segments.push_back(
                {starts[g], starts[g + 1], tile_count, weight + g * N * K, scale + g * N});
            tile_count += (starts[g + 1] - starts[g] + ROWS - 1) / ROWS;
        }
    // Columns of a tile that no row fills keep old numbers: their results are never written.
    steps.resize(rows);
    plain.resize(tiles ? 0 : rows * K);
    packed.resize(tiles ? tile_count * ((K + DEPTH - 1) / DEPTH) * TILE_BYTES : 0);
    int64_t strips = (N + STRIP - 1) / STRIP, tasks = int64_t(segments.size()) * strips;
    // The vectors belong to this thread: others reach them through these.
    const auto& list = segments;
    int16_t* plain_rows = plain.data();
    int8_t* packed_rows = packed.data();
    float* step = steps.data();
#pragma omp parallel if (rows * N * K > WORTH_THREADS)
    {
        quantize(list, x, plain_rows, packed_rows, step, K, tiles);
#pragma omp barrier
        if (tiles) {
#ifdef ZIPHIUS_TILES
            Tiles configured;
            WeightRows places[2];
#pragma omp for schedule(static) nowait
            for (int64_t task = 0; task < tasks; task++)
                tile_strip(list[task / strips], task % strips * STRIP, packed_rows, step, bias, out,
                           N, K, places);
#endif
        } else {
            std::vector<int16_t> wide(K);
#pragma omp for schedule(static) nowait
            for (int64_t task = 0; task < tasks; task++) {
                int64_t n0 = task % strips * STRIP;
                plain_strip(list[task / strips], n0, std::min(n0 + STRIP, N), plain_rows, step,
                            bias, out, N, K, wide.data());
            }
        }
    }
}

} // namespace

extern "C" {

// Rows [starts[g], starts[g + 1]) of x [rows, K] times weights [g] of [groups, N, K], with scales
// [groups, N]; without starts there is one group. A bias [N] is for all of them. `tiles` 0 takes the
// plain loops.
int64_t int8_linear(const float* x, int64_t rows, const int64_t* starts, int64_t groups,
                    const int8_t* weight, const float* scale, const float* bias, float* out, int64_t N,
                    int64_t K, int tiles) {
    if (starts && !are_starts(starts, groups, rows)) return OUT_OF_RANGE;
    linear(x, rows, starts, groups, weight, scale, bias, out, N, K, tiles && has_tiles());
    return FINE;
}

} // extern "C"
