/* How kernels cut their work into pieces: threads, L1-sized chunks, gradients, sums. */
#ifndef II_PIECES_H
#define II_PIECES_H
#include <omp.h>
#include "kernels/cpu/cpu.h"

enum {
  II_CHUNK = 1024,         /* elements worked on at a time: a few buffers of them fit into L1 */
  II_SERIAL_BELOW = 32768, /* elements below which starting threads costs more than it gains */
  II_SUM_ROWS = 32,        /* rows added up in type real before going to a double */
  II_SUM_BLOCKS = 64       /* at most so many blocks of rows are summed independently */
};

/* For `num_threads(...)`: how many threads a kernel with so many elements of work deserves. */
static inline int ii_team(const ii_kctx *k, int64_t work) {
  return work < II_SERIAL_BELOW ? 1 : k->threads;
}

static inline int64_t ii_min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t ii_max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
static inline int64_t ii_ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/* Rows of n elements that make about a chunk, at least one. */
static inline int64_t ii_chunk_rows(int64_t n) {
  return n >= II_CHUNK ? 1 : II_CHUNK / n;
}

/* Row buffers of each thread: `count` of them, n elements each, in scratch slot 1. Thread i's begin
 * at result + i * count * ii_buffer_length(n), its buffer j ii_buffer_length(n) * j after. NULL: no
 * memory. */
static inline int64_t ii_buffer_length(int64_t n) {
  return (n + 31) / 32 * 32;
}
static inline real *ii_thread_buffers(ii_kctx *k, int64_t n, int count) {
  size_t bytes = (size_t)(k->threads * count * ii_buffer_length(n)) * sizeof(real);
  return ii_cpu_scratch(k, 1, bytes ? bytes : sizeof(real));
}

/* Where to compute a gradient of n elements p[i...]: in place if that is possible, else buf. */
static inline real *ii_grad_target(ii_dtype t, void *p, int64_t i, bool accumulate, real *buf) {
  return accumulate ? buf : ii_row_target(t, p, i, buf);
}

/* Stores or adds what was computed in the result of ii_grad_target. */
static inline void ii_grad_out(ii_dtype t, void *p, int64_t i, int64_t n, bool accumulate,
                               real *buf) {
  if (!accumulate) {
    ii_row_out(t, p, i, n, buf);
  } else if (t == II_REAL_DTYPE) {
    real *restrict g = (real *)p + i;
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) g[j] += buf[j];
  } else {
    const uint16_t *restrict h = (const uint16_t *)p + i;
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) buf[j] += ii_bf16_value(h[j]);
    ii_row_out(t, p, i, n, buf);
  }
}

/* Stores or adds a gradient of a parameter: n sums. */
static inline void ii_sums_out(real *g, const double *sum, int64_t n, bool accumulate) {
  if (!g) return;
  for (int64_t j = 0; j < n; j++) g[j] = (real)((accumulate ? (double)g[j] : 0.0) + sum[j]);
}

/* The sum of x[j] - mean, or of its square, over n elements in type real. gcc adds the lanes of a
 * vector one after the other, which for a short row takes longer than all the rest. */
static inline real ii_short_sum(const real *x, int64_t n, real mean, bool squares) {
#ifdef II_AVX512
  const __m512 m = _mm512_set1_ps(mean);
  __m512 s = _mm512_setzero_ps();
  for (int64_t j = 0; j < n; j += 16) {
    const __mmask16 some = n - j < 16 ? (__mmask16)((1u << (n - j)) - 1) : 0xffff;
    const __m512 d = _mm512_maskz_sub_ps(some, _mm512_maskz_loadu_ps(some, x + j), m);
    s = squares ? _mm512_fmadd_ps(d, d, s) : _mm512_add_ps(s, d);
  }
  return _mm512_reduce_add_ps(s);
#else
  real s = 0;
#pragma omp simd simdlen(II_LANES) reduction(+ : s)
  for (int64_t j = 0; j < n; j++) s += squares ? (x[j] - mean) * (x[j] - mean) : x[j] - mean;
  return s;
#endif
}

/* Sum of n elements: 256 at a time in type real, those in double, so that the rounding error of
 * a mean stays below one unit in the last place however long the row is. */
static inline double ii_row_sum(const real *x, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; i += 256) {
    int64_t end = ii_min(n, i + 256);
    total += ii_short_sum(x + i, end - i, 0, false);
  }
  return total;
}

/* Maximum of n >= 1 elements; a NaN may or may not win. Short rows are quicker without vectors. */
static inline real ii_row_max(const real *x, int64_t n) {
  real m = x[0];
  if (n < 2 * II_LANES) {
    for (int64_t j = 1; j < n; j++) m = x[j] > m ? x[j] : m;
  } else {
#pragma omp simd simdlen(II_LANES) reduction(max : m)
    for (int64_t j = 1; j < n; j++) m = x[j] > m ? x[j] : m;
  }
  return m;
}

/* Adds rows [first, last) of `width` quantities into acc[width] (cleared by the caller).
 * buffers: this thread's, as asked for. */
typedef void (*ii_add_rows_fn)(const void *args, int64_t first, int64_t last, real *acc,
                               real *buffers);

/* Column sums, the same for any number of threads: rows are cut into at most II_SUM_BLOCKS blocks,
 * whose size depends on `rows` alone; a block is added up II_SUM_ROWS rows at a time in type real
 * and those sums in double; blocks are added in order. `cost` is the number of elements in a row,
 * for the choice of threads; each thread gets buffer_count buffers of buffer_n elements.
 * Returns sums[width], valid until the next call (scratch slot 0), or NULL. */
const double *II_FN(column_sums)(ii_kctx *k, int64_t rows, int64_t cost, int64_t width,
                                 ii_add_rows_fn add, const void *args, int64_t buffer_n,
                                 int buffer_count);

#endif
