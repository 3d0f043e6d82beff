/* The image operations of RandAugment and of colour jitter, bit for bit those of Pillow as timm
 * 0.6.11 and torchvision call them. All work on 8-bit RGB. */
#ifndef II_AUGMENT_OPS_H
#define II_AUGMENT_OPS_H
#include "data/resize.h"

typedef enum {
  II_AUG_AUTO_CONTRAST, /* each channel stretched to 0..255 */
  II_AUG_EQUALIZE,      /* each channel to an even histogram */
  II_AUG_INVERT,
  II_AUG_ROTATE,       /* arg: degrees, counter-clockwise */
  II_AUG_POSTERIZE,    /* arg: highest bits to keep; 8 and more: all */
  II_AUG_SOLARIZE,     /* arg: values from here on are inverted */
  II_AUG_SOLARIZE_ADD, /* arg: is added to values below 128 */
  II_AUG_COLOR,        /* arg: factor, 0 grey, 1 as it is, above 1 more colourful */
  II_AUG_CONTRAST,     /* arg: factor from the mean grey */
  II_AUG_BRIGHTNESS,   /* arg: factor from black */
  II_AUG_SHARPNESS,    /* arg: factor from a smoothed image */
  II_AUG_SHEAR_X,      /* arg: columns per row */
  II_AUG_SHEAR_Y,      /* arg: rows per column */
  II_AUG_TRANSLATE_X,  /* arg: part of the width; positive moves the content left */
  II_AUG_TRANSLATE_Y,  /* arg: part of the height; positive moves the content up */
  II_AUG_HUE,          /* arg: part of the colour circle, -0.5..0.5 */
  II_AUG_COUNT
} ii_augment_op;

/* "Rotate", "ShearX", ...: timm's names. */
const char *ii_augment_op_name(ii_augment_op op);

/* The working memory of the operations: one per thread. */
typedef struct ii_augmenter ii_augmenter;
ii_status ii_augmenter_new(ii_augmenter **augmenter, ii_error *err);
void ii_augmenter_free(ii_augmenter *augmenter); /* NULL is allowed */

/* Changes img by op with its argument; whole numbers are meant where the table says so. filter and
 * fill (the colour of what comes into view from outside) are those of the geometric operations. The
 * memory of img may change places with a buffer of the augmenter. img at most 32767 pixels wide and
 * high, not empty (asserted). Errors: II_ERR_MEMORY (never after an image as large). */
ii_status ii_augment_apply(ii_augmenter *augmenter, ii_augment_op op, double arg, ii_filter filter,
                           const uint8_t fill[3], ii_image *img, ii_error *err);

#endif
