/* Both passes are sums over a few neighbours with integer weights. For the compiler to use vector
 * instructions, 16 rows are turned at a time so that the innermost loop of the horizontal pass runs
 * over the rows (and channels), as that of the vertical pass runs along a row. Integer sums have no
 * rounding, so the order does not matter for the result. */
#include "data/resize.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "data/resize_quads.h"

/* The weights must not depend on whether the processor has fused multiply-add. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#define WEIGHT_BITS 22
#define MAX_SIDE    (INT64_C(1) << 20)
#define ROWS        16 /* rows turned at a time */
#define LANES       (ROWS * 3)

/* For each output position: the first input position, the number of them, and the weights. */
typedef struct {
  int64_t taps; /* room per output position */
  int32_t *first, *count;
  int32_t *weight; /* [out, taps] */
  double *exact;   /* [taps]: the weights of one position before rounding */
  int64_t out_capacity, weight_capacity, exact_capacity;
} coefficients;

struct ii_resizer {
  coefficients x, y;
  ii_quads *quads; /* NULL: this file does both passes */
  uint8_t *middle; /* after the horizontal pass: [rows that are needed, out_w, 3] */
  uint8_t *turned; /* [box width, LANES] */
  int32_t *sums;   /* one output row of the vertical pass */
  int64_t middle_capacity, turned_capacity, sums_capacity;
};

ii_status ii_resizer_new(ii_resizer **resizer, ii_error *err) {
  ii_resizer *r = calloc(1, sizeof *r);
  if (!r) return ii_error_set(err, II_ERR_MEMORY, "no memory for a resizer");
  ii_status status = ii_quads_new(&r->quads, err);
  if (status != II_OK)
    free(r);
  else
    *resizer = r;
  return status;
}

void ii_resizer_use_portable(ii_resizer *r) {
  ii_quads_free(r->quads);
  r->quads = NULL;
}

static void coefficients_free(coefficients *c) {
  free(c->first);
  free(c->count);
  free(c->weight);
  free(c->exact);
}

void ii_resizer_free(ii_resizer *r) {
  if (!r) return;
  coefficients_free(&r->x);
  coefficients_free(&r->y);
  ii_quads_free(r->quads);
  free(r->middle);
  free(r->turned);
  free(r->sums);
  free(r);
}

/* Makes room for n elements at *p without keeping the content. */
static ii_status grow(void *p, int64_t *capacity, int64_t n, size_t element, ii_error *err) {
  void **at = p;
  if (n <= *capacity) return II_OK;
  free(*at);
  *at = malloc((size_t)n * element);
  *capacity = *at ? n : 0;
  if (!*at) return ii_error_set(err, II_ERR_MEMORY, "no memory to resize an image");
  return II_OK;
}

/* Keys' cubic with a = -1/2: (a+2)|x|^3 - (a+3)|x|^2 + 1 up to 1, a|x|^3 - 5a|x|^2 + 8a|x| - 4a up
 * to 2. */
