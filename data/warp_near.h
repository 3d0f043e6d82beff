/* Values of a warped row in single precision, near enough to tell nearly every byte. Not for other
 * folders.
 *
 * The bytes that a warp must give are those of double arithmetic, cut off (data/warp.c). The values
 * here differ from that by less than II_NEAR_ERROR, so where both ends of value -+ II_NEAR_ERROR
 * are cut off to the same byte, that is the byte; the others (some in a thousand) are computed once
 * more, in double.
 *
 * The bound: at most 16 products of bytes with weights whose absolute values sum to at most 1.5 x
 * 1.5, so partial sums are below 600. A weight is a polynomial of third degree in t, computed with
 * fewer than 8 roundings of values below 4, of relative error 2^-24 each, from a t that is rounded
 * once; each sum and product adds one more. Altogether less than 600 * 20 * 2^-24 < 0.0008. */
#ifndef II_WARP_NEAR_H
#define II_WARP_NEAR_H
#include <stdbool.h>
#include <stdint.h>

#define II_NEAR_ERROR (1.0f / 1024.0f)

/* All images here have 4 bytes per pixel and what is read around a pixel exists: one to the left
 * (above), two to the right (below); rows are `stride` bytes apart. t is the fraction of the way
 * from the pixel to the next. n: pixels; for each, bytes becomes its 4 bytes and doubt is not 0
 * where these are not certain. value, base and spread are working memory. All arrays have 4
 * elements per pixel and room for II_NEAR_ROOM pixels more, which are overwritten; images may be
 * read so far behind their end. */
enum { II_NEAR_ROOM = 4 };

/* One fraction for all of n consecutive pixels from p on, along x (step 4) or y (step = stride). */
void ii_near_run(const uint8_t *p, int64_t step, int64_t n, float t, bool bicubic, uint8_t *spread,
                 uint8_t *bytes, uint8_t *doubt);

/* Pixels of their own, at image + at[i], each with its own fractions: along y alone, or along both
 * axes. */
void ii_near_down(const uint8_t *image, int64_t stride, const int64_t *at, const float *ty,
                  int64_t n, bool bicubic, float *value, uint8_t *base, uint8_t *spread,
                  uint8_t *bytes, uint8_t *doubt);
void ii_near_both(const uint8_t *image, int64_t stride, const int64_t *at, const float *tx,
                  const float *ty, int64_t n, bool bicubic, float *value, uint8_t *bytes,
                  uint8_t *doubt);

#endif
