/* Deformable convolution on the CUDA engine against the CPU engine in double precision.
 *
 * All inputs are exact in every tested type, and sampling positions are too (offsets are odd
 * multiples of a power of two, so that no sample lies on a pixel centre, where derivatives jump).
 * What remains is the rounding of sums and of results: with u the unit roundoff of the accumulator,
 * v that of the result's type, and S the sum of the absolute values of the n terms of a result r,
 *     |error| <= v |r| + (n + 16) u S
 * where 16 stands for the operations inside a term (bilinear weights, modulation), and for the
 * softmax 16 more: exp is good to 2 units, applied to differences of two exact logits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "autograd/rng.h"
#include "kernels/cuda/dcn_fwd.h"
#include "kernels/device.h"

/* V3_JOINT: v3's offsets and modulations as columns of one matrix. */
enum { SEED = 77, V3 = 3, V4 = 4, V3_JOINT = 33 };
enum { Y, GX, GOFFSET, GMASK, RESULTS }; /* what is computed */
static const char *const result_name[] = {"y", "gx", "goffset", "gmask"};

typedef struct {
  const char *name;
  int version;
  int64_t N, H, W, G, D;
  int kh, kw, stride, pad, dil;
  bool remove_center, softmax;
  double scale;
  double step; /* offsets are odd multiples of it, |offset| < 64 step */
  int64_t row; /* of the one matrix of V4 and V3_JOINT, 0: whole 16 bytes and some more */
} layout;

#define K3 3, 3, 1, 1, 1, false /* the common window */

/* A layout with its numbers. When offsets and modulations lie in one array, that is in[1]. */
typedef struct {
  layout l;
  int64_t K, Ho, Wo, C, rows, row; /* row: of offsets (v3), of both (v4) */
  int64_t n_x, n_y, n_off, n_mask;
  double *x, *off, *mask, *gy; /* mask: off + behind for one array */
  int64_t off_group, mask_row, mask_group, behind;
} problem;

static bool packed(const problem *p) {
  return p->l.version != V3;
}

/* Results in double; with one array goffset has everything and gmask is NULL. */
typedef struct {
  double *v[RESULTS];
} results;

/* ---- Problems ---------------------------------------------------------------------------------*/

static double *numbers(int64_t n) {
  double *p = malloc((size_t)(n > 0 ? n : 1) * sizeof *p);
  assert_non_null(p);
  return p;
}

/* Multiples of 1/64 of up to 8 bits: exact in fp16 and bf16. */
static void draw(ii_rng *r, int64_t n, double *p) {
  for (int64_t i = 0; i < n; i++) {
    double v = round(ii_rng_normal(r) * 48);
    p[i] = fmax(-255, fmin(255, v)) / 64;
  }
}

static problem make(const layout *l) {
  problem p = {.l = *l, .K = ii_dcn_taps(l->kh, l->kw, l->remove_center), .C = l->G * l->D};
  ii_rng r = ii_rng_make(SEED, II_RNG_TEST, 0, 0);
  p.Ho = (l->H + 2 * l->pad - (l->dil * (l->kh - 1) + 1)) / l->stride + 1;
  p.Wo = (l->W + 2 * l->pad - (l->dil * (l->kw - 1) + 1)) / l->stride + 1;
  p.rows = l->N * p.Ho * p.Wo;
  p.n_x = l->N * l->H * l->W * p.C;
  p.n_y = p.rows * p.C;
  const bool one = packed(&p), by_group = l->version == V4;
  p.row = !one ? 2 * p.K * l->G : l->row ? l->row : (3 * p.K * l->G + 7) / 8 * 8 + 8;
  p.off_group = (by_group ? 3 : 2) * p.K;
  p.mask_row = one ? p.row : p.K * l->G;
  p.mask_group = by_group ? 3 * p.K : p.K;
  p.behind = by_group ? 2 * p.K : 2 * p.K * l->G;
  p.n_off = p.rows * p.row;
  p.n_mask = one ? 0 : p.rows * p.mask_row;
  p.x = numbers(p.n_x);
  p.gy = numbers(p.n_y);
  p.off = numbers(p.n_off);
  p.mask = one ? p.off + p.behind : numbers(p.n_mask);
  draw(&r, p.n_x, p.x);
  draw(&r, p.n_y, p.gy);
  if (one)
    draw(&r, p.n_off, p.off);
  else
    draw(&r, p.n_mask, p.mask);
  for (int64_t i = 0; i < p.rows; i++)
    for (int64_t g = 0; g < l->G; g++)
      for (int64_t k = 0; k < 2 * p.K; k++)
        p.off[i * p.row + g * p.off_group + k] = ((double)ii_rng_below(&r, 64) * 2 - 63) * l->step;
  return p;
}

static void unmake(problem *p) {
  free(p->x);
  free(p->gy);
  free(p->off);
  if (!packed(p)) free(p->mask);
}

static void results_free(results *r) {
  for (int i = 0; i < RESULTS; i++) free(r->v[i]);
}

static int64_t result_numel(const problem *p, int i) {
  return i == Y ? p->n_y : i == GX ? p->n_x : i == GOFFSET ? p->n_off : p->n_mask;
}

/* ---- Engines ----------------------------------------------------------------------------------*/

