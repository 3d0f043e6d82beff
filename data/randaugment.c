#include "data/randaugment.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* the same arguments on every processor */
#endif

#define OPS        15   /* of the choice: II_AUG_AUTO_CONTRAST to II_AUG_TRANSLATE_Y */
#define TOP        10.0 /* a magnitude at which arguments have the ends of their ranges */
#define APPLY_PROB 0.5

/* timm's weights 0, in the order of ii_augment_op; they add up to 1. */
static const double weights[OPS] = {0.025, 0.005, 0.0,   0.3, 0.0, 0.005, 0.005, 0.025,
                                    0.005, 0.005, 0.025, 0.2, 0.2, 0.1,   0.1};
enum { WITH_WEIGHT = 13 };

/* ---- notation ---- */

static ii_status bad(const char *text, const char *why, ii_error *err) {
  return ii_error_set(err, II_ERR_ARG,
                      "the augmentation '%.100s' cannot be used: %s; an example is "
                      "rand-m9-mstd0.5-inc1",
                      text, why);
}

static bool whole(double v, double lo, double hi) {
  return v == floor(v) && v >= lo && v <= hi;
}

/* One section: letters and a number. Returns what is wrong, or NULL. */
static const char *section(const char *s, int64_t length, ii_randaugment *r, unsigned *seen) {
  static const char *const keys[] = {"m", "n", "w", "mstd", "mmax", "inc"};
  int64_t letters = 0;
  while (letters < length && (s[letters] < '0' || s[letters] > '9')) letters++;
  int key = 0;
  while (key < 6 &&
         ((int64_t)strlen(keys[key]) != letters || strncmp(keys[key], s, (size_t)letters)))
    key++;
  if (key == 6 || letters == length)
    return "a section is not m, n, w, mstd, mmax or inc and a number";
  if (*seen >> key & 1) return "a section comes twice";
  *seen |= 1u << key;
  char *end;
  double v = strtod(s + letters, &end);
  if (end != s + length || !isfinite(v)) return "a section does not end with a number";
  switch (key) {
  case 0:
    r->magnitude = v;
    return whole(v, 0, 100) ? NULL : "m must be a whole number in 0..100";
  case 1:
    r->layers = (int)fmin(v, 1e6);
    return whole(v, 1, II_AUGMENT_STEPS) ? NULL : "n must be a whole number in 1..16";
  case 2:
    r->weighted = true;
    return v == 0 ? NULL : "w0 are the only weights";
  case 3:
    r->std = v > 100 ? (double)INFINITY : v;
    return NULL;
  case 4:
    r->max = v;
    return whole(v, 1, 100) ? NULL : "mmax must be a whole number in 1..100";
  default:
    r->increasing = true;
    return NULL;
  }
}

ii_status ii_randaugment_parse(const char *text, ii_randaugment *r, ii_error *err) {
  *r = (ii_randaugment){0};
  if (!*text) return II_OK;
  if (strncmp(text, "rand", 4) != 0 || (text[4] && text[4] != '-'))
    return bad(text, "it does not begin with rand", err);
  *r = (ii_randaugment){.layers = 2, .magnitude = TOP, .max = TOP};
  unsigned seen = 0;
  for (const char *s = text + 4; *s;) {
    s++; /* the dash */
    int64_t length = (int64_t)strcspn(s, "-");
    const char *why = section(s, length, r, &seen);
    if (why) return bad(text, why, err);
    s += length;
  }
  if (r->weighted && r->layers > WITH_WEIGHT)
    return bad(text, "w0 has 13 operations, n must not be higher", err);
  return II_OK;
}

/* ---- arguments ---- */

