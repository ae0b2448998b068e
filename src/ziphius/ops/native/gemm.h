// Products of small matrices by one thread, for kernels that share their work out among threads.
//
// C [m, n] = A [m, k] B [k, n], or C += A B, with C in float32. All three counts are multiples of UNIT:
// callers pad with zeros. A is row-major. B lies in panels of UNIT columns, each with its rows one after
// the other; in bfloat16 two rows of a panel are interleaved, as the matrix units of CPUs read them. Panels
// may have more rows, `depth`, than the k that are used.

#pragma once

#include "numbers.h"

#include <vector>
#if defined(__FMA__) || defined(__AVX512F__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t UNIT = 32;

inline int64_t padded(int64_t count) { return (count + UNIT - 1) / UNIT * UNIT; }

// Memory of a thread that grows and stays, for the temporaries of one kind; it begins with a line of the
// cache, as do panels, so that no load of theirs takes two lines.
template <class T>
T* scratch(std::vector<T>& own, int64_t count) {
    constexpr int64_t line = 64;
    if (int64_t(own.size()) < count + line) own.resize(count + line);
    auto address = reinterpret_cast<uintptr_t>(own.data());
    return own.data() + (line - address % line) % line / sizeof(T);
}

inline uint16_t bits_of(bf16 x) { return x.bits; }
inline uint16_t bits_of(float x) {
    bf16 rounded;
    store(&rounded, x);
    return rounded.bits;
}
inline uint32_t pair_of(uint16_t first, uint16_t second) { return uint32_t(first) | uint32_t(second) << 16; }

typedef float line __attribute__((vector_size(64), aligned(4)));
constexpr int64_t LINE = 16;  // numbers of four bytes in a line of the cache

// Turn a square of 16 rows by 16 columns: number j of row i becomes number i of row j. Four rounds
// exchange halves, quarters, eighths and single numbers between rows.
template <int64_t HALF>
inline void exchange(line* rows) {
#if defined(__GNUC__) && !defined(__clang__)
    typedef int32_t places __attribute__((vector_size(64)));
    places upper, lower;
    for (int32_t j = 0; j < LINE; j++) {
        upper[j] = j & HALF ? int32_t(LINE) + j - int32_t(HALF) : j;
        lower[j] = j & HALF ? int32_t(LINE) + j : j + int32_t(HALF);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < LINE; i++) {
        if (i & HALF) continue;
        line first = rows[i], second = rows[i + HALF];
        rows[i] = __builtin_shuffle(first, second, upper);
        rows[i + HALF] = __builtin_shuffle(first, second, lower);
    }
#else
    for (int64_t i = 0; i < LINE; i++)
        if (!(i & HALF))
            for (int64_t j = 0; j < LINE; j++)
                if (j & HALF) std::swap(rows[i][j], rows[i + HALF][j - HALF]);
#endif
}

inline void turn_square(const float* from, int64_t stride, float* to, int64_t to_stride) {
    line rows[LINE];
#pragma GCC unroll 16
    for (int64_t i = 0; i < LINE; i++) rows[i] = *reinterpret_cast<const line*>(from + i * stride);
    exchange<8>(rows);
    exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
#pragma GCC unroll 16
    for (int64_t i = 0; i < LINE; i++) *reinterpret_cast<line*>(to + i * to_stride) = rows[i];
}

// Write the columns of a panel, each a run of memory, as its rows.
inline void turn_columns(const float* from, int64_t stride, int64_t k, int64_t columns, float* target) {
    int64_t squares = k / LINE * LINE;
    for (int64_t j = 0; j < columns; j += LINE) {
        int64_t end = std::min(columns, j + LINE), turned = end - j == LINE ? squares : 0;
        for (int64_t i = 0; i < turned; i += LINE) turn_square(from + j * stride + i, stride, target + i * UNIT + j, UNIT);
        for (int64_t i = turned; i < k; i++)
            for (int64_t column = j; column < end; column++) target[i * UNIT + column] = from[column * stride + i];
    }
}

