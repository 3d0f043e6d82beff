#include "data/transform.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "data/normalise.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* the same boxes on every processor */
#endif

struct ii_transformer {
  ii_resizer *resizer;
  ii_augmenter *augmenter;
  ii_stopwatch *watch; /* NULL: none */
  ii_image pixels;     /* the result */
  ii_normaliser values;
};

#define CROP_TRIES 10
#define PADDING    4

ii_transform ii_transform_default(int64_t size, bool train) {
  return (ii_transform){.size = size,
                        .train = train,
                        .filter = II_FILTER_BICUBIC,
                        .mean = {0.485, 0.456, 0.406},
                        .std = {0.229, 0.224, 0.225},
                        .scale = {0.08, 1.0},
                        .ratio = {3.0 / 4.0, 4.0 / 3.0},
                        .flip_prob = 0.5,
                        .small_crop = size <= 32,
                        .centre_crop = true};
}

ii_status ii_transform_check(const ii_transform *t, ii_error *err) {
  if (t->size < 1 || t->size > 16384)
    return ii_error_set(err, II_ERR_ARG, "the image size %lld is not in 1..16384",
                        (long long)t->size);
  if (!(t->scale[0] > 0 && t->scale[0] <= t->scale[1] && t->scale[1] <= 1))
    return ii_error_set(err, II_ERR_ARG,
                        "the crop's scale %g..%g must be rising and above 0 up to 1", t->scale[0],
                        t->scale[1]);
  if (!(t->ratio[0] > 0 && t->ratio[0] <= t->ratio[1] && isfinite(t->ratio[1])))
    return ii_error_set(err, II_ERR_ARG, "the crop's ratio %g..%g must be rising and above 0",
                        t->ratio[0], t->ratio[1]);
  if (!(t->flip_prob >= 0 && t->flip_prob <= 1))
    return ii_error_set(err, II_ERR_ARG, "the flip probability %g is not in 0..1", t->flip_prob);
  for (int i = 0; i < 4; i++)
    if (!(t->jitter[i] >= 0 && t->jitter[i] <= (i == 3 ? 0.5 : 100)))
      return ii_error_set(err, II_ERR_ARG, "the colour jitter %g is not in 0..%g", t->jitter[i],
                          i == 3 ? 0.5 : 100.0);
  for (int c = 0; c < 3; c++)
    if (!isfinite(t->mean[c]) || !(t->std[c] > 0) || !isfinite(t->std[c]))
      return ii_error_set(err, II_ERR_ARG, "mean %g and std %g of channel %d cannot be used",
                          t->mean[c], t->std[c], c);
  return II_OK;
}

ii_status ii_transformer_new(ii_transformer **transformer, ii_error *err) {
  ii_transformer *t = calloc(1, sizeof *t);
  if (!t) return ii_error_set(err, II_ERR_MEMORY, "no memory for a transform");
  ii_status status = ii_resizer_new(&t->resizer, err);
  if (status == II_OK) status = ii_augmenter_new(&t->augmenter, err);
  if (status != II_OK)
    ii_transformer_free(t);
  else
    *transformer = t;
  return status;
}

void ii_transformer_free(ii_transformer *t) {
  if (!t) return;
  ii_resizer_free(t->resizer);
  ii_augmenter_free(t->augmenter);
  ii_image_free(&t->pixels);
  free(t);
}

void ii_transformer_measure(ii_transformer *t, ii_stopwatch *watch) {
  t->watch = watch;
}

static ii_filter draw_filter(const ii_transform *t, ii_rng *rng) {
  if (!t->random_filter) return t->filter;
  return ii_rng_uniform(rng) < 0.5 ? II_FILTER_BILINEAR : II_FILTER_BICUBIC;
}

static int64_t at_least_1(int64_t v) {
  return v < 1 ? 1 : v;
}

