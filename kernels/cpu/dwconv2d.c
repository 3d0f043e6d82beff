/* Depthwise convolution, k x k, stride 1, NHWC.
 *
 * The rows of all images form one list, cut into slots of some 16 rows (by the shape alone, so the
 * sums over slots do not depend on the number of threads), and the channels into chunks. A thread
 * walks down the rows of a slot with the last k rows of a chunk in a ring of zero-padded buffers of
 * type real: x is read and converted once, and the inner loops know no borders. */
#include <omp.h>
#include "kernels/cpu/cpu.h"

#if defined(__AVX512F__)
#define VEC_BYTES 64
#elif defined(__AVX__)
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif
#define VEC        ((int64_t)(VEC_BYTES / sizeof(real)))
#define SLOT_ROWS  16
#define MAX_SLOTS  32
#define RING_BYTES (64 << 10) /* of k rows: well within the second-level cache */

typedef real vec __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));

typedef struct {
  const ii_dwconv2d_args *a;
  int64_t half, line;    /* (k-1)/2, pixels of a padded row */
  int64_t width, chunks; /* channels per chunk (whole vectors), number of chunks */
  int64_t step;          /* width*chunks: channels of a padded list of channels */
  int64_t slots;
  int64_t out_step; /* from one result to the next (set per row) */
  real *w;          /* [k*k][step]: transposed weights, zeros behind channel C */
  real *bias;       /* [step] */
  real *sums;       /* [slots][k*k+1][step]: gw and gb of each slot (backward) */
} plan;

/* The last k rows of one tensor; row h is at h % k. Behind them a row of zeros. */
typedef struct {
  real *rows;
  int64_t next; /* the first row that was not loaded yet */
} ring;

typedef struct {
  ring x, gy;
  real *out;         /* [W][width]: a row of results that cannot be stored in place */
  const real **rows; /* [k]: the rows under the kernel */
} work;

static real *ring_row(const plan *p, const ring *r, int64_t h) {
  int64_t k = p->a->k, i = h < 0 || h >= p->a->H ? k : h % k;
  return r->rows + i * p->line * p->width;
}

/* Makes rows up to h+half of image n, channels from c0, present. */
static void ring_advance(const plan *p, ring *r, const void *src, int64_t n, int64_t h,
                         int64_t c0) {
  const ii_dwconv2d_args *a = p->a;
  int64_t last = h + p->half < a->H ? h + p->half : a->H - 1;
  int64_t count = a->C - c0 < p->width ? a->C - c0 : p->width;
  for (; r->next <= last; r->next++) {
    real *dst = ring_row(p, r, r->next) + p->half * p->width;
    int64_t at = (n * a->H + r->next) * a->W * a->C + c0;
    for (int64_t w = 0; w < a->W; w++, dst += p->width, at += a->C) {
      const real *v = ii_row_in(a->x_dtype, src, at, count, dst);
      if (v != dst) memcpy(dst, v, (size_t)count * sizeof(real));
    }
  }
}

/* The k rows around row h. */
static void ring_view(const plan *p, const ring *r, int64_t h, const real **rows) {
  for (int i = 0; i < p->a->k; i++) rows[i] = ring_row(p, r, h - p->half + i);
}

static int64_t min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* Begins at row h of an image. */
static void ring_start(const plan *p, ring *r, int64_t h) {
  r->next = h > p->half ? h - p->half : 0;
}

/* n outputs from column w on, one vector of channels; k and n are constants. flip: gradient of x.
 */
static inline __attribute__((always_inline)) void strip(const plan *p, const real *const *rows,
                                                        const real *weights, int64_t c, vec start,
                                                        const int k, const int n, const bool flip,
                                                        int64_t w, real *out) {
  const int64_t width = p->width, step = p->step;
  vec sum[4];
  for (int o = 0; o < n; o++) sum[o] = start;
  for (int i = 0; i < k; i++) {
    const real *row = rows[i] + w * width + c;
    for (int j = 0; j < k; j++) {
      int t = flip ? k * k - 1 - (i * k + j) : i * k + j;
      vec v = *(const vec *)(weights + t * step + c);
      for (int o = 0; o < n; o++) sum[o] += *(const vec *)(row + (o + j) * width) * v;
    }
  }
  for (int o = 0; o < n; o++) *(vec *)(out + o * p->out_step) = sum[o];
}

/* One row of a chunk: out = bias + kernel * rows. */
static inline __attribute__((always_inline)) void convolve(const plan *p, const real *const *rows,
                                                           const real *weights, const real *bias,
                                                           const int k, const bool flip,
                                                           real *out) {
  const int64_t W = p->a->W;
  for (int64_t c = 0; c < p->width; c += VEC) {
    vec start = {0};
    if (bias) start = *(const vec *)(bias + c);
    int64_t w = 0;
    for (; w + 4 <= W; w += 4)
      strip(p, rows, weights, c, start, k, 4, flip, w, out + w * p->out_step + c);
    for (; w < W; w++) strip(p, rows, weights, c, start, k, 1, flip, w, out + w * p->out_step + c);
  }
}