static ii_kctx cpu, gpu, gpu_ordered; /* opened by main */

static void ok(ii_kctx *k, int status) {
  if (status) fail_msg("%s", k->error);
}

static void to_type(ii_dtype t, const double *from, int64_t n, void *to) {
  for (int64_t i = 0; i < n; i++) {
    float f = (float)from[i];
    uint16_t h = t == II_F16 ? ii_f32_to_f16(f) : ii_f32_to_bf16(f);
    if (t == II_F64)
      memcpy((double *)to + i, from + i, 8);
    else if (t == II_F32)
      memcpy((float *)to + i, &f, 4);
    else
      memcpy((uint16_t *)to + i, &h, 2);
  }
}

static double from_type(ii_dtype t, const void *from, int64_t i) {
  if (t == II_F64) return ((const double *)from)[i];
  if (t == II_F32) return ((const float *)from)[i];
  const uint16_t h = ((const uint16_t *)from)[i];
  return t == II_F16 ? ii_f16_to_f32(h) : ii_bf16_to_f32(h);
}

/* A buffer of the engine with n elements, `skew` elements behind the start of an allocation. */
typedef struct {
  void *base, *p;
  size_t bytes;
} buffer;

static buffer to_device(ii_kctx *k, ii_dtype t, const double *v, int64_t n, int skew) {
  size_t size = ii_dtype_size(t);
  buffer b = {.bytes = ((size_t)n + (size_t)skew) * size};
  void *host = malloc((size_t)n * size + 1);
  assert_non_null(host);
  to_type(t, v, n, host);
  ok(k, ii_device_alloc(k, b.bytes ? b.bytes : 1, &b.base));
  b.p = (char *)b.base + (size_t)skew * size;
  if (n) ok(k, ii_device_write(k, b.p, host, (size_t)n * size));
  free(host);
  return b;
}

static void release(ii_kctx *k, buffer *b) {
  if (b->base) ii_device_free(k, b->base, b->bytes ? b->bytes : 1);
}

static double *to_host(ii_kctx *k, ii_dtype t, const buffer *b, int64_t n) {
  double *v = numbers(n);
  void *host = malloc((size_t)n * ii_dtype_size(t) + 1);
  assert_non_null(host);
  if (n) ok(k, ii_device_read(k, host, b->p, (size_t)n * ii_dtype_size(t)));
  for (int64_t i = 0; i < n; i++) v[i] = from_type(t, host, i);
  free(host);
  return v;
}

typedef struct {
  ii_kctx *k;
  ii_dtype type, om;
  int skew;        /* misalignment of x, y, gy and gradients, in elements */
  bool accumulate; /* gradients are added to 1 (else they replace NaN) */
  unsigned want;   /* bits 1 << GX ... of the gradients; 0: forward only */
  int64_t gap;     /* elements between the pixels of x, which nothing may depend on */
} mode;

enum { ALL = 1 << GX | 1 << GOFFSET | 1 << GMASK };

static ii_dcn_args arguments(const problem *p, const mode *m) {
  const layout *l = &p->l;
  return (ii_dcn_args){.real = ii_dtype_real(m->type),
                       .x_dtype = m->type,
                       .om_dtype = m->om,
                       .N = l->N,
                       .H = l->H,
                       .W = l->W,
                       .C = p->C,
                       .G = l->G,
                       .Ho = p->Ho,
                       .Wo = p->Wo,
                       .kh = l->kh,
                       .kw = l->kw,
                       .stride_h = l->stride,
                       .stride_w = l->stride,
                       .pad_h = l->pad,
                       .pad_w = l->pad,
                       .dil_h = l->dil,
                       .dil_w = l->dil,
                       .remove_center = l->remove_center,
                       .softmax = l->softmax,
                       .offset_scale = l->scale,
                       .x_row = p->C + m->gap,
                       .offset_row = p->row,
                       .offset_group = p->off_group,
                       .mask_row = p->mask_row,
                       .mask_group = p->mask_group,
                       .acc_gx = m->accumulate,
                       .acc_goffset = m->accumulate,
                       .acc_gmask = m->accumulate};
}

/* x as the engine gets it: NaN in the gaps. */
static buffer spread_x(const problem *p, const mode *m) {
  const int64_t pixels = p->n_x / (p->C ? p->C : 1), apart = p->C + m->gap;
  double *v = numbers(pixels * apart);
  for (int64_t i = 0; i < pixels * apart; i++)
    v[i] = i % apart < p->C ? p->x[i / apart * p->C + i % apart] : NAN;
  buffer b = to_device(m->k, m->type, v, pixels * apart, m->skew);
  free(v);
  return b;
}