static double cubic(double x) {
  const double a = -0.5;
  x = fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

static double triangle(double x) {
  x = fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

static int32_t fixed_point(double w) {
  double v = w * (1 << WEIGHT_BITS);
  return (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
}

/* The inputs lo..hi-1 that output i is made of. */
typedef struct {
  double scale, stretch, support;
} geometry;

static geometry geometry_of(int64_t in, int64_t out, ii_filter filter) {
  double scale = (double)in / (double)out, stretch = scale < 1.0 ? 1.0 : scale;
  return (geometry){scale, stretch, (filter == II_FILTER_BICUBIC ? 2.0 : 1.0) * stretch};
}

static double reach(const geometry *g, int64_t in, int64_t i, int64_t *lo, int64_t *hi) {
  double centre = ((double)i + 0.5) * g->scale;
  *lo = (int64_t)(centre - g->support + 0.5), *hi = (int64_t)(centre + g->support + 0.5);
  if (*lo < 0) *lo = 0;
  if (*hi > in) *hi = in;
  return centre;
}

/* The weights of the outputs from..from+n-1 when `in` pixels become `out`. */
static ii_status compute(coefficients *c, int64_t in, int64_t out, int64_t from, int64_t n,
                         ii_filter filter, ii_error *err) {
  geometry g = geometry_of(in, out, filter);
  double inverse = 1.0 / g.stretch;
  c->taps = (int64_t)ceil(g.support) * 2 + 1;
  int64_t capacity = c->out_capacity; /* shared by first and count */
  II_TRY(grow(&c->first, &capacity, n, sizeof *c->first, err));
  II_TRY(grow(&c->count, &c->out_capacity, n, sizeof *c->count, err));
  II_TRY(grow(&c->weight, &c->weight_capacity, n * c->taps, sizeof *c->weight, err));
  II_TRY(grow(&c->exact, &c->exact_capacity, c->taps, sizeof *c->exact, err));
  for (int64_t i = 0; i < n; i++) {
    int64_t lo, hi;
    double centre = reach(&g, in, from + i, &lo, &hi), sum = 0.0;
    for (int64_t j = lo; j < hi; j++) {
      double at = ((double)j - centre + 0.5) * inverse;
      double w = filter == II_FILTER_BICUBIC ? cubic(at) : triangle(at);
      c->exact[j - lo] = w;
      sum += w;
    }
    for (int64_t j = lo; j < hi; j++) {
      double w = sum != 0.0 ? c->exact[j - lo] / sum : c->exact[j - lo];
      c->weight[i * c->taps + j - lo] = fixed_point(w);
    }
    c->first[i] = (int32_t)lo, c->count[i] = (int32_t)(hi - lo);
  }
  return II_OK;
}

static inline uint8_t to_byte(int32_t sum) {
  sum >>= WEIGHT_BITS;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* `rows` (at most ROWS) rows of w pixels -> turned [w, LANES]: lane 3 r + c is channel c of row r.
 */
static void turn(const uint8_t *in, int64_t stride, int64_t w, int64_t rows, uint8_t *turned) {
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t *p = in + r * stride;
    uint8_t *t = turned + r * 3;
    for (int64_t x = 0; x < w; x++, p += 3, t += LANES) t[0] = p[0], t[1] = p[1], t[2] = p[2];
  }
}

static void horizontal_block(const coefficients *c, const uint8_t *turned, int64_t out_w,
                             int64_t rows, bool mirror, uint8_t *out) {
  for (int64_t x = 0; x < out_w; x++) {
    int32_t sum[LANES];
    uint8_t bytes[LANES];
    const int32_t *weight = c->weight + x * c->taps;
    const uint8_t *t = turned + (int64_t)c->first[x] * LANES;
    for (int l = 0; l < LANES; l++) sum[l] = 1 << (WEIGHT_BITS - 1);
    for (int32_t j = 0; j < c->count[x]; j++, t += LANES)
      for (int l = 0; l < LANES; l++) sum[l] += t[l] * weight[j];
    for (int l = 0; l < LANES; l++) bytes[l] = to_byte(sum[l]);
    uint8_t *to = out + (mirror ? out_w - 1 - x : x) * 3;
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * out_w * 3, bytes + r * 3, 3);
  }
}

static ii_status horizontal(ii_resizer *r, const uint8_t *in, int64_t stride, int64_t w,
                            int64_t rows, int64_t out_w, bool mirror, uint8_t *out, ii_error *err) {
  II_TRY(grow(&r->turned, &r->turned_capacity, w * LANES, 1, err));
  /* lanes without a row are computed and dropped, so they only need to be defined */
  if (rows < ROWS) memset(r->turned, 0, (size_t)(w * LANES));
  for (int64_t y = 0; y < rows; y += ROWS) {
    int64_t n = rows - y < ROWS ? rows - y : ROWS;
    turn(in + y * stride, stride, w, n, r->turned);
    horizontal_block(&r->x, r->turned, out_w, n, mirror, out + y * out_w * 3);
  }
  return II_OK;
}

/* in begins at input row `base`. */
static ii_status vertical(ii_resizer *r, const uint8_t *in, int64_t stride, int64_t base, int64_t w,
                          int64_t out_h, uint8_t *out, ii_error *err) {
  const coefficients *c = &r->y;
  int64_t n = w * 3;
  II_TRY(grow(&r->sums, &r->sums_capacity, n, sizeof *r->sums, err));
  int32_t *restrict sum = r->sums;
  for (int64_t y = 0; y < out_h; y++, out += n) {
    const uint8_t *p = in + (c->first[y] - base) * stride;
    for (int64_t i = 0; i < n; i++) sum[i] = 1 << (WEIGHT_BITS - 1);
    for (int32_t j = 0; j < c->count[y]; j++, p += stride) {
      int32_t weight = c->weight[y * c->taps + j];
      for (int64_t i = 0; i < n; i++) sum[i] += p[i] * weight;
    }
    for (int64_t i = 0; i < n; i++) out[i] = to_byte(sum[i]);
  }
  return II_OK;
}

static ii_status check_size(ii_box box, int64_t out_w, int64_t out_h, int64_t view_w,
                            ii_error *err) {
  if (box.w > MAX_SIDE || box.h > MAX_SIDE || out_w > MAX_SIDE * MAX_SIDE ||
      out_h > MAX_SIDE * MAX_SIDE || view_w > II_MAX_PIXELS_DEFAULT / box.h)
    return ii_error_set(err, II_ERR_FORMAT,
                        "an image of %lld x %lld pixels is too long and thin to be resized",
                        (long long)box.w, (long long)box.h);
  return II_OK;
}

static bool inside(ii_box b, int64_t w, int64_t h) {
  return b.left >= 0 && b.top >= 0 && b.w > 0 && b.h > 0 && b.left + b.w <= w && b.top + b.h <= h;
}

ii_box ii_resize_source(const ii_resize_job *j) {
  ii_box b = j->view;
  int64_t unused;
  if (j->out_w != j->box.w) {
    geometry g = geometry_of(j->box.w, j->out_w, j->filter);
    reach(&g, j->box.w, j->view.left, &b.left, &unused);
    reach(&g, j->box.w, j->view.left + j->view.w - 1, &unused, &b.w);
    b.w -= b.left;
  }
  if (j->out_h != j->box.h) {
    geometry g = geometry_of(j->box.h, j->out_h, j->filter);
    reach(&g, j->box.h, j->view.top, &b.top, &unused);
    reach(&g, j->box.h, j->view.top + j->view.h - 1, &unused, &b.h);
    b.h -= b.top;
  }
  b.left += j->box.left, b.top += j->box.top;
  return b;
}

void ii_mirror(uint8_t *pixels, int64_t w, int64_t h) {
  for (int64_t y = 0; y < h; y++, pixels += w * 3)
    for (int64_t a = 0, b = w - 1; a < b; a++, b--)
      for (int c = 0; c < 3; c++) {
        uint8_t v = pixels[a * 3 + c];
        pixels[a * 3 + c] = pixels[b * 3 + c];
        pixels[b * 3 + c] = v;
      }
}

/* Without a horizontal pass. in is the first pixel of the source. */
static ii_status same_width(ii_resizer *r, const ii_resize_job *j, const uint8_t *in,
                            int64_t stride, int64_t top, uint8_t *out, ii_error *err) {
  int64_t w = j->view.w;
  if (j->out_h != j->box.h)
    II_TRY(vertical(r, in, stride, top, w, j->view.h, out, err));
  else
    for (int64_t y = 0; y < j->view.h; y++)
      memcpy(out + y * w * 3, in + y * stride, (size_t)(w * 3));
  if (j->mirror) ii_mirror(out, w, j->view.h);
  return II_OK;
}

ii_status ii_resize(ii_resizer *r, const ii_resize_job *j, uint8_t *out, ii_error *err) {
  ii_box box = j->box, view = j->view, source = ii_resize_source(j);
  const ii_image *src = j->src;
  II_ASSERT(inside(view, j->out_w, j->out_h), "view %lld %lld %lld %lld of %lld x %lld",
            (long long)view.left, (long long)view.top, (long long)view.w, (long long)view.h,
            (long long)j->out_w, (long long)j->out_h);
  II_TRY(check_size(box, j->out_w, j->out_h, view.w, err));
  source.left -= j->left, source.top -= j->top;
  II_ASSERT(inside(source, src->w, src->h), "source %lld %lld %lld %lld of %lld x %lld",
            (long long)source.left, (long long)source.top, (long long)source.w, (long long)source.h,
            (long long)src->w, (long long)src->h);
  int64_t stride = src->w * 3, top = source.top + j->top - box.top;
  bool down = j->out_h != box.h;
  const uint8_t *in = src->data + source.top * stride + source.left * 3;
  if (down) II_TRY(compute(&r->y, box.h, j->out_h, view.top, view.h, j->filter, err));
  if (j->out_w == box.w) return same_width(r, j, in, stride, top, out, err);
  II_TRY(compute(&r->x, box.w, j->out_w, view.left, view.w, j->filter, err));
  int32_t left = r->x.first[0]; /* weights count from the first pixel of the source */
  for (int64_t x = 0; x < view.w; x++) r->x.first[x] -= left;
  if (down && r->quads) {
    for (int64_t y = 0; y < view.h; y++) r->y.first[y] -= (int32_t)top;
    ii_weights wx = {view.w, r->x.taps, r->x.first, r->x.count, r->x.weight};
    ii_weights wy = {view.h, r->y.taps, r->y.first, r->y.count, r->y.weight};
    return ii_quads_resize(r->quads, in, stride, source.w, source.h, wx, wy, j->mirror, out, err);
  }
  uint8_t *middle = out;
  if (down) {
    II_TRY(grow(&r->middle, &r->middle_capacity, source.h * view.w * 3, 1, err));
    middle = r->middle;
  }
  II_TRY(horizontal(r, in, stride, source.w, source.h, view.w, j->mirror, middle, err));
  if (!down) return II_OK;
  return vertical(r, middle, view.w * 3, top, view.w, view.h, out, err);
}