// Pack B from memory in which row k of column n lies at source[k * row_stride + n * column_stride]. One
// of the strides is 1.
template <class S>
void pack(const S* source, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n, float* target) {
    static_assert(sizeof(S) == sizeof(float), "bfloat16 is packed as pairs");
    int64_t depth = padded(k);
    for (int64_t first = 0; first < n; first += UNIT, target += depth * UNIT) {
        int64_t columns = std::min(UNIT, n - first);
        const S* from = source + first * column_stride;
        if (columns < UNIT || k < depth) clear(target, depth * UNIT);
        if (column_stride == 1) {
            for (int64_t i = 0; i < k; i++)
                for (int64_t j = 0; j < columns; j++) target[i * UNIT + j] = from[i * row_stride + j];
        } else {
            turn_columns(from, column_stride, k, columns, target);
        }
    }
}

template <class S>
void pack(const S* source, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n, bf16* target) {
    int64_t depth = padded(k);
    auto* pairs = reinterpret_cast<uint32_t*>(target);
    for (int64_t first = 0; first < n; first += UNIT, pairs += depth / 2 * UNIT) {
        int64_t columns = std::min(UNIT, n - first);
        const S* from = source + first * column_stride;
        if (columns < UNIT || k < depth) clear(pairs, depth / 2 * UNIT);
        if (column_stride == 1) {
            for (int64_t i = 0; i + 1 < k; i += 2) {
                const S *even = from + i * row_stride, *odd = even + row_stride;
#pragma omp simd
                for (int64_t j = 0; j < columns; j++)
                    pairs[i / 2 * UNIT + j] = pair_of(bits_of(even[j]), bits_of(odd[j]));
            }
            if (k % 2)
                for (int64_t j = 0; j < columns; j++)
                    pairs[k / 2 * UNIT + j] = pair_of(bits_of(from[(k - 1) * row_stride + j]), 0);
        } else {
            // Each column is rounded into pairs, which are then turned as numbers of four bytes are.
            static thread_local std::vector<uint32_t> memory;
            int64_t length = padded(k) / 2;
            uint32_t* rounded = scratch(memory, UNIT * length);
            for (int64_t j = 0; j < columns; j++) {
                const S* column = from + j * column_stride;
                uint32_t* to = rounded + j * length;
#pragma omp simd
                for (int64_t i = 0; i < k / 2; i++)
                    to[i] = pair_of(bits_of(column[2 * i]), bits_of(column[2 * i + 1]));
                if (k % 2) to[k / 2] = pair_of(bits_of(column[k - 1]), 0);
            }
            turn_columns(reinterpret_cast<const float*>(rounded), length, (k + 1) / 2, columns,
                         reinterpret_cast<float*>(pairs));
        }
    }
}

// SUMS registers hold a tile of C, WIDE of them in a row: the wider it is, the fewer numbers of A are spread
// over a register, which is what the rest of the time goes into.
#if defined(__AVX512F__)
constexpr int64_t LANES = 16, SUMS = 24, WIDE = 4, NARROW = UNIT / LANES;
#else
constexpr int64_t LANES = 8, SUMS = 12, WIDE = 2, NARROW = WIDE;
#endif
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));

