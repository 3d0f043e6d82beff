/* Crop indexes: where in an ordinary JPEG file the entropy decoding can begin, so that a part of
 * the picture is decoded without reading what is beside and above it. Made once per file; the
 * decoder takes one beside the file's bytes (ii_image_use_index).
 *
 * An index belongs to the bytes it was made of, and nothing in it says which these are: who keeps
 * it also keeps their size and CRC-32C, and its own, and uses it only when all of them match. With
 * other bytes the pixels are wrong; but whatever both are, decoding stays inside of them.
 *
 * Layout, numbers with their lowest byte first:
 *   u8 version (1), u8 MCUs of a piece, u8 components, u8 0, u16 rows, u16 columns (in MCUs);
 *   for each row of MCUs: u32 bits from the beginning of the scan's data to that of the row (bits
 *     of the file: with the zero bytes behind 0xff), and for each of its pieces (the last one may
 *     be shorter): u16 bits of its data, i16 DC predictor of each component at its beginning;
 *   u32 bits from the beginning of the scan's data to its end */
#ifndef II_JPEG_INDEX_H
#define II_JPEG_INDEX_H
#include <stdbool.h>
#include <stdint.h>
#include "autograd/error.h"

/* Makes the index of a JPEG file: *index [*n] is new memory freed by the caller; NULL and 0 when
 * the file has none: no JPEG, damaged in any way that libjpeg-turbo would warn of, not baseline or
 * extended sequential with Huffman codes and 8 bits, not one scan of all components, not 1 or 3
 * components, with restart markers, above 64 Mi pixels or 256 MiB of scan, or with coefficients
 * that an 8-bit picture does not have. Every coefficient is compared with libjpeg-turbo's before
 * an index is given back. Takes up to 6 bytes per pixel and twice the file meanwhile. Errors:
 * II_ERR_MEMORY. */
ii_status ii_jpeg_index_make(const uint8_t *jpeg, int64_t size, uint8_t **index, int64_t *n,
                             ii_error *err);

/* ---- for the decoder -------------------------------------------------------------------------*/

typedef struct {
  int64_t rows, columns, piece, pieces; /* MCUs, MCUs, MCUs of a piece, pieces of a row */
  int components;
  const uint8_t *at; /* the first row */
} ii_jpeg_index;

/* A place where decoding can begin. */
typedef struct {
  int64_t bit; /* from the beginning of the scan's data */
  int dc[3];   /* predictors */
} ii_jpeg_point;

/* Checks that index [n] has this layout, with a length that fits its numbers; *x points into it. */
bool ii_jpeg_index_open(const uint8_t *index, int64_t n, ii_jpeg_index *x);

/* The beginning of a piece: 0 <= row < rows and 0 <= piece <= pieces, where pieces means the end of
 * the row; behind the last row there are no predictors (zeros). Numbers are as they are stored: the
 * caller checks the places against the data. */
ii_jpeg_point ii_jpeg_index_point(const ii_jpeg_index *x, int64_t row, int64_t piece);

#endif