ii_box ii_transform_random_box(const ii_transform *t, int64_t w, int64_t h, ii_rng *rng) {
  double area = (double)w * (double)h;
  double log_lo = log(t->ratio[0]), log_hi = log(t->ratio[1]);
  for (int i = 0; i < CROP_TRIES; i++) {
    double target = ii_rng_range(rng, t->scale[0], t->scale[1]) * area;
    double ratio = exp(ii_rng_range(rng, log_lo, log_hi));
    /* halves go to even, as Python's round does */
    int64_t bw = (int64_t)rint(sqrt(target * ratio)), bh = (int64_t)rint(sqrt(target / ratio));
    if (bw < 1 || bh < 1 || bw > w || bh > h) continue;
    int64_t top = (int64_t)ii_rng_below(rng, (uint64_t)(h - bh + 1));
    int64_t left = (int64_t)ii_rng_below(rng, (uint64_t)(w - bw + 1));
    return (ii_box){top, left, bh, bw};
  }
  double in_ratio = (double)w / (double)h;
  int64_t bw = w, bh = h;
  if (in_ratio < t->ratio[0])
    bh = at_least_1((int64_t)rint((double)w / t->ratio[0]));
  else if (in_ratio > t->ratio[1])
    bw = at_least_1((int64_t)rint((double)h * t->ratio[1]));
  return (ii_box){(h - bh) / 2, (w - bw) / 2, bh, bw};
}

/* A random window of the padded image, along one side of n pixels: where it begins. */
static int64_t random_start(int64_t n, int64_t size, ii_rng *rng) {
  int64_t pad = n + 2 * PADDING >= size ? PADDING : (size - n + 1) / 2;
  return (int64_t)ii_rng_below(rng, (uint64_t)(n + 2 * pad - size + 1)) - pad;
}

/* The part of from..from+n-1 inside of 0..size-1; never empty, so that there is something to
 * decode. */
static void clip(int64_t *from, int64_t *n, int64_t size) {
  int64_t to = *from + *n;
  *from = *from < 0 ? 0 : *from >= size ? size - 1 : *from;
  to = to > size ? size : to <= *from ? *from + 1 : to;
  *n = to - *from;
}

static void draw_train(const ii_transform *t, int64_t w, int64_t h, ii_rng *rng,
                       ii_transform_plan *p) {
  ii_resize_job *r = &p->resize;
  r->out_w = r->out_h = t->size;
  r->view = (ii_box){0, 0, t->size, t->size};
  p->window = t->small_crop;
  if (p->window) {
    r->box.top = random_start(h, t->size, rng), r->box.left = random_start(w, t->size, rng);
    r->box.h = r->box.w = t->size;
  } else {
    r->box = ii_transform_random_box(t, w, h, rng);
  }
  r->filter = draw_filter(t, rng);
  r->mirror = ii_rng_uniform(rng) < t->flip_prob;
}

/* Where torchvision's CenterCrop begins: Python's round of half the difference (ties to even). */
static int64_t centre(int64_t n, int64_t size) {
  return (int64_t)rint((double)(n - size) / 2.0);
}

static void plan_eval(const ii_transform *t, int64_t w, int64_t h, ii_transform_plan *p) {
  ii_resize_job *r = &p->resize;
  int64_t size = t->size;
  r->box = (ii_box){0, 0, h, w};
  r->out_w = r->out_h = size;
  /* int(size * long / short): the quotient in double, cut off */
  if (t->centre_crop && w > h) r->out_w = (int64_t)((double)(size * w) / (double)h);
  if (t->centre_crop && w < h) r->out_h = (int64_t)((double)(size * h) / (double)w);
  r->view = (ii_box){centre(r->out_h, size), centre(r->out_w, size), size, size};
}

ii_transform_plan ii_transform_draw(const ii_transform *t, int64_t w, int64_t h, ii_rng *rng) {
  ii_transform_plan p = {.resize.filter = t->filter};
  if (t->train)
    draw_train(t, w, h, rng, &p);
  else
    plan_eval(t, w, h, &p);
  if (!p.window) {
    p.source = ii_resize_source(&p.resize);
  } else {
    p.source = p.resize.box;
    clip(&p.source.left, &p.source.w, w);
    clip(&p.source.top, &p.source.h, h);
  }
  return p;
}