// a * b + c, rounded once. Left to the compiler it hangs on the loop around it: where one sum is all that a loop
// carries, GCC multiplies and adds apart on AMD's processors, and a row alone would differ from one among others.
inline floats multiply_add(floats a, floats b, floats c) {
#if defined(__AVX512F__)
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline floats spread(float x) {
#if defined(__AVX512F__)
    return (floats)_mm512_set1_ps(x);
#elif defined(__FMA__)
    return (floats)_mm256_set1_ps(x);
#else
    return floats{} + x;
#endif
}

// Where vector v of a row of B is, in words of four bytes: a tile may go on in the next panel, `apart` words on.
inline int64_t place_of(int64_t v, int64_t apart) { return v * LANES / UNIT * apart + v * LANES % UNIT; }

// One term of each sum, in bfloat16 two.
template <int ROWS, int VECTORS>
inline void add_terms(const float* a, int64_t row_stride, const float* b, int64_t apart,
                      floats (&sums)[ROWS][VECTORS]) {
    floats right[VECTORS];
#pragma GCC unroll 8
    for (int64_t v = 0; v < VECTORS; v++) right[v] = *reinterpret_cast<const floats*>(b + place_of(v, apart));
#pragma GCC unroll 12
    for (int64_t r = 0; r < ROWS; r++) {
        floats left = spread(a[r * row_stride]);
#pragma GCC unroll 8
        for (int64_t v = 0; v < VECTORS; v++) sums[r][v] = multiply_add(left, right[v], sums[r][v]);
    }
}

template <int ROWS, int VECTORS>
inline void add_terms(const bf16* a, int64_t row_stride, const bf16* b, int64_t apart,
                      floats (&sums)[ROWS][VECTORS]) {
    words right[VECTORS];
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; v++)
        right[v] = *reinterpret_cast<const words*>(b + 2 * place_of(v, apart));
#pragma GCC unroll 12
    for (int64_t r = 0; r < ROWS; r++) {
#if defined(__AVX512BF16__)
        int32_t pair;
        std::memcpy(&pair, a + r * row_stride, 4);
        auto left = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; v++)
            sums[r][v] = (floats)_mm512_dpbf16_ps((__m512)sums[r][v], left, (__m512bh)right[v]);
#else
        float even = load(a[r * row_stride]), odd = load(a[r * row_stride + 1]);
#pragma GCC unroll 4
        for (int64_t v = 0; v < VECTORS; v++)
            sums[r][v] += even * (floats)(right[v] << 16) + odd * (floats)(right[v] & 0xffff0000u);
#endif
    }
}

// A in float32 beside a B in bfloat16: nothing of A is taken apart, which without units for bfloat16 costs as much
// as the product.
template <int ROWS, int VECTORS>
inline void add_terms(const float* a, int64_t row_stride, const bf16* b, int64_t apart,
                      floats (&sums)[ROWS][VECTORS]) {
    auto number = [](words pairs, int term) { return (floats)(term ? pairs & 0xffff0000u : pairs << 16); };
    auto pairs_at = [&](int64_t v) { return *reinterpret_cast<const words*>(b + 2 * place_of(v, apart)); };
    if constexpr (ROWS == 1) {  // is fed by the loads of B alone
#pragma GCC unroll 8
        for (int64_t v = 0; v < VECTORS; v++) {
            words pairs = pairs_at(v);
            sums[0][v] = multiply_add(spread(a[0]), number(pairs, 0), sums[0][v]);
            sums[0][v] = multiply_add(spread(a[1]), number(pairs, 1), sums[0][v]);
        }
        return;
    }
#pragma GCC unroll 2
    for (int term = 0; term < 2; term++) {
        floats right[VECTORS];
#pragma GCC unroll 8
        for (int64_t v = 0; v < VECTORS; v++) right[v] = number(pairs_at(v), term);
#pragma GCC unroll 12
        for (int64_t r = 0; r < ROWS; r++) {
            floats left = spread(a[r * row_stride + term]);
#pragma GCC unroll 8
            for (int64_t v = 0; v < VECTORS; v++) sums[r][v] = multiply_add(left, right[v], sums[r][v]);
        }
    }
}

// ROWS rows of a tile's columns. Number i of row r of A lies at a[r * row_stride + i * step]. FAR: B is not near the
// core, so the lines of the columns that come next are asked for on the way; where few rows share a number of B, that
// is up to twice as fast.
template <int ROWS, int VECTORS, bool FAR = false, class S, class T>
inline void tile_of(int64_t k, const S* a, int64_t row_stride, int64_t step, const T* b, int64_t apart, float* c,
                    int64_t c_stride, bool add) {
    constexpr int64_t numbers = sizeof(float) / sizeof(T);  // in a word
    constexpr int64_t lines = VECTORS * LANES / LINE, panels = std::max<int64_t>(1, VECTORS * LANES / UNIT);
    [[maybe_unused]] const T* next = b + panels * apart * numbers;
    floats sums[ROWS][VECTORS] = {};
    if (add)
        for (int64_t r = 0; r < ROWS; r++)
            for (int64_t v = 0; v < VECTORS; v++)
                sums[r][v] = *reinterpret_cast<const floats*>(c + r * c_stride + LANES * v);
#pragma GCC unroll 4
    for (int64_t i = 0; i < k; i += numbers) {
        if constexpr (FAR)
#pragma GCC unroll 8
            for (int64_t line = 0; line < lines; line++)
                __builtin_prefetch(next + i * UNIT + numbers * place_of(line * LINE / LANES, apart), 0, 2);
        add_terms<ROWS, VECTORS>(a + i * step, row_stride, b + i * UNIT, apart, sums);
    }
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t v = 0; v < VECTORS; v++) *reinterpret_cast<floats*>(c + r * c_stride + LANES * v) = sums[r][v];
}

