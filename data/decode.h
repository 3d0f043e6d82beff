/* Inside of the decoder: what the JPEG and PNG parts share. Not for other folders. */
#ifndef II_DECODE_H
#define II_DECODE_H
#include <setjmp.h>
#include <stdio.h>
#include <jpeglib.h>
#include <png.h>
#include "data/image.h"

/* Everything that must survive a longjmp out of a library lives here and not in locals. */
struct ii_decoder {
  const uint8_t *bytes; /* the file */
  int64_t n, pos;       /* pos: PNG only */
  ii_decode_options options;
  ii_image *img;
  bool ended;           /* the file was shorter than its format says */
  bool is_png;          /* then the picture is already in whole */
  int orientation;      /* to apply */
  ii_box part, at;      /* JPEG: wanted and decoded region of the stored picture */
  const uint8_t *index; /* crop index of the bytes, or NULL */
  int64_t index_size;
  int64_t hidden; /* JPEG: columns at the left of what is decoded that are not of the picture */

  jmp_buf jump;
  ii_status status; /* what the library's error is for us */
  char message[256];

  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr jpeg_err;
  struct jpeg_source_mgr jpeg_src;
  struct jpeg_progress_mgr jpeg_progress;
  ii_bytes cmyk; /* one row */
  ii_bytes cut;  /* a smaller JPEG with what is wanted */

  png_structp png;
  png_infop png_info;

  ii_image turned; /* the other buffer when an orientation is applied */
  ii_image whole;  /* PNG, between opening and reading */
};

/* Set up and take down the part of the decoder that lives longer than one image. */
ii_status ii_decode_jpeg_open(ii_decoder *d, ii_error *err);
void ii_decode_jpeg_close(ii_decoder *d);

/* The header of d->bytes: size of the stored picture. */
ii_status ii_decode_jpeg_header(ii_decoder *d, int64_t *w, int64_t *h, ii_error *err);

/* The rest: decodes at least d->part into d->img and sets d->at, the region that is. */
ii_status ii_decode_jpeg_pixels(ii_decoder *d, ii_error *err);

/* Between the two, where there is an index: makes d->cut a JPEG of a part of the picture with
 * d->part in it, by copying what that part needs. *box is where it lies, with d->hidden columns at
 * its left that show nothing (so its left may be negative); its h is 0 if the file cannot be cut or
 * nothing would be gained. Pixels next to d->part are those of the picture as far as d->part
 * depends on them. Errors: II_ERR_MEMORY. */
ii_status ii_decode_jpeg_cut(ii_decoder *d, ii_box *box, ii_error *err);

/* The squares (MCUs) of a picture: pixels of each, and how many there are. */
typedef struct {
  int64_t mcu_w, mcu_h, rows, columns;
} ii_jpeg_grid;

/* Whether a file, of which the header has been read, is of the kind that crop indexes are for;
 * fills *g. */
bool ii_jpeg_grid_of(const struct jpeg_decompress_struct *j, ii_jpeg_grid *g);

/* Of each place of the zigzag in which coefficients are stored, the place in rows. */
#define II_JPEG_ZIGZAG                                                                             \
  {                                                                                                \
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27,    \
        20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,  \
        58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63                             \
  }

/* Decode d->bytes into d->img. */
ii_status ii_decode_png(ii_decoder *d, ii_error *err);

/* The EXIF orientation 1..8 of a JPEG file; 1 when it has none that can be understood. */
int ii_exif_orientation(const uint8_t *bytes, int64_t n);

/* Applies an orientation: afterwards *img shows the scene upright. spare is working memory that
 * changes places with *img. */
ii_status ii_exif_apply(int orientation, ii_image *img, ii_image *spare, ii_error *err);

/* A box of the upright picture, which is w x h, as a box of the stored one; and back, where w x h
 * is the stored picture's size. */
ii_box ii_exif_to_stored(int orientation, int64_t w, int64_t h, ii_box box);
ii_box ii_exif_to_upright(int orientation, int64_t w, int64_t h, ii_box box);

/* Refuses w x h when it is empty or above the limit of the options. */
ii_status ii_decode_check_size(const ii_decoder *d, int64_t w, int64_t h, ii_error *err);

/* Makes sure that buffer has room for n bytes. */
ii_status ii_bytes_reserve(ii_bytes *buffer, int64_t n, ii_error *err);

#endif
