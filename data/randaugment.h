/* RandAugment and colour jitter: which operations an image gets, drawn as timm 0.6.11 and
 * torchvision draw them. */
#ifndef II_RANDAUGMENT_H
#define II_RANDAUGMENT_H
#include "autograd/rng.h"
#include "data/augment_ops.h"

enum { II_AUGMENT_STEPS = 16 }; /* most operations on one image */

/* All zero: off. */
typedef struct {
  int layers;       /* n: operations drawn per image; 0 = off */
  double magnitude; /* m: 0 (gentle) to 10 */
  double std;       /* mstd: of the normal noise on the magnitude; INFINITY: uniform in 0..m */
  double max;       /* mmax: no magnitude is higher */
  bool increasing;  /* inc: the set of operations that all get stronger with the magnitude */
  bool weighted;    /* w0: weighted choice without repetition instead of an even one with it */
} ii_randaugment;

/* From timm's notation: "rand" and sections in any order, "rand-m9-n3-mstd0.5-inc1". Without a
 * section: m10, n2, no noise, mmax10, not increasing, even choice. "" is off. As in timm, inc with
 * any number switches it on, and mstd above 100 is uniform. Errors: II_ERR_ARG (names what cannot
 * be understood; timm passes over sections without a digit). */
ii_status ii_randaugment_parse(const char *text, ii_randaugment *r, ii_error *err);

/* The argument of an operation at a magnitude; negative: to the other side, where it has two. */
double ii_randaugment_level(ii_augment_op op, bool increasing, double magnitude, bool negative);

typedef struct {
  ii_augment_op op;
  double arg;
} ii_augment_step;

/* Draws the operations for one image, in their order, and returns how many (0..layers): each of
 * `layers` choices is applied with probability 1/2. Draws from rng: all choices, then for each
 * whether it is applied and, if so, magnitude and sign where it has them. */
int ii_randaugment_draw(const ii_randaugment *r, ii_rng *rng,
                        ii_augment_step steps[II_AUGMENT_STEPS]);

/* Colour jitter: strength of brightness, contrast, saturation (factors U(1 - s, 1 + s), not below
 * 0) and hue (U(-s, s)); in random order, those with strength 0 are left out. Returns how many. */
int ii_jitter_draw(const double strength[4], ii_rng *rng, ii_augment_step steps[II_AUGMENT_STEPS]);

#endif