/* sums[t] += sum over a row of gy * x shifted by tap t, for taps j0..j0+taps-1 of kernel row i. */
static inline __attribute__((always_inline)) void
correlate(const plan *p, const real *x, const real *gy, int64_t j0, const int taps, real *sums) {
  const int64_t width = p->width, W = p->a->W;
  for (int64_t c = 0; c < width; c += VEC) {
    vec sum[5];
    for (int j = 0; j < taps; j++) sum[j] = *(const vec *)(sums + j * p->step + c);
    for (int64_t w = 0; w < W; w++) {
      vec g = *(const vec *)(gy + w * width + c);
      for (int j = 0; j < taps; j++) sum[j] += *(const vec *)(x + (w + j0 + j) * width + c) * g;
    }
    for (int j = 0; j < taps; j++) *(vec *)(sums + j * p->step + c) = sum[j];
  }
}

/* The k kernel rows of gw, and gb behind them, for one row of a chunk. */
static void correlate_rows(const plan *p, const real *const *rows, const real *gy, real *sums) {
  const int k = p->a->k;
  gy += p->half * p->width;
  for (int i = 0; i < k; i++) {
    real *s = sums + (int64_t)i * k * p->step;
    if (k == 3)
      correlate(p, rows[i], gy, 0, 3, s);
    else if (k == 5)
      correlate(p, rows[i], gy, 0, 5, s);
    else
      for (int j = 0; j < k; j++) correlate(p, rows[i], gy, j, 1, s + j * p->step);
  }
  real *gb = sums + (int64_t)k * k * p->step;
  for (int64_t c = 0; c < p->width; c += VEC) {
    vec sum = *(const vec *)(gb + c);
    for (int64_t w = 0; w < p->a->W; w++) sum += *(const vec *)(gy + w * p->width + c);
    *(vec *)(gb + c) = sum;
  }
}

/* out = the results of one row of a chunk, in place in dst or through w->out. */
static void convolve_row(const plan *p, work *w, const real *const *rows, int64_t c0, bool flip,
                         int64_t n, int64_t h, void *dst, bool add) {
  const ii_dwconv2d_args *a = p->a;
  int64_t at = (n * a->H + h) * a->W * a->C + c0, count = min64(a->C - c0, p->width);
  plan q = *p; /* with the step of this row's output */
  bool direct = a->x_dtype == II_REAL_DTYPE && count == p->width && !add;
  real *out = direct ? (real *)dst + at : w->out;
  q.out_step = direct ? a->C : p->width;
  const real *weights = p->w + c0, *bias = p->bias ? p->bias + c0 : NULL;
  if (a->k == 3 && !flip)
    convolve(&q, rows, weights, bias, 3, false, out);
  else if (a->k == 3)
    convolve(&q, rows, weights, NULL, 3, true, out);
  else if (a->k == 5 && !flip)
    convolve(&q, rows, weights, bias, 5, false, out);
  else if (a->k == 5)
    convolve(&q, rows, weights, NULL, 5, true, out);
  else
    convolve(&q, rows, weights, flip ? NULL : bias, a->k, flip, out);
  if (direct) return;
  for (int64_t i = 0; i < a->W; i++, at += a->C) {
    real *row = w->out + i * p->width;
    if (add) {
      real old[VEC_BYTES];
      for (int64_t c = 0; c < count; c += VEC_BYTES) {
        int64_t m = min64(count - c, VEC_BYTES);
        const real *v = ii_row_in(a->x_dtype, dst, at + c, m, old);
        for (int64_t j = 0; j < m; j++) row[c + j] += v[j];
      }
    }
    if (a->x_dtype == II_REAL_DTYPE)
      memcpy((real *)dst + at, row, (size_t)count * sizeof(real));
    else
      ii_row_out(a->x_dtype, dst, at, count, row);
  }
}

/* Rows of one slot, channels of one chunk: y, or gx and the slot's sums. */
static void walk(const plan *p, work *w, int64_t slot, int64_t chunk, bool backward) {
  const ii_dwconv2d_args *a = p->a;
  int64_t c0 = chunk * p->width, total = a->N * a->H;
  int64_t from = total * slot / p->slots, to = total * (slot + 1) / p->slots;
  real *sums = backward && p->sums ? p->sums + slot * (a->k * a->k + 1) * p->step + c0 : NULL;
  for (int64_t row = from; row < to; row++) {
    int64_t n = row / a->H, h = row % a->H;
    if (row == from || h == 0) ring_start(p, &w->x, h), ring_start(p, &w->gy, h);
    if (!backward || sums) {
      ring_advance(p, &w->x, a->x, n, h, c0);
      ring_view(p, &w->x, h, w->rows);
    }
    if (!backward) {
      convolve_row(p, w, w->rows, c0, false, n, h, a->y, false);
      continue;
    }
    ring_advance(p, &w->gy, a->gy, n, h, c0);
    if (sums) correlate_rows(p, w->rows, ring_row(p, &w->gy, h), sums);
    if (!a->gx) continue;
    ring_view(p, &w->gy, h, w->rows);
    convolve_row(p, w, w->rows, c0, true, n, h, a->gx, a->acc_gx);
  }
}

