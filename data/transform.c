#include "data/transform.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* the same boxes on every processor */
#endif

struct ii_transformer {
  ii_resizer *resizer;
  uint8_t *pixels; /* the result */
  int64_t capacity;
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
  if (status != II_OK)
    free(t);
  else
    *transformer = t;
  return status;
}

void ii_transformer_free(ii_transformer *t) {
  if (!t) return;
  ii_resizer_free(t->resizer);
  free(t->pixels);
  free(t);
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

/* size x size pixels of img that begin at (top, left), which may lie outside; black there. */
static void window(const ii_image *img, int64_t top, int64_t left, int64_t size, uint8_t *out) {
  int64_t x0 = left < 0 ? -left : 0, x1 = img->w - left < size ? img->w - left : size;
  for (int64_t y = 0; y < size; y++, out += size * 3) {
    int64_t sy = top + y;
    bool inside = sy >= 0 && sy < img->h;
    if (!inside || x0 > 0 || x1 < size) memset(out, 0, (size_t)(size * 3));
    if (inside)
      memcpy(out + x0 * 3, img->data + (sy * img->w + left + x0) * 3, (size_t)((x1 - x0) * 3));
  }
}

/* A random window of the padded image, along one side of n pixels: where it begins. */
static int64_t random_start(int64_t n, int64_t size, ii_rng *rng) {
  int64_t pad = n + 2 * PADDING >= size ? PADDING : (size - n + 1) / 2;
  return (int64_t)ii_rng_below(rng, (uint64_t)(n + 2 * pad - size + 1)) - pad;
}

static void flip(uint8_t *pixels, int64_t size) {
  for (int64_t y = 0; y < size; y++, pixels += size * 3)
    for (int64_t a = 0, b = size - 1; a < b; a++, b--)
      for (int c = 0; c < 3; c++) {
        uint8_t v = pixels[a * 3 + c];
        pixels[a * 3 + c] = pixels[b * 3 + c];
        pixels[b * 3 + c] = v;
      }
}

static ii_status train_pixels(ii_transformer *tr, const ii_transform *t, const ii_image *img,
                              ii_rng *rng, ii_error *err) {
  if (t->small_crop) {
    int64_t top = random_start(img->h, t->size, rng), left = random_start(img->w, t->size, rng);
    window(img, top, left, t->size, tr->pixels);
  } else {
    ii_box box = ii_transform_random_box(t, img->w, img->h, rng);
    ii_box all = {0, 0, t->size, t->size};
    II_TRY(ii_resize(tr->resizer, img, box, t->filter, t->size, t->size, all, tr->pixels, err));
  }
  if (ii_rng_uniform(rng) < t->flip_prob) flip(tr->pixels, t->size);
  return II_OK;
}

/* Where torchvision's CenterCrop begins: Python's round of half the difference (ties to even). */
static int64_t centre(int64_t n, int64_t size) {
  return (int64_t)rint((double)(n - size) / 2.0);
}

static ii_status eval_pixels(ii_transformer *tr, const ii_transform *t, const ii_image *img,
                             ii_error *err) {
  ii_box all = {0, 0, img->h, img->w};
  int64_t size = t->size, w = size, h = size;
  /* int(size * long / short): the quotient in double, cut off */
  if (t->centre_crop && img->w > img->h) w = (int64_t)((double)(size * img->w) / (double)img->h);
  if (t->centre_crop && img->w < img->h) h = (int64_t)((double)(size * img->h) / (double)img->w);
  ii_box view = {centre(h, size), centre(w, size), size, size};
  return ii_resize(tr->resizer, img, all, t->filter, w, h, view, tr->pixels, err);
}

ii_status ii_transform_pixels(ii_transformer *tr, const ii_transform *t, const ii_image *img,
                              ii_rng *rng, const uint8_t **pixels, ii_error *err) {
  int64_t bytes = t->size * t->size * 3;
  if (bytes > tr->capacity) {
    free(tr->pixels);
    tr->pixels = malloc((size_t)bytes);
    tr->capacity = tr->pixels ? bytes : 0;
    if (!tr->pixels) return ii_error_set(err, II_ERR_MEMORY, "no memory for a transformed image");
  }
  *pixels = tr->pixels;
  return t->train ? train_pixels(tr, t, img, rng, err) : eval_pixels(tr, t, img, err);
}

ii_status ii_transform_apply(ii_transformer *tr, const ii_transform *t, const ii_image *img,
                             ii_rng *rng, float *out, ii_error *err) {
  const uint8_t *pixels = NULL;
  II_TRY(ii_transform_pixels(tr, t, img, rng, &pixels, err));
  float value[256][4]; /* of a byte, by channel */
  for (int v = 0; v < 256; v++)
    for (int c = 0; c < 3; c++)
      value[v][c] = ((float)v / 255.0f - (float)t->mean[c]) / (float)t->std[c];
  int64_t n = t->size * t->size;
  for (int64_t i = 0; i < n; i++, pixels += 3, out += 3) {
    out[0] = value[pixels[0]][0];
    out[1] = value[pixels[1]][1];
    out[2] = value[pixels[2]][2];
  }
  return II_OK;
}
