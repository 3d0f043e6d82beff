/* Pillow's antialiased resize, bit for bit: two passes (horizontal, then vertical), coefficients
 * computed in double and rounded to 22 fractional bits, the result of each pass rounded to 8 bits. */
#ifndef II_RESIZE_H
#define II_RESIZE_H
#include "data/image.h"

typedef enum { II_FILTER_BILINEAR, II_FILTER_BICUBIC } ii_filter; /* triangle; Keys, a = -0.5 */

/* A rectangle of pixels inside an image. */
typedef struct {
  int64_t top, left, h, w;
} ii_box;

/* The working memory of resizing: one per thread. */
typedef struct ii_resizer ii_resizer;
ii_status ii_resizer_new(ii_resizer **resizer, ii_error *err);
void ii_resizer_free(ii_resizer *resizer); /* NULL is allowed */

/* Resizes the box of src to out_w x out_h (> 0) RGB pixels written to out [out_h, out_w, 3].
 * The box is cut out first: no pixel outside of it has an influence. A pass whose size does not
 * change is skipped, as Pillow does. The box must lie inside the image (asserted).
 * Errors: II_ERR_MEMORY. */
ii_status ii_resize(ii_resizer *resizer, const ii_image *src, ii_box box, ii_filter filter,
                    int64_t out_w, int64_t out_h, uint8_t *out, ii_error *err);

#endif
