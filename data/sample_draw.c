/* A picture is: a background gradient with faint stripes, a few distractor lines, the shape with
 * anti-aliased edges (each pixel is the mean of 3 x 3 samples), noise. Shapes are given as
 * functions of local coordinates (u, v), in which the shape about fills the unit disc: true inside.
 */
#include "data/sample_draw.h"
#include <math.h>
#include <stdbool.h>
#include "autograd/error.h"
#include "autograd/rng.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* the same pictures on every processor */
#endif

#define SAMPLES   3 /* per pixel and direction */
#define MAX_LINES 2

static bool disc(double u, double v) {
  return u * u + v * v < 0.72;
}

static bool ring(double u, double v) {
  double r = sqrt(u * u + v * v);
  return r > 0.5 && r < 0.92;
}

/* Regular polygon with n sides: every side's distance from the centre is d. */
static bool polygon(double u, double v, int n, double d) {
  for (int i = 0; i < n; i++) {
    double a = 2.0 * M_PI * i / n;
    if (u * cos(a) + v * sin(a) > d) return false;
  }
  return true;
}

static bool triangle(double u, double v) {
  return polygon(u, v, 3, 0.5);
}
static bool square(double u, double v) {
  return fabs(u) < 0.72 && fabs(v) < 0.72;
}

/* Radius that swings linearly between two values n times around. */
static bool star(double u, double v) {
  double turn = (atan2(v, u) / (2.0 * M_PI) + 0.5) * 5.0;
  double wave = fabs(2.0 * (turn - floor(turn)) - 1.0);
  return sqrt(u * u + v * v) < 0.33 + 0.67 * wave * wave;
}

static bool cross(double u, double v) {
  double a = fabs(u), b = fabs(v);
  return (a < 0.24 && b < 0.95) || (b < 0.24 && a < 0.95);
}

static bool stripes(double u, double v) {
  return fabs(u) < 0.9 && fabs(v) < 0.9 && fmod(v + 0.9, 0.72) < 0.36;
}

static bool checker(double u, double v) {
  if (fabs(u) > 0.9 || fabs(v) > 0.9) return false;
  return ((int)((u + 0.9) / 0.6) + (int)((v + 0.9) / 0.6)) % 2 == 0;
}

static bool spiral(double u, double v) {
  double r = sqrt(u * u + v * v), turn = atan2(v, u) / (2.0 * M_PI) + 0.5;
  double x = r * 1.5 + turn;
  return r < 0.95 && x - floor(x) < 0.45;
}

static bool gear(double u, double v) {
  double r = sqrt(u * u + v * v), turn = (atan2(v, u) / (2.0 * M_PI) + 0.5) * 8.0;
  double edge = turn - floor(turn) < 0.5 ? 0.95 : 0.66;
  return r < edge && r > 0.25;
}

static bool crescent(double u, double v) {
  return u * u + v * v < 0.81 && (u - 0.45) * (u - 0.45) + v * v > 0.5;
}

static bool dots(double u, double v) {
  if (fabs(u) > 0.95 || fabs(v) > 0.95) return false;
  double x = fmod(u + 0.95, 0.6334) - 0.3167, y = fmod(v + 0.95, 0.6334) - 0.3167;
  return x * x + y * y < 0.055;
}

static const struct {
  const char *name;
  bool (*inside)(double u, double v);
} shapes[II_SAMPLE_CLASSES] = {
    {"disc", disc},     {"ring", ring},   {"triangle", triangle}, {"square", square},
    {"star", star},     {"cross", cross}, {"stripes", stripes},   {"checker", checker},
    {"spiral", spiral}, {"gear", gear},   {"crescent", crescent}, {"dots", dots},
};

const char *ii_sample_class_name(int64_t i) {
  II_ASSERT(i >= 0 && i < II_SAMPLE_CLASSES, "class %lld", (long long)i);
  return shapes[i].name;
}

typedef struct {
  double rgb[3];
} colour;

/* Everything random about a picture except its noise. Lengths are in picture widths. */
typedef struct {
  colour from, to; /* the background's gradient */
  double gx, gy;   /* its direction */
  double wave[3];  /* stripes on the background: cycles along x and y, phase */
  double wave_depth;
  colour ink, ink_to;  /* the shape's gradient */
  double cx, cy, size; /* centre and radius of the shape */
  double ca, sa, squash;
  int mirror;
  struct {
    double x, y, nx, ny, width; /* a point, the normal, half the width */
    colour c;
  } line[MAX_LINES];
  int lines;
} scene;

static colour random_colour(ii_rng *r) {
  colour c;
  for (int i = 0; i < 3; i++) c.rgb[i] = ii_rng_range(r, 10, 245);
  return c;
}

static double luma(colour c) {
  return 0.3 * c.rgb[0] + 0.59 * c.rgb[1] + 0.11 * c.rgb[2];
}

