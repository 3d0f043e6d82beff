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

/* From now on without instructions that not every processor has: the same results, slower. */
void ii_resizer_use_portable(ii_resizer *resizer);

typedef struct {
  const ii_image *src; /* a part of a picture, */
  int64_t top, left;   /* which begins here in the picture */
  ii_box box;          /* of the picture: is cut out first, so no pixel outside of it counts */
  ii_filter filter;
  int64_t out_w, out_h; /* > 0: what the box becomes */
  ii_box view;          /* the part of that which is wanted; the rest is not computed */
  bool mirror;          /* left and right of the view change places */
} ii_resize_job;

/* Does it: out [view.h, view.w, 3]. A pass whose size does not change is skipped, as Pillow does.
 * src must hold what ii_resize_source says and the view must lie inside the result (asserted).
 * Errors: II_ERR_MEMORY; II_ERR_FORMAT for boxes and results with a side above 2^20 pixels and for
 * boxes so long and thin that the result of the first pass has more than II_MAX_PIXELS_DEFAULT. */
ii_status ii_resize(ii_resizer *resizer, const ii_resize_job *job, uint8_t *out, ii_error *err);

/* The part of the picture that has an influence on the job's view; src, top and left are not
 * used. */
ii_box ii_resize_source(const ii_resize_job *job);

/* Mirrors w x h pixels left to right. */
void ii_mirror(uint8_t *pixels, int64_t w, int64_t h);

#endif