/* box of an image, of which `source` lies inside; black elsewhere. */
static void window(const ii_image *part, int64_t top, int64_t left, ii_box box, ii_box source,
                   uint8_t *out) {
  int64_t x0 = source.left - box.left, y0 = source.top - box.top, w = source.w;
  memset(out, 0, (size_t)(box.w * box.h * 3));
  if (x0 < 0 || y0 < 0 || x0 >= box.w || y0 >= box.h) return; /* it lies outside altogether */
  for (int64_t y = 0; y < source.h; y++)
    memcpy(out + ((y0 + y) * box.w + x0) * 3,
           part->data + ((source.top + y - top) * part->w + source.left - left) * 3,
           (size_t)(w * 3));
}

ii_transform_steps ii_transform_draw_steps(const ii_transform *t, ii_rng *rng) {
  ii_transform_steps s = {0};
  if (!t->train) return s;
  if (t->auto_augment.layers > 0)
    s.count = ii_randaugment_draw(&t->auto_augment, rng, s.steps);
  else if (t->jitter[0] > 0 || t->jitter[1] > 0 || t->jitter[2] > 0 || t->jitter[3] > 0)
    s.count = ii_jitter_draw(t->jitter, rng, s.steps);
  for (int i = 0; i < s.count; i++) s.filters[i] = draw_filter(t, rng);
  return s;
}

static ii_status augment(ii_transformer *tr, const ii_transform *t, ii_rng *rng, ii_error *err) {
  const ii_transform_steps s = ii_transform_draw_steps(t, rng);
  uint8_t fill[3];
  for (int c = 0; c < 3; c++) fill[c] = (uint8_t)fmax(0, fmin(255, rint(255 * t->mean[c])));
  for (int i = 0; i < s.count; i++)
    II_TRY(ii_augment_apply(tr->augmenter, s.steps[i].op, s.steps[i].arg, s.filters[i], fill,
                            &tr->pixels, err));
  return II_OK;
}

static ii_status make_pixels(ii_transformer *tr, const ii_transform *t,
                             const ii_transform_plan *plan, const ii_image *part, int64_t top,
                             int64_t left, ii_rng *rng, ii_error *err) {
  II_TRY(ii_image_reserve(&tr->pixels, t->size, t->size, err));
  uint8_t *out = tr->pixels.data;
  if (plan->window) {
    window(part, top, left, plan->resize.box, plan->source, out);
    if (plan->resize.mirror) ii_mirror(out, t->size, t->size);
  } else {
    ii_resize_job job = plan->resize;
    job.src = part, job.top = top, job.left = left;
    II_TRY(ii_resize(tr->resizer, &job, out, err));
  }
  ii_lap(tr->watch, II_STAGE_RESIZE);
  II_TRY(augment(tr, t, rng, err));
  ii_lap(tr->watch, II_STAGE_AUGMENT);
  return II_OK;
}

ii_status ii_transform_part(ii_transformer *tr, const ii_transform *t,
                            const ii_transform_plan *plan, const ii_image *part, int64_t top,
                            int64_t left, ii_rng *rng, float *out, ii_error *err) {
  II_TRY(make_pixels(tr, t, plan, part, top, left, rng, err));
  ii_normaliser_set(&tr->values, t->mean, t->std);
  ii_normalise(&tr->values, tr->pixels.data, tr->pixels.w * tr->pixels.h, out);
  ii_lap(tr->watch, II_STAGE_WRITE);
  return II_OK;
}

ii_status ii_transform_pixels(ii_transformer *tr, const ii_transform *t, const ii_image *img,
                              ii_rng *rng, const uint8_t **pixels, ii_error *err) {
  ii_transform_plan plan = ii_transform_draw(t, img->w, img->h, rng);
  II_TRY(make_pixels(tr, t, &plan, img, 0, 0, rng, err));
  *pixels = tr->pixels.data;
  return II_OK;
}

ii_status ii_transform_apply(ii_transformer *tr, const ii_transform *t, const ii_image *img,
                             ii_rng *rng, float *out, ii_error *err) {
  ii_transform_plan plan = ii_transform_draw(t, img->w, img->h, rng);
  return ii_transform_part(tr, t, &plan, img, 0, 0, rng, out, err);
}