/* Runs both kernels on an engine (with gaps: only the forward one). */
static results run(const problem *p, mode m) {
  ii_kctx *k = m.k;
  const bool one = packed(p), on_gpu = k->device == II_CUDA;
  ii_dcn_args a = arguments(p, &m);
  buffer in[4] = {spread_x(p, &m), to_device(k, m.om, p->off, p->n_off, 0),
                  one ? (buffer){0} : to_device(k, m.om, p->mask, p->n_mask, 0),
                  to_device(k, m.type, p->gy, p->n_y, m.skew)};
  buffer out[RESULTS] = {{0}};
  results r = {{0}};
  for (int i = 0; i < RESULTS; i++) {
    int64_t n = result_numel(p, i);
    if (i > Y && (!(m.want >> i & 1) || (one && i == GMASK))) continue;
    double *fill = numbers(n);
    for (int64_t j = 0; j < n; j++) fill[j] = i > Y && m.accumulate ? 1 : NAN;
    out[i] = to_device(k, i == Y || i == GX ? m.type : m.om, fill, n, m.skew);
    free(fill);
  }
  const size_t behind = (size_t)p->behind * ii_dtype_size(m.om);
  a.x = in[0].p;
  a.offset = in[1].p;
  a.mask = one ? (char *)in[1].p + behind : in[2].p;
  a.gy = in[3].p;
  a.y = out[Y].p;
  a.gx = out[GX].p;
  a.goffset = out[GOFFSET].p;
  a.gmask = one && out[GOFFSET].p ? (char *)out[GOFFSET].p + behind : out[GMASK].p;
  ok(k, on_gpu ? ii_cuda_dcn_fwd(k, &a) : ii_cpu_dcn_fwd(k, &a));
  if (m.want) ok(k, on_gpu ? ii_cuda_dcn_bwd(k, &a) : ii_cpu_dcn_bwd(k, &a));
  ok(k, ii_device_sync(k));
  for (int i = 0; i < RESULTS; i++)
    if (out[i].base)
      r.v[i] = to_host(k, i == Y || i == GX ? m.type : m.om, &out[i], result_numel(p, i));
  for (int i = 0; i < 4; i++) release(k, &in[i]);
  for (int i = 0; i < RESULTS; i++) release(k, &out[i]);
  return r;
}

static results reference(const problem *p, bool accumulate) {
  return run(p, (mode){&cpu, II_F64, II_F64, 0, accumulate, ALL});
}

/* ---- Error bounds -----------------------------------------------------------------------------*/

/* S and n of the head of this file, for every result; gmask's are with goffset's in one array. */
typedef struct {
  double *sum[RESULTS], *terms[RESULTS];
} magnitude;

static double position(const layout *l, int64_t out, int tap, int extent, double delta) {
  int64_t half = ((int64_t)l->dil * (extent - 1)) >> 1;
  return (double)(out * l->stride - l->pad + half) +
         ((double)(tap * l->dil - half) + delta) * l->scale;
}

/* One group of one output: its modulations, and what their gradients consist of. */
static void magnitude_unit(const problem *p, magnitude *q, int64_t row, int64_t g) {
  const layout *l = &p->l;
  const int64_t n = row / (p->Ho * p->Wo), ho = row / p->Wo % p->Ho, wo = row % p->Wo;
  const int64_t at_off = row * p->row + g * p->off_group;
  const int64_t at_mask = row * p->mask_row + g * p->mask_group;
  double *gm = packed(p) ? q->sum[GOFFSET] + p->behind : q->sum[GMASK];
  double *gm_terms = packed(p) ? q->terms[GOFFSET] + p->behind : q->terms[GMASK];
  const double *logit = p->mask + at_mask;
  double most = -INFINITY, all = 0, mean = 0;
  for (int64_t k = 0; k < p->K; k++) most = fmax(most, logit[k]);
  for (int64_t k = 0; k < p->K; k++) all += exp(logit[k] - most);
  int64_t k = 0;
  for (int i = 0; i < l->kw; i++)
    for (int j = 0; j < l->kh; j++) {
      if (l->remove_center && i == l->kw / 2 && j == l->kh / 2) continue;
      const double m = l->softmax ? exp(logit[k] - most) / all : fabs(logit[k]);
      const double px = position(l, wo, i, l->kw, p->off[at_off + 2 * k]);
      const double py = position(l, ho, j, l->kh, p->off[at_off + 2 * k + 1]);
      double s[4] = {0}, lx = px - floor(px), ly = py - floor(py);
      for (int c = 0; c < 4 && px > -1 && py > -1 && px < (double)l->W && py < (double)l->H; c++) {
        const int64_t x = (int64_t)floor(px) + c % 2, y = (int64_t)floor(py) + c / 2;
        if (x < 0 || y < 0 || x >= l->W || y >= l->H) continue;
        const double a = (c % 2 ? lx : 1 - lx) * (c / 2 ? ly : 1 - ly);
        for (int64_t d = 0; d < l->D; d++) {
          const int64_t to = row * p->C + g * l->D + d;
          const int64_t from = ((n * l->H + y) * l->W + x) * p->C + g * l->D + d;
          q->sum[Y][to] += m * a * fabs(p->x[from]);
          q->terms[Y][to] += 1;
          q->sum[GX][from] += m * a * fabs(p->gy[to]);
          q->terms[GX][from] += 1;
          s[c] += fabs(p->gy[to] * p->x[from]);
        }
      }
      q->sum[GOFFSET][at_off + 2 * k] =
          l->scale * m * ((1 - ly) * (s[0] + s[1]) + ly * (s[2] + s[3]));
      q->sum[GOFFSET][at_off + 2 * k + 1] =
          l->scale * m * ((1 - lx) * (s[0] + s[2]) + lx * (s[1] + s[3]));
      gm[at_mask + k] =
          (1 - ly) * ((1 - lx) * s[0] + lx * s[1]) + ly * ((1 - lx) * s[2] + lx * s[3]);
      mean += m * gm[at_mask + k];
      q->terms[GOFFSET][at_off + 2 * k] = q->terms[GOFFSET][at_off + 2 * k + 1] =
          (double)(4 * l->D);
      gm_terms[at_mask + k] = (double)(4 * l->D + (l->softmax ? p->K : 0));
      k++;
    }
  for (k = 0; k < p->K && l->softmax; k++)
    gm[at_mask + k] = exp(logit[k] - most) / all * (gm[at_mask + k] + mean);
}