static void transpose_weights(const plan *p) {
  const ii_dwconv2d_args *a = p->a;
  const int64_t kk = (int64_t)a->k * a->k;
  const real *w = a->w, *b = a->b;
  for (int64_t t = 0; t < kk; t++)
    for (int64_t c = 0; c < p->step; c++) p->w[t * p->step + c] = c < a->C ? w[c * kk + t] : 0;
  for (int64_t c = 0; p->bias && c < p->step; c++) p->bias[c] = c < a->C ? b[c] : 0;
}

/* gw and gb from the slots' sums, added in order (into the first). */
static void reduce(const plan *p, int threads) {
  const ii_dwconv2d_args *a = p->a;
  const int64_t kk = (int64_t)a->k * a->k;
  real *gw = a->gw, *gb = a->gb;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t <= kk; t++) {
    real *sum = p->sums + t * p->step;
    for (int64_t s = 1; s < p->slots; s++)
#pragma omp simd
      for (int64_t c = 0; c < a->C; c++) sum[c] += sum[s * (kk + 1) * p->step + c];
    real *to = t == kk ? gb : gw ? gw + t : NULL;
    const int64_t apart = t == kk ? 1 : kk;
    const bool add = t == kk ? a->acc_gb : a->acc_gw;
    for (int64_t c = 0; to && c < a->C; c++) to[c * apart] = add ? to[c * apart] + sum[c] : sum[c];
  }
}

static void make_plan(plan *p, const ii_dwconv2d_args *a) {
  *p = (plan){.a = a, .half = (a->k - 1) / 2, .line = a->W + a->k - 1};
  int64_t vectors = (a->C + VEC - 1) / VEC, fits = RING_BYTES / (a->k * p->line * VEC_BYTES);
  p->chunks = fits > 0 ? (vectors + fits - 1) / fits : vectors;
  p->width = (vectors + p->chunks - 1) / p->chunks * VEC;
  p->chunks = (a->C + p->width - 1) / p->width;
  p->step = p->width * p->chunks;
  p->slots = min64((a->N * a->H + SLOT_ROWS - 1) / SLOT_ROWS, MAX_SLOTS);
  if (p->slots == 0) p->slots = 1; /* without rows: the sums of one slot are zeros */
}

/* Runs all slots and chunks; memory comes from scratch slot 0. */
static int run(ii_kctx *k, const ii_dwconv2d_args *a, bool backward) {
  plan p;
  make_plan(&p, a);
  const int64_t kk = (int64_t)a->k * a->k, ring_size = (a->k + 1) * p.line * p.width;
  const bool sums = backward && (a->gw || a->gb);
  const int64_t shared = (kk + 1) * p.step + (sums ? p.slots * (kk + 1) * p.step : 0);
  const int64_t each = 2 * ring_size + a->W * p.width + 32;
  const size_t pointers = (size_t)(a->k * k->threads) * sizeof(real *);
  size_t bytes = (size_t)(shared + each * k->threads) * sizeof(real) + pointers;
  real *m = ii_cpu_scratch(k, 0, bytes);
  if (!m) return 1;
  memset(m, 0, (size_t)shared * sizeof(real));
  p.w = m;
  p.bias = !backward && a->b ? m + kk * p.step : NULL;
  p.sums = sums ? m + (kk + 1) * p.step : NULL;
  const real **rows = (const real **)(void *)(m + shared + each * k->threads);
  transpose_weights(&p);
  const int64_t items = p.slots * p.chunks;
#pragma omp parallel num_threads(k->threads)
  {
    int self = omp_get_thread_num();
    real *own = m + shared + self * each;
    memset(own, 0, (size_t)each * sizeof(real)); /* the rings' borders stay zero */
    work w = {.x = {own, 0},
              .gy = {own + ring_size, 0},
              .out = own + 2 * ring_size,
              .rows = rows + self * a->k};
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < items; i++) walk(&p, &w, i / p.chunks, i % p.chunks, backward);
  }
  if (sums) reduce(&p, k->threads);
  return 0;
}

int II_FN(dwconv2d_fwd)(ii_kctx *k, const ii_dwconv2d_args *a) {
  return a->N * a->H * a->W * a->C == 0 ? 0 : run(k, a, false);
}

int II_FN(dwconv2d_bwd)(ii_kctx *k, const ii_dwconv2d_args *a) {
  if (a->C == 0) return 0;
  if (!a->gx && !a->gw && !a->gb) return 0;
  return run(k, a, true);
}
