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
  bool ended;      /* the file was shorter than its format says */
  bool is_png;     /* then the picture is already in whole */
  int orientation; /* to apply */
  ii_box part, at; /* JPEG: wanted and decoded region of the stored picture */

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

/* Between the two, where the file has restart markers for it: makes d->cut a JPEG of a part of the
 * picture with d->part in it, by copying what that part needs. *box is where it lies; its h is 0 if
 * the file cannot be cut or nothing would be gained. Pixels next to d->part are those of the
 * picture as far as d->part depends on them. Errors: II_ERR_MEMORY. */
ii_status ii_decode_jpeg_cut(ii_decoder *d, ii_box *box, ii_error *err);

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