static magnitude magnitudes(const problem *p) {
  magnitude q;
  for (int i = 0; i < RESULTS; i++) {
    int64_t n = result_numel(p, i);
    q.sum[i] = calloc((size_t)n + 1, sizeof(double));
    q.terms[i] = calloc((size_t)n + 1, sizeof(double));
    assert_true(q.sum[i] && q.terms[i]);
  }
  for (int64_t row = 0; row < p->rows; row++)
    for (int64_t g = 0; g < p->l.G; g++) magnitude_unit(p, &q, row, g);
  return q;
}

static void magnitude_free(magnitude *q) {
  for (int i = 0; i < RESULTS; i++) free(q->sum[i]), free(q->terms[i]);
}

static double roundoff(ii_dtype t) {
  return t == II_F64 ? 0x1p-53 : t == II_F32 ? 0x1p-24 : t == II_F16 ? 0x1p-11 : 0x1p-8;
}

static void compare(const problem *p, const mode *m, const magnitude *q, const results *got,
                    const results *want) {
  for (int i = 0; i < RESULTS; i++) {
    if (!got->v[i]) continue;
    const ii_dtype t = i == Y || i == GX ? m->type : m->om;
    const double u = roundoff(ii_dtype_real(m->type)), v = roundoff(t);
    const double least = t == II_F16 ? 0x1p-25 : 0; /* subnormal results */
    for (int64_t j = 0; j < result_numel(p, i); j++) {
      double a = got->v[i][j], b = want->v[i][j];
      double size = m->accumulate && i > Y ? q->sum[i][j] + 1 : q->sum[i][j];
      double bound = v * fabs(b) + (q->terms[i][j] + 16 + 16 * p->l.softmax) * u * size + least;
      if (m->type == II_F64) bound *= 2; /* the reference has errors of its own */
      if ((isnan(b) && isnan(a)) || fabs(a - b) <= bound * (1 + v)) continue;
      fail_msg("%s (%s, offsets %s%s%s): %s[%lld] is %.9g, not %.9g; allowed %.2g", p->l.name,
               ii_dtype_name(m->type), ii_dtype_name(m->om), m->accumulate ? ", added" : "",
               m->k->deterministic ? ", ordered" : "", result_name[i], (long long)j, a, b, bound);
    }
  }
}

/* ---- Tests ------------------------------------------------------------------------------------*/

static const layout layouts[] = {
    {"7x7, 2 groups of 16", V3, 2, 7, 7, 2, 16, K3, true, 1, 0x1p-4},
    {"7x7, 2 groups of 32", V4, 2, 7, 7, 2, 32, K3, false, 1, 0x1p-4},
    {"5x4, 2 groups of 64", V3, 2, 5, 4, 2, 64, K3, false, 1, 0x1p-4},
    {"3x2, 80 groups of 16", V4, 1, 3, 2, 80, 16, K3, false, 1, 0x1p-5},
    {"2x2, 128 groups of 32", V3, 1, 2, 2, 128, 32, K3, true, 1, 0x1p-5},
    {"300 maps of 2x2", V3, 300, 2, 2, 1, 8, K3, true, 1, 0x1p-5},
    {"300 maps of 2x2, packed", V4, 300, 2, 2, 1, 8, K3, false, 1, 0x1p-5},
    {"stride 2", V3, 2, 9, 8, 2, 16, 3, 3, 2, 1, 1, false, true, 1, 0x1p-4},
    {"stride 2, packed", V4, 2, 7, 7, 3, 16, 3, 3, 2, 1, 1, false, false, 0.5, 0x1p-4},
    {"far outside", V3, 2, 6, 5, 2, 16, K3, true, 1, 0.75},
    {"far outside, packed", V4, 2, 5, 6, 2, 32, K3, false, 1, 0.75},
    {"centre removed", V3, 2, 6, 7, 2, 16, 3, 3, 1, 1, 1, true, true, 2, 0x1p-4},
    {"centre removed, packed", V4, 1, 6, 7, 3, 16, 3, 3, 1, 1, 1, true, false, 0.5, 0x1p-4},
    {"5x5 window, groups of 8", V3, 1, 7, 8, 2, 8, 5, 5, 1, 2, 1, false, true, 1, 0x1p-4},
    {"7x7 window, groups of 4", V4, 1, 7, 7, 2, 4, 7, 7, 1, 3, 1, false, false, 1, 0x1p-4},
    {"1x1 window", V4, 2, 5, 4, 2, 6, 1, 1, 1, 0, 1, false, false, 1, 0x1p-4},
    {"3x2 window", V3, 1, 5, 6, 2, 6, 3, 2, 1, 1, 1, false, true, 1, 0x1p-4},
    {"dilation 2", V3, 1, 7, 6, 2, 12, 3, 3, 1, 2, 2, false, true, 1, 0x1p-4},
    {"3 groups of 5", V3, 2, 5, 7, 3, 5, K3, true, 1, 0x1p-4},
    {"7 groups of 1", V4, 1, 5, 3, 7, 1, K3, false, 1, 0x1p-4},
    {"2 groups of 40", V3, 1, 4, 5, 2, 40, K3, true, 1, 0x1p-4},
    {"group of 33", V3, 1, 4, 4, 1, 33, K3, false, 1, 0x1p-4},
    {"group of 71", V4, 1, 3, 4, 1, 71, K3, true, 1, 0x1p-4},
    {"19x33, more than one tile", V3, 1, 19, 33, 1, 8, K3, true, 1, 0x1p-4},
    {"nothing left: 1x1 window, centre removed", V3, 1, 3, 3, 2, 4, 1, 1, 1, 0, 1, true, true, 1,
     1},
    {"6x5, one matrix", V3_JOINT, 2, 6, 5, 3, 16, K3, true, 1, 0x1p-4, 96},
    {"without images", V3, 0, 4, 4, 2, 16, K3, true, 1, 0x1p-4},
};