double ii_randaugment_level(ii_augment_op op, bool increasing, double magnitude, bool negative) {
  double part = magnitude / TOP, sign = negative ? -1.0 : 1.0;
  switch (op) {
  case II_AUG_ROTATE:
    return sign * (part * 30.0);
  case II_AUG_POSTERIZE:
    return increasing ? 4 - trunc(part * 4) : trunc(part * 4);
  case II_AUG_SOLARIZE:
    return increasing ? 256 - trunc(part * 256) : trunc(part * 256);
  case II_AUG_SOLARIZE_ADD:
    return trunc(part * 110);
  case II_AUG_COLOR:
  case II_AUG_CONTRAST:
  case II_AUG_BRIGHTNESS:
  case II_AUG_SHARPNESS:
    return increasing ? fmax(0.1, 1.0 + sign * (part * 0.9)) : part * 1.8 + 0.1;
  case II_AUG_SHEAR_X:
  case II_AUG_SHEAR_Y:
    return sign * (part * 0.3);
  case II_AUG_TRANSLATE_X:
  case II_AUG_TRANSLATE_Y:
    return sign * (part * 0.45);
  default:
    return 0.0;
  }
}

static bool has_level(ii_augment_op op) {
  return op >= II_AUG_ROTATE;
}

static bool has_sign(ii_augment_op op, bool increasing) {
  if (op >= II_AUG_COLOR && op <= II_AUG_SHARPNESS) return increasing;
  return op == II_AUG_ROTATE || op >= II_AUG_SHEAR_X;
}

/* ---- drawing ---- */

/* One by its weight among those that are not yet taken. */
static ii_augment_op choose_weighted(ii_rng *rng, unsigned *taken) {
  double sum = 0;
  int chosen = 0;
  for (int i = 0; i < OPS; i++) sum += *taken >> i & 1 ? 0 : weights[i];
  double at = ii_rng_uniform(rng) * sum;
  for (int i = 0; i < OPS; i++) {
    if (weights[i] == 0 || *taken >> i & 1) continue;
    chosen = i; /* the last one also when rounding leaves a rest */
    if (at < weights[i]) break;
    at -= weights[i];
  }
  *taken |= 1u << chosen;
  return (ii_augment_op)chosen;
}

static double draw_magnitude(const ii_randaugment *r, ii_rng *rng) {
  double m = r->magnitude;
  if (isinf(r->std))
    m = ii_rng_range(rng, 0, m);
  else if (r->std > 0)
    m += r->std * ii_rng_normal(rng);
  return fmax(0.0, fmin(m, r->max));
}

int ii_randaugment_draw(const ii_randaugment *r, ii_rng *rng,
                        ii_augment_step steps[II_AUGMENT_STEPS]) {
  ii_augment_op chosen[II_AUGMENT_STEPS];
  unsigned taken = 0;
  int count = 0;
  for (int i = 0; i < r->layers; i++)
    chosen[i] = r->weighted ? choose_weighted(rng, &taken) : (ii_augment_op)ii_rng_below(rng, OPS);
  for (int i = 0; i < r->layers; i++) {
    if (ii_rng_uniform(rng) >= APPLY_PROB) continue;
    ii_augment_op op = chosen[i];
    double m = has_level(op) ? draw_magnitude(r, rng) : 0.0;
    bool negative = has_sign(op, r->increasing) && ii_rng_uniform(rng) >= 0.5;
    steps[count++] = (ii_augment_step){op, ii_randaugment_level(op, r->increasing, m, negative)};
  }
  return count;
}

int ii_jitter_draw(const double strength[4], ii_rng *rng, ii_augment_step steps[II_AUGMENT_STEPS]) {
  static const ii_augment_op ops[4] = {II_AUG_BRIGHTNESS, II_AUG_CONTRAST, II_AUG_COLOR,
                                       II_AUG_HUE};
  int64_t order[4];
  double factor[4];
  int count = 0;
  ii_rng_permutation(rng, order, 4);
  for (int i = 0; i < 4; i++) {
    double s = strength[i];
    factor[i] = i == 3 ? ii_rng_range(rng, -s, s) : ii_rng_range(rng, fmax(0.0, 1.0 - s), 1.0 + s);
  }
  for (int i = 0; i < 4; i++)
    if (strength[order[i]] > 0) steps[count++] = (ii_augment_step){ops[order[i]], factor[order[i]]};
  return count;
}
