/* For tests of deformable convolution on the CUDA engine against the CPU engine in double
 * precision: problems, running them, error bounds.
 *
 * All inputs are exact in every tested type, and sampling positions are too (offsets are odd
 * multiples of a power of two, so that no sample lies on a pixel centre, where derivatives jump).
 * What remains is the rounding of sums and of results: with u the unit roundoff of the accumulator,
 * v that of the result's type, and S the sum of the absolute values of the n terms of a result r,
 *     |error| <= v |r| + (n + 16) u S
 * where 16 stands for the operations inside a term (bilinear weights, modulation), and for the
 * softmax 16 more: exp is good to 2 units, applied to differences of two exact logits. For gx in 16
 * bits w S more, w = 2^-22 (fp16) or 2^-17 (bf16): the GPU's product of matrices has the weights as
 * the sum of two numbers of that type. Kernels other than the engine's bring a w of their own, for
 * y and gx. */
#ifndef II_TEST_CUDA_DCN_H
#define II_TEST_CUDA_DCN_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "autograd/rng.h"
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

static ii_kctx cpu, gpu; /* opened by main */

/* What run() calls on the GPU, NULL: nothing, and w of the error bounds. */
typedef struct {
  int (*forward)(ii_kctx *k, const ii_dcn_args *a), (*backward)(ii_kctx *k, const ii_dcn_args *a);
  double f16_weights, bf16_weights;
} gpu_kernels;
static gpu_kernels tested = {ii_cuda_dcn_fwd, ii_cuda_dcn_bwd, 0x1p-22, 0x1p-17};

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

/* x or gx as the engine gets it: `between` in the gaps. */
static buffer spread(const problem *p, const mode *m, const double *x, double between) {
  const int64_t pixels = p->n_x / (p->C ? p->C : 1), apart = p->C + m->gap;
  double *v = numbers(pixels * apart);
  for (int64_t i = 0; i < pixels * apart; i++)
    v[i] = i % apart < p->C ? x[i / apart * p->C + i % apart] : between;
  buffer b = to_device(m->k, m->type, v, pixels * apart, m->skew);
  free(v);
  return b;
}

/* gx without its gaps, which must hold what `spread` put there. */
static double *gather_gx(const problem *p, const mode *m, const buffer *b, double between) {
  const int64_t pixels = p->n_x / (p->C ? p->C : 1), apart = p->C + m->gap;
  double *all = to_host(m->k, m->type, b, pixels * apart), *v = numbers(p->n_x);
  for (int64_t i = 0; i < pixels * apart; i++)
    if (i % apart < p->C)
      v[i / apart * p->C + i % apart] = all[i];
    else if (all[i] != between)
      fail_msg("%s (%s): %g between pixels of gx", p->l.name, ii_dtype_name(m->type), all[i]);
  free(all);
  return v;
}

/* Runs both kernels on an engine. */
static results run(const problem *p, mode m) {
  ii_kctx *k = m.k;
  const bool one = packed(p), on_gpu = k->device == II_CUDA;
  ii_dcn_args a = arguments(p, &m);
  buffer in[4] = {spread(p, &m, p->x, NAN), to_device(k, m.om, p->off, p->n_off, 0),
                  one ? (buffer){0} : to_device(k, m.om, p->mask, p->n_mask, 0),
                  to_device(k, m.type, p->gy, p->n_y, m.skew)};
  buffer out[RESULTS] = {{0}};
  results r = {{0}};
  for (int i = 0; i < RESULTS; i++) {
    int64_t n = result_numel(p, i);
    if (i > Y && (!(m.want >> i & 1) || (one && i == GMASK))) continue;
    if (i == Y && on_gpu && !tested.forward) continue;
    double *fill = numbers(n);
    for (int64_t j = 0; j < n; j++) fill[j] = i > Y && m.accumulate ? 1 : NAN;
    out[i] =
        i == GX ? spread(p, &m, fill, 5) : to_device(k, i == Y ? m.type : m.om, fill, n, m.skew);
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
  if (a.y) ok(k, on_gpu ? tested.forward(k, &a) : ii_cpu_dcn_fwd(k, &a));
  if (m.want) ok(k, on_gpu ? tested.backward(k, &a) : ii_cpu_dcn_bwd(k, &a));
  ok(k, ii_device_sync(k));
  for (int i = 0; i < RESULTS; i++)
    if (out[i].base)
      r.v[i] = i == GX ? gather_gx(p, &m, &out[i], 5)
                       : to_host(k, i == Y ? m.type : m.om, &out[i], result_numel(p, i));
  for (int i = 0; i < 4; i++) release(k, &in[i]);
  for (int i = 0; i < RESULTS; i++) release(k, &out[i]);
  return r;
}

static results reference(const problem *p, bool accumulate) {
  return run(p, (mode){&cpu, II_F64, II_F64, 0, accumulate, ALL, 0});
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
      if ((i == GX || (i == Y && tested.forward != ii_cuda_dcn_fwd)) && ii_dtype_size(t) == 2)
        bound += (t == II_F16 ? tested.f16_weights : tested.bf16_weights) * q->sum[i][j];
      if (m->type == II_F64) bound *= 2; /* the reference has errors of its own */
      if ((isnan(b) && isnan(a)) || fabs(a - b) <= bound * (1 + v)) continue;
      fail_msg("%s (%s, offsets %s%s): %s[%lld] is %.9g, not %.9g; allowed %.2g", p->l.name,
               ii_dtype_name(m->type), ii_dtype_name(m->om), m->accumulate ? ", added" : "",
               result_name[i], (long long)j, a, b, bound);
    }
  }
}

/* ---- Comparisons of bits, engines -------------------------------------------------------------*/

static const ii_dtype types[] = {II_F64, II_F32, II_F16, II_BF16};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

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

/* An infinite modulation for a tap that is half outside: the first one of every image's first
 * output, moved to between the rows above the image and in it. Not with softmax. */
static inline void spoil_margin(problem *p) {
  for (int64_t n = 0; n < p->rows && !p->l.softmax; n += p->rows / p->l.N) {
    p->off[n * p->row] = (p->l.scale + 0.5) / p->l.scale;
    p->off[n * p->row + 1] = (p->l.scale - 0.5) / p->l.scale;
    p->mask[n * p->mask_row] = INFINITY;
  }
}

/* The engines; 0, or the exit status: 77 where there is no GPU. */
static int engines_open(void) {
  if (ii_cuda_device_count() == 0) {
    fprintf(stderr, "no GPU: skipped\n");
    return 77;
  }
  ii_engine_options o = {.device = II_CPU, .threads = 2};
  if (ii_engine_open(&cpu, &o)) return fprintf(stderr, "%s\n", cpu.error), 1;
  o.device = II_CUDA;
  if (ii_engine_open(&gpu, &o)) return fprintf(stderr, "%s\n", gpu.error), 1;
  return 0;
}

static void engines_close(void) {
  ii_engine_close(&gpu);
  ii_engine_close(&cpu);
}

#endif