// All rows of a tile's columns: ROWS at a time, and what is left by fewer.
template <int ROWS, int VECTORS, class S, class T>
inline void columns_of(int64_t m, int64_t k, const S* a, int64_t row_stride, int64_t step, const T* b,
                       int64_t apart, float* c, int64_t c_stride, bool add) {
    for (; m >= ROWS; m -= ROWS, a += ROWS * row_stride, c += ROWS * c_stride)
        tile_of<ROWS, VECTORS>(k, a, row_stride, step, b, apart, c, c_stride, add);
    if constexpr (ROWS > 1)
        if (m) columns_of<ROWS == 2 ? 1 : ROWS - 2, VECTORS>(m, k, a, row_stride, step, b, apart, c, c_stride, add);
}

#if defined(__AMX_BF16__)
// Intel's matrix units: eight tiles of 16 rows of 64 bytes, which the kernel lends on request.
inline bool tiles_lent() {
    static const bool lent = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
    return lent;
}

// Shapes of the tiles for the length of a block; what another library had set comes back after it.
class Tiles {
  public:
    Tiles() {
        _tile_storeconfig(before_);
        alignas(64) uint8_t shape[64] = {1};
        for (int tile = 0; tile < 8; tile++) {
            shape[16 + 2 * tile] = 64;  // bytes of a row
            shape[48 + tile] = 16;      // rows
        }
        _tile_loadconfig(shape);
    }
    ~Tiles() {
        if (before_[0])
            _tile_loadconfig(before_);
        else
            _tile_release();
    }

  private:
    alignas(64) uint8_t before_[64];
};

