/* Inside of the resize: the same two passes for processors with AVX-512 VNNI. Not for other
 * folders. */
#ifndef II_RESIZE_QUADS_H
#define II_RESIZE_QUADS_H
#include "data/resize.h"

/* The weights of one pass: for each output position the first input position, the number of them,
 * and the weights [taps] as integers of 22 fractional bits. */
typedef struct {
  int64_t outputs, taps;
  const int32_t *first, *count, *weight;
} ii_weights;

typedef struct ii_quads ii_quads;

/* NULL in *quads on processors (or in builds) without the instructions. Errors: II_ERR_MEMORY. */
ii_status ii_quads_new(ii_quads **quads, ii_error *err);
void ii_quads_free(ii_quads *quads); /* NULL is allowed */

/* Both passes: w x h pixels in rows of `stride` bytes -> out [y.outputs, x.outputs, 3], mirrored or
 * not; both kinds of weights count positions from the first pixel of in. Errors: II_ERR_MEMORY. */
ii_status ii_quads_resize(ii_quads *quads, const uint8_t *in, int64_t stride, int64_t w, int64_t h,
                          ii_weights x, ii_weights y, bool mirror, uint8_t *out, ii_error *err);

#endif
