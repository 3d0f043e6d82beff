/* Pillow's affine transform of 8-bit RGB images, bit for bit: bicubic with a = -1 or bilinear, in
 * double, the result cut off to 8 bits; no antialiasing. */
#ifndef II_WARP_H
#define II_WARP_H
#include "data/resize.h"

/* The working memory of warps: one per thread. */
typedef struct ii_warper ii_warper;
ii_status ii_warper_new(ii_warper **warper, ii_error *err);
void ii_warper_free(ii_warper *warper); /* NULL is allowed */

/* out [h, w, 3] becomes the image in [h, w, 3] seen through the matrix m: the pixel at (x, y) of
 * out is in at (m0 (x + 1/2) + m1 (y + 1/2) + m2, m3 (x + 1/2) + m4 (y + 1/2) + m5), where pixel
 * centres lie at halves and the edge pixels go on outside; positions outside of the image become
 * fill. in and out must not overlap; w, h > 0 (asserted up to 32767). Errors: II_ERR_MEMORY. */
ii_status ii_warp(ii_warper *warper, const uint8_t *in, int64_t w, int64_t h, const double m[6],
                  ii_filter filter, const uint8_t fill[3], uint8_t *out, ii_error *err);

/* out becomes in turned by so many degrees about its centre, counter-clockwise when positive, with
 * Pillow's matrix (cosine and sine rounded to 15 decimals) and its exact copies for multiples of a
 * half turn (of a quarter turn for squares). Otherwise as ii_warp. */
ii_status ii_rotate(ii_warper *warper, const uint8_t *in, int64_t w, int64_t h, double degrees,
                    ii_filter filter, const uint8_t fill[3], uint8_t *out, ii_error *err);

#endif