inline void tiled(int64_t m, int64_t n, int64_t k, const bf16* a, int64_t a_stride, const bf16* b,
                  int64_t depth, float* c, int64_t c_stride, bool add) {
    Tiles tiles;
    int64_t c_bytes = 4 * c_stride, a_bytes = 2 * a_stride;
    for (int64_t j = 0; j < n; j += UNIT, b += depth * UNIT) {
        for (int64_t i = 0; i < m; i += UNIT) {
            float* top = c + i * c_stride + j;
            float* bottom = top + 16 * c_stride;
            if (add) {
                _tile_loadd(0, top, c_bytes);
                _tile_loadd(1, top + 16, c_bytes);
                _tile_loadd(2, bottom, c_bytes);
                _tile_loadd(3, bottom + 16, c_bytes);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            const bf16 *upper = a + i * a_stride, *lower = upper + 16 * a_stride;
            for (int64_t d = 0; d < k; d += UNIT) {
                const bf16* block = b + d * UNIT;
                _tile_loadd(4, upper + d, a_bytes);
                _tile_loadd(6, block, 4 * UNIT);
                _tile_loadd(7, block + UNIT, 4 * UNIT);
                _tile_loadd(5, lower + d, a_bytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, top, c_bytes);
            _tile_stored(1, top + 16, c_bytes);
            _tile_stored(2, bottom, c_bytes);
            _tile_stored(3, bottom + 16, c_bytes);
        }
    }
}
#endif

// Whether products of these numbers run on matrix units, whose order of sums is their own.
template <class T>
bool tiles_serve() {
#if defined(__AMX_BF16__)
    return sizeof(T) == sizeof(bf16) && tiles_lent();
#else
    return false;
#endif
}

inline bool multiply_by_tiles(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*,
                              int64_t, bool) {
    return false;
}
inline bool multiply_by_tiles(int64_t m, int64_t n, int64_t k, const bf16* a, int64_t a_stride, const bf16* b,
                              int64_t depth, float* c, int64_t c_stride, bool add) {
#if defined(__AMX_BF16__)
    if (!tiles_lent()) return false;
    tiled(m, n, k, a, a_stride, b, depth, c, c_stride, add);
    return true;
#else
    return false;
#endif
}

template <class T>
void multiply_by_vectors(int64_t m, int64_t n, int64_t k, const T* a, int64_t row_stride, int64_t step,
                         const T* b, int64_t depth, float* c, int64_t c_stride, bool add) {
    constexpr int64_t tile = WIDE * LANES, numbers = sizeof(float) / sizeof(T);
    int64_t panel = depth * UNIT, j = 0;
    for (; j + tile <= n; j += tile)
        columns_of<SUMS / WIDE, WIDE>(m, k, a, row_stride, step, b + j / UNIT * panel + j % UNIT * numbers,
                                      panel / numbers, c + j, c_stride, add);
    for (; j < n; j += UNIT)
        columns_of<SUMS / NARROW, NARROW>(m, k, a, row_stride, step, b + j / UNIT * panel, panel / numbers, c + j,
                                          c_stride, add);
}

template <class T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_stride, const T* b, int64_t depth, float* c,
              int64_t c_stride, bool add = false) {
    if (multiply_by_tiles(m, n, k, a, a_stride, b, depth, c, c_stride, add)) return;
    multiply_by_vectors(m, n, k, a, a_stride, 1, b, depth, c, c_stride, add);
}

// The same with A given as its transpose, a row-major [k, m]; `turned` has room for k * m numbers.
inline void multiply_transposed(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_stride, float*,
                                const float* b, int64_t depth, float* c, int64_t c_stride, bool add) {
    multiply_by_vectors(m, n, k, a, 1, a_stride, b, depth, c, c_stride, add);
}
inline void multiply_transposed(int64_t m, int64_t n, int64_t k, const bf16* a, int64_t a_stride, bf16* turned,
                                const bf16* b, int64_t depth, float* c, int64_t c_stride, bool add) {
    auto* pairs = reinterpret_cast<uint32_t*>(turned);
    for (int64_t first = 0; first < m; first += 16) {  // as many rows as are written side by side
        for (int64_t i = 0; i < k; i += 2) {
            const bf16 *even = a + i * a_stride + first, *odd = even + a_stride;
            for (int64_t j = 0; j < 16; j++)
                pairs[((first + j) * k + i) / 2] = pair_of(even[j].bits, odd[j].bits);
        }
    }
    multiply(m, n, k, turned, k, b, depth, c, c_stride, add);
}

template <class T>
void store_row(const float* from, T* to, int64_t width) {
#pragma omp simd
    for (int64_t j = 0; j < width; j++) store(to + j, from[j]);
}

// Copy rows that lie `from_stride` apart, with zeros around them up to multiples of UNIT.
template <class T>
void copy_rows(const T* from, int64_t from_stride, int64_t rows, int64_t width, T* to) {
    int64_t stride = padded(width);
    clear(to, padded(rows) * stride);
    for (int64_t i = 0; i < rows; i++) copy(from + i * from_stride, width, to + i * stride);
}

// Where a product is written: straight to its place if that needs neither rounding nor padding, else to `sums`.
inline float* target_of(float* place, bool fits, float* sums) { return fits ? place : sums; }
inline float* target_of(bf16*, bool, float* sums) { return sums; }

// Bring what was written elsewhere to its place, `columns` of each row.
template <class T>
void bring(const float* from, int64_t stride, T* place, int64_t place_stride, int64_t rows, int64_t columns) {
    if (static_cast<const void*>(from) == static_cast<void*>(place)) return;
    for (int64_t i = 0; i < rows; i++) store_row(from + i * stride, place + i * place_stride, columns);
}

}  // namespace