static const ii_dtype types[] = {II_F64, II_F32, II_F16, II_BF16};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static void as_in_double_precision(void **state) {
  for (int i = 0; i < COUNT(layouts); i++) {
    problem p = make(&layouts[i]);
    magnitude q = magnitudes(&p);
    results want[2] = {reference(&p, false), reference(&p, true)};
    for (int t = 0; t < COUNT(types); t++)
      for (int ordered = 0; ordered < 2; ordered++) {
        const bool add = (i + t + ordered) % 2;
        const mode m = {ordered ? &gpu_ordered : &gpu, types[t], types[t], 0, add, ALL};
        results got = run(&p, m);
        compare(&p, &m, &q, &got, &want[add]);
        results_free(&got);
      }
    results_free(&want[0]);
    results_free(&want[1]);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* x of one type, offsets of another; pointers that do not suit vectors. */
static void mixed_types_and_misaligned(void **state) {
  static const struct {
    ii_dtype type, om;
    int skew;
  } modes[] = {{II_F16, II_F32, 0},  {II_BF16, II_F32, 0}, {II_F32, II_F16, 0},
               {II_F32, II_BF16, 0}, {II_F16, II_F16, 1},  {II_BF16, II_BF16, 2},
               {II_F32, II_F32, 1},  {II_F64, II_F64, 1}};
  for (int i = 0; i < 4; i++) {
    problem p = make(&layouts[i]);
    magnitude q = magnitudes(&p);
    results want[2] = {reference(&p, false), reference(&p, true)};
    for (int j = 0; j < COUNT(modes); j++) {
      const mode m = {
          j % 3 ? &gpu : &gpu_ordered, modes[j].type, modes[j].om, modes[j].skew, j % 2, ALL};
      results got = run(&p, m);
      compare(&p, &m, &q, &got, &want[j % 2]);
      results_free(&got);
    }
    results_free(&want[0]);
    results_free(&want[1]);
    magnitude_free(&q);
    unmake(&p);
  }
}

static void same_bits(const double *a, const double *b, int64_t n, const char *what,
                      const char *name) {
  if (a && b && memcmp(a, b, (size_t)n * sizeof *a)) fail_msg("%s: %s differs", name, what);
}

/* Image n of p as a problem of its own; shares p's memory. */
static problem image_of(const problem *p, int64_t n) {
  problem one = *p;
  const int64_t N = p->l.N;
  one.l.N = 1;
  one.rows /= N;
  one.n_x /= N;
  one.n_y /= N;
  one.n_off /= N;
  one.n_mask /= N;
  one.x += n * one.n_x;
  one.gy += n * one.n_y;
  one.off += n * one.n_off;
  one.mask += n * (packed(p) ? one.n_off : one.n_mask);
  return one;
}

/* Every seventh offset becomes NaN, infinite or enormous. */
static void spoil_offsets(problem *p) {
  static const double bad[] = {NAN, INFINITY, -60000};
  for (int64_t t = 0; t < p->rows * p->l.G * p->K; t += 7) {
    const int64_t unit = t / p->K, G = p->l.G;
    p->off[unit / G * p->row + unit % G * p->off_group + 2 * (t % p->K) + t % 2] = bad[t % 3];
  }
}

/* Bit for bit, also gx where its order is fixed. */
static void images_do_not_depend_on_their_batch(void **state) {
  static const layout some[] = {
      {"7x7", V4, 5, 7, 7, 4, 16, K3, false, 1, 0x1p-4},
      {"14x14", V3, 3, 14, 14, 2, 16, K3, true, 1, 0x1p-4},
      {"28x28", V4, 3, 28, 28, 1, 16, K3, false, 1, 0x1p-3},
      {"14x14, stride 2", V3, 3, 14, 14, 3, 32, 3, 3, 2, 1, 1, false, true, 1, 0x1p-4},
      {"7x7, 3 groups of 5", V3, 4, 7, 7, 3, 5, K3, true, 1, 0x1p-4},
      {"2x1, 80 groups of 16", V4, 3, 2, 1, 80, 16, K3, false, 1, 0x1p-5},
      {"2x1, 128 groups of 32", V3, 3, 2, 1, 128, 32, K3, true, 1, 0x1p-5},
      {"300 images of 2x2", V4, 300, 2, 2, 2, 16, K3, false, 1, 0x1p-4},
      {"far outside and no numbers", V3, 5, 6, 5, 2, 16, K3, true, 1, 0.75},
      {"far outside and no numbers, packed", V4, 5, 5, 6, 2, 32, K3, false, 1, 0.75},
  };
  for (int i = 0; i < COUNT(some); i++)
    for (int t = 1; t < COUNT(types); t++) {
      problem p = make(&some[i]);
      if (strstr(p.l.name, "no numbers")) spoil_offsets(&p);
      const mode m = {&gpu_ordered, types[t], types[t], 0, false, ALL};
      results all = run(&p, m);
      for (int64_t n = 0; n<p.l.N; n += p.l.N> 8 ? 23 : 2) {
        problem one = image_of(&p, n);
        results r = run(&one, m);
        for (int j = 0; j < RESULTS; j++)
          if (r.v[j])
            same_bits(r.v[j], all.v[j] + n * result_numel(&one, j), result_numel(&one, j),
                      result_name[j], some[i].name);
        results_free(&r);
      }
      results_free(&all);
      unmake(&p);
    }
}

/* The same once more, and each gradient alone. */
static void ordered_results_repeat(void **state) {
  for (int i = 0; i < 3; i++)
    for (int t = 1; t < COUNT(types); t++) {
      problem p = make(&layouts[i]);
      mode m = {&gpu_ordered, types[t], types[t], 0, false, ALL};
      results first = run(&p, m);
      for (unsigned want = ALL; want; want = want == ALL ? 1 << GMASK : want == 2 ? 0 : want >> 1) {
        m.want = want;
        results again = run(&p, m);
        for (int j = 0; j < RESULTS; j++)
          same_bits(again.v[j], first.v[j], result_numel(&p, j), result_name[j], p.l.name);
        results_free(&again);
      }
      results_free(&first);
      unmake(&p);
    }
}

/* Taps whose offsets are no numbers, or infinite, or enormous, are as taps far outside; and what is
 * outside is not read: an infinite pixel does no harm to others. */
static void offsets_that_are_no_numbers(void **state) {
  static const double bad[] = {NAN, INFINITY, -INFINITY, 60000, -60000};
  for (int i = 0; i < 4; i++)
    for (int t = 0; t < COUNT(types); t++) {
      problem p = make(&layouts[i]), far = make(&layouts[i]);
      ii_rng r = ii_rng_make(SEED, II_RNG_TEST, 1, 0);
      const int64_t units = p.rows * p.l.G, G = p.l.G;
      for (int64_t u = 0; u < units * p.K; u += 1 + (int64_t)ii_rng_below(&r, 9)) {
        const int64_t unit = u / p.K, k = u % p.K;
        const int64_t at = unit / G * p.row + unit % G * p.off_group + 2 * k;
        p.off[at + (int64_t)ii_rng_below(&r, 2)] = bad[ii_rng_below(&r, 5)];
        far.off[at] = far.off[at + 1] = 1000;
      }
      const mode m = {&gpu_ordered, types[t], types[t], 0, false, ALL};
      results a = run(&p, m), b = run(&far, m);
      for (int j = 0; j < RESULTS; j++)
        same_bits(a.v[j], b.v[j], result_numel(&p, j), result_name[j], p.l.name);
      results_free(&a);
      results_free(&b);
      unmake(&p);
      unmake(&far);
    }
}

static void nothing_outside_is_read(void **state) {
  for (int t = 0; t < COUNT(types); t++) {
    problem p = make(&layouts[2]);
    for (int64_t i = 0; i < p.n_x; i++) p.x[i] = INFINITY;
    for (int64_t i = 0; i < p.n_mask; i++) p.mask[i] = i % 2 ? NAN : INFINITY;
    for (int64_t i = 0; i < p.n_off; i++) p.off[i] = i % 4 < 2 ? -100 : NAN;
    const mode m = {t % 2 ? &gpu : &gpu_ordered, types[t], types[t], 0, false, ALL};
    results r = run(&p, m);
    for (int j = 0; j < RESULTS; j++)
      for (int64_t i = 0; i < result_numel(&p, j); i++)
        if (r.v[j][i] != 0) fail_msg("%s[%lld] is %g", result_name[j], (long long)i, r.v[j][i]);
    results_free(&r);
    unmake(&p);
  }
}

/* gx in 16 bits goes through scratch memory for some images at a time: here 2 and then 1. */
static void large_images_in_turns(void **state) {
  static const layout large = {"448x448", V3, 3, 448, 448,   1,    16, 3,
                               3,         97, 1, 1,   false, true, 1,  0x1p-3};
  problem p = make(&large);
  magnitude q = magnitudes(&p);
  results want = reference(&p, true);
  const mode m = {&gpu, II_F16, II_F16, 0, true, ALL};
  results got = run(&p, m);
  compare(&p, &m, &q, &got, &want);
  results_free(&got);
  results_free(&want);
  magnitude_free(&q);
  unmake(&p);
}

/* ---- The forward kernel for tiles -------------------------------------------------------------*/

/* Tiles that the image does not fill, several chunks of groups, few and many of them. */
static const layout tiled[] = {
    {"2x2", V4, 1, 2, 2, 4, 16, K3, false, 1, 0x1p-4},
    {"9x13, far", V4, 2, 9, 13, 4, 16, K3, false, 1, 0x1p-2},
    {"9x13 softmax", V3_JOINT, 2, 9, 13, 4, 16, K3, true, 1, 0x1p-4, 128},
    {"17x10, 5 groups", V4, 1, 17, 10, 5, 16, K3, false, 2, 0x1p-4},
    {"3x17, 14 groups", V4, 2, 3, 17, 14, 16, K3, false, 0.5, 0x1p-4},
    {"7x7, 20 groups", V3_JOINT, 1, 7, 7, 20, 16, K3, true, 1, 0x1p-4, 544},
    {"7x7, 20 groups, two tensors", V3, 1, 7, 7, 20, 16, K3, true, 1, 0x1p-4},
    {"many 2x3", V4, 40, 2, 3, 1, 16, K3, false, 1, 0x1p-4},
    {"9x10, 4 groups of 32", V4, 2, 9, 10, 4, 32, K3, false, 1, 0x1p-4},
    {"9x10, 4 groups of 32, softmax", V3_JOINT, 2, 9, 10, 4, 32, K3, true, 1, 0x1p-3, 128},
    {"10x3, 3 groups of 64", V4, 2, 10, 3, 3, 64, K3, false, 1, 0x1p-4},
    {"3x9, 3 groups of 64, softmax", V3_JOINT, 1, 3, 9, 3, 64, K3, true, 1, 0x1p-4, 96},
    {"7x9, odd rows", V4, 2, 7, 9, 4, 16, K3, false, 1, 0x1p-4, 109},
    {"5x9, odd rows", V3_JOINT, 2, 5, 9, 9, 32, K3, true, 1, 0x1p-4, 251},
    {"5x6, separate odd rows", V3, 2, 5, 6, 3, 32, K3, true, 1, 0x1p-4},
};

static bool runs_tiled(const problem *p, const mode *m) {
  ii_dcn_args a = arguments(p, m);
  const uintptr_t size = ii_dtype_size(m->type);
  a.x = (void *)(4096 + (uintptr_t)m->skew * size);
  a.y = (void *)(8192 + (uintptr_t)m->skew * size);
  a.offset = (void *)(uintptr_t)16384;
  a.mask = packed(p) ? (char *)(uintptr_t)16384 + (size_t)p->behind * ii_dtype_size(m->om)
                     : (void *)(uintptr_t)32768;
  return ii_cuda_dcn_fwd_is_tiled(&a);
}

/* Against the CPU in double precision, and bit for bit what the other kernel computes, which gets
 * the calls with misaligned pointers. */
static void tiles_as_in_double_precision(void **state) {
  for (int i = 0; i < COUNT(tiled); i++) {
    problem p = make(&tiled[i]);
    magnitude q = magnitudes(&p);
    results want = run(&p, (mode){&cpu, II_F64, II_F64, 0, false, 0, 0});
    for (int t = 1; t < COUNT(types); t++) {
      results first = {{0}};
      for (int j = 0; j < 4; j++) {
        const mode m = {&gpu, types[t], types[t], j == 3, false, 0, (int64_t[]){0, 8, 3, 0}[j]};
        if (runs_tiled(&p, &m) != (j < 2))
          fail_msg("%s (%s, %d): wrong kernel", p.l.name, ii_dtype_name(m.type), j);
        results got = run(&p, m);
        compare(&p, &m, &q, &got, &want);
        if (j) same_bits(got.v[Y], first.v[Y], p.n_y, j < 2 ? "y" : "other y", p.l.name);
        if (j) results_free(&got);
        if (!j) first = got;
      }
      results_free(&first);
    }
    results_free(&want);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* Corners outside have no term: what is not finite inside, or in the modulations of taps outside,
 * does not reach those who do not sample it. The other kernel looks at every corner. */
static void tiles_with_what_is_not_finite(void **state) {
  static const double bad[] = {INFINITY, NAN, -INFINITY};
  for (int i = 0; i < COUNT(tiled); i++)
    for (int t = 1; t < COUNT(types); t++) {
      problem p = make(&tiled[i]);
      for (int64_t n = 0; n < p.n_x; n += 3 * p.l.D + 1) p.x[n] = bad[n % 3];
      if (i % 2) spoil_offsets(&p);
      for (int64_t n = 0; n < p.rows; n += 5) { /* a tap far outside with any modulation */
        p.off[n * p.row] = -500;
        p.mask[n * p.mask_row] = p.l.softmax ? 1 : bad[n / 5 % 3];
      }
      const mode m = {&gpu, types[t], types[t], 0, false, 0, 0};
      const mode other = {&gpu, types[t], types[t], 1, false, 0, 0};
      results a = run(&p, m), b = run(&p, other);
      int64_t finite = 0, not_finite = 0;
      for (int64_t n = 0; n < p.n_y; n++) {
        const double v = a.v[Y][n], w = b.v[Y][n];
        if (isnan(v) ? !isnan(w) : v != w)
          fail_msg("%s: y[%lld] is %g, not %g", p.l.name, (long long)n, v, w);
        *(isfinite(v) ? &finite : &not_finite) += 1;
      }
      assert_true(finite > 0 && not_finite > 0);
      results_free(&a);
      results_free(&b);
      unmake(&p);
    }
}

/* The stages of every published model, and the shapes of the papers' tables. */
static void published_shapes_run_tiled(void **state) {
  static const int64_t stages[][4] = {
      /* H, W, C, D */
      {56, 56, 64, 16},   {28, 28, 128, 16},   {14, 14, 256, 16},   {7, 7, 512, 16},
      {56, 56, 80, 16},   {28, 28, 160, 16},   {14, 14, 320, 16},   {7, 7, 640, 16},
      {56, 56, 112, 16},  {28, 28, 224, 16},   {14, 14, 448, 16},   {7, 7, 896, 16},
      {96, 96, 160, 16},  {48, 48, 320, 16},   {24, 24, 640, 16},   {12, 12, 1280, 16},
      {96, 96, 192, 16},  {48, 48, 384, 16},   {24, 24, 768, 16},   {12, 12, 1536, 16},
      {56, 56, 320, 32},  {28, 28, 640, 32},   {14, 14, 1280, 32},  {7, 7, 2560, 32},
      {56, 56, 128, 32},  {28, 28, 256, 32},   {14, 14, 512, 32},   {7, 7, 1024, 32},
      {14, 14, 768, 32},  {200, 320, 128, 32}, {100, 160, 256, 32}, {50, 80, 512, 32},
      {25, 40, 1024, 32}, {64, 64, 768, 32},   {56, 56, 256, 64},   {200, 320, 512, 64}};
  for (int i = 0; i < COUNT(stages); i++)
    for (int t = 1; t < COUNT(types); t++)
      for (int version = 0; version < 2; version++) {
        const int64_t *s = stages[i], G = s[2] / s[3];
        const int64_t row = version ? (27 * G + 7) / 8 * 8 : (27 * G + 31) / 32 * 32;
        const layout l = {"", version ? V4 : V3_JOINT, 64, s[0], s[1], G, s[3], K3, !version, 1, 1,
                          row};
        const problem p = {.l = l,
                           .K = 9,
                           .Ho = s[0],
                           .Wo = s[1],
                           .C = s[2],
                           .row = row,
                           .off_group = version ? 27 : 18,
                           .mask_row = row,
                           .mask_group = version ? 27 : 9,
                           .behind = version ? 18 : 18 * G};
        for (int64_t gap = 0; gap <= row; gap += row) {
          const mode m = {&gpu, types[t], types[t], 0, false, 0, gap};
          if (!runs_tiled(&p, &m))
            fail_msg("%lldx%lldx%lld, groups of %lld (%s) does not", (long long)s[0],
                     (long long)s[1], (long long)s[2], (long long)s[3], ii_dtype_name(types[t]));
        }
      }
}

static void what_cannot_be_done_is_said(void **state) {
  layout l = layouts[0];
  problem p = make(&l);
  const mode m = {&gpu, II_F32, II_F32, 0, false, ALL};
  ii_dcn_args a = arguments(&p, &m);
  a.H = 1 << 25;
  assert_int_equal(ii_cuda_dcn_fwd(&gpu, &a), 1);
  assert_non_null(strstr(gpu.error, "too large; split it into tiles"));
  a = arguments(&p, &m);
  a.kh = a.kw = 200;
  assert_int_equal(ii_cuda_dcn_fwd(&gpu, &a), 1);
  assert_non_null(strstr(gpu.error, "40000 taps; use a smaller window"));
  unmake(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(as_in_double_precision),
      cmocka_unit_test(mixed_types_and_misaligned),
      cmocka_unit_test(images_do_not_depend_on_their_batch),
      cmocka_unit_test(ordered_results_repeat),
      cmocka_unit_test(offsets_that_are_no_numbers),
      cmocka_unit_test(nothing_outside_is_read),
      cmocka_unit_test(large_images_in_turns),
      cmocka_unit_test(tiles_as_in_double_precision),
      cmocka_unit_test(tiles_with_what_is_not_finite),
      cmocka_unit_test(published_shapes_run_tiled),
      cmocka_unit_test(what_cannot_be_done_is_said),
  };
  if (ii_cuda_device_count() == 0) {
    fprintf(stderr, "no GPU: skipped\n");
    return 77;
  }
  ii_engine_options o = {.device = II_CPU, .threads = 2};
  if (ii_engine_open(&cpu, &o)) return fprintf(stderr, "%s\n", cpu.error), 1;
  o.device = II_CUDA;
  if (ii_engine_open(&gpu, &o)) return fprintf(stderr, "%s\n", gpu.error), 1;
  o.deterministic = true;
  if (ii_engine_open(&gpu_ordered, &o)) return fprintf(stderr, "%s\n", gpu_ordered.error), 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  ii_engine_close(&gpu_ordered);
  ii_engine_close(&gpu);
  ii_engine_close(&cpu);
  return failed;
}
