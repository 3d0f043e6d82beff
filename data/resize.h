/* Pillow's antialiased resize, bit for bit: two passes (horizontal, then vertical), coefficients
 * computed in double and rounded to 22 fractional bits, the result of each pass rounded to 8 bits.
 */
#ifndef II_RESIZE_H
#define II_RESIZE_H
#include "data/image.h"

typedef enum { II_FILTER_BILINEAR, II_FILTER_BICUBIC } ii_filter; /* triangle; Keys, a = -0.5 */

/* The working memory of resizing: one per thread. */
typedef struct ii_resizer ii_resizer;
ii_status ii_resizer_new(ii_resizer **resizer, ii_error *err);
void ii_resizer_free(ii_resizer *resizer); /* NULL is allowed */

/* Resizes the box of src to out_w x out_h (> 0) RGB pixels and writes the part `view` of that
 * result to out [view.h, view.w, 3]; the rest is not computed. The box is cut out first: no pixel
 * outside of it has an influence. A pass whose size does not change is skipped, as Pillow does. The
 * box must lie inside the image and the view inside the result (asserted). Errors: II_ERR_MEMORY;
 * II_ERR_FORMAT for boxes and results with a side above 2^20 pixels and for boxes so long and thin
 * that the result of the first pass has more than II_MAX_PIXELS_DEFAULT. */
ii_status ii_resize(ii_resizer *resizer, const ii_image *src, ii_box box, ii_filter filter,
                    int64_t out_w, int64_t out_h, ii_box view, uint8_t *out, ii_error *err);

#endif