static colour mix(colour a, colour b, double t) {
  for (int i = 0; i < 3; i++) a.rgb[i] += t * (b.rgb[i] - a.rgb[i]);
  return a;
}

/* A colour that can be told from the whole background; which of them is brighter is left to chance.
 */
static colour random_ink(ii_rng *r, colour a, colour b) {
  colour c = random_colour(r);
  for (int i = 0; i < 200; i++, c = random_colour(r))
    if (fabs(luma(c) - luma(a)) > 70 && fabs(luma(c) - luma(b)) > 70 &&
        (luma(c) > luma(a)) == (luma(c) > luma(b)))
      break;
  return c;
}

static scene random_scene(ii_rng *r) {
  scene s = {0};
  s.from = random_colour(r);
  s.to = mix(s.from, random_colour(r), 0.5);
  double a = ii_rng_range(r, 0, 2 * M_PI);
  s.gx = cos(a), s.gy = sin(a);
  a = ii_rng_range(r, 0, 2 * M_PI);
  double cycles = ii_rng_range(r, 2, 9);
  s.wave[0] = cycles * cos(a), s.wave[1] = cycles * sin(a);
  s.wave[2] = ii_rng_range(r, 0, 1);
  s.wave_depth = ii_rng_range(r, 0, 8);
  s.ink = random_ink(r, s.from, s.to);
  s.ink_to = mix(s.ink, random_colour(r), 0.2);
  s.size = ii_rng_range(r, 0.33, 0.46);
  s.cx = ii_rng_range(r, s.size, 1 - s.size);
  s.cy = ii_rng_range(r, s.size, 1 - s.size);
  a = ii_rng_range(r, 0, 2 * M_PI);
  s.ca = cos(a), s.sa = sin(a);
  s.squash = ii_rng_range(r, 0.86, 1.0);
  s.mirror = ii_rng_below(r, 2) ? -1 : 1;
  s.lines = (int)ii_rng_below(r, MAX_LINES + 1);
  for (int i = 0; i < s.lines; i++) {
    s.line[i].x = ii_rng_uniform(r), s.line[i].y = ii_rng_uniform(r);
    a = ii_rng_range(r, 0, 2 * M_PI);
    s.line[i].nx = cos(a), s.line[i].ny = sin(a);
    s.line[i].width = ii_rng_range(r, 0.004, 0.014);
    s.line[i].c = random_colour(r);
  }
  return s;
}

/* The colour at a point of the picture, (0, 0) to (1, 1). */
static colour look(const scene *s, bool (*inside)(double, double), double x, double y) {
  double g = (x - 0.5) * s->gx + (y - 0.5) * s->gy; /* -0.7 .. 0.7 */
  double dx = (x - s->cx) / s->size, dy = (y - s->cy) / s->size;
  double u = s->ca * dx + s->sa * dy, v = (s->ca * dy - s->sa * dx) / s->squash * s->mirror;
  if (inside(u, v)) return mix(s->ink, s->ink_to, 0.5 + 0.5 * u);
  for (int i = 0; i < s->lines; i++) {
    double d = (x - s->line[i].x) * s->line[i].nx + (y - s->line[i].y) * s->line[i].ny;
    if (fabs(d) < s->line[i].width) return s->line[i].c;
  }
  colour c = mix(s->from, s->to, 0.5 + g / 1.42);
  double phase = 2 * M_PI * (x * s->wave[0] + y * s->wave[1] + s->wave[2]);
  for (int i = 0; i < 3; i++) c.rgb[i] += s->wave_depth * sin(phase);
  return c;
}

static uint8_t to_byte(double v) {
  return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v + 0.5);
}

void ii_sample_draw(uint64_t seed, int64_t class_index, int64_t index, int64_t size, uint8_t *rgb) {
  II_ASSERT(class_index >= 0 && class_index < II_SAMPLE_CLASSES && size >= 8,
            "class %lld size %lld", (long long)class_index, (long long)size);
  ii_rng rng = ii_rng_make(seed, II_RNG_DATA, (uint64_t)class_index, (uint64_t)index);
  scene s = random_scene(&rng);
  double noise = ii_rng_range(&rng, 2, 8);
  for (int64_t py = 0; py < size; py++)
    for (int64_t px = 0; px < size; px++, rgb += 3) {
      double sum[3] = {0};
      for (int i = 0; i < SAMPLES * SAMPLES; i++) {
        double x = ((double)px + (i % SAMPLES + 0.5) / SAMPLES) / (double)size;
        double y = ((double)py + (i / SAMPLES + 0.5) / SAMPLES) / (double)size;
        colour c = look(&s, shapes[class_index].inside, x, y);
        for (int k = 0; k < 3; k++) sum[k] += c.rgb[k];
      }
      for (int k = 0; k < 3; k++)
        rgb[k] = to_byte(sum[k] / (SAMPLES * SAMPLES) + noise * ii_rng_normal(&rng));
    }
}
