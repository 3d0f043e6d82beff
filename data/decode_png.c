/* PNG through libpng, brought to 8-bit RGB as Pillow's convert("RGB") does: 16 bits keep the high
 * byte, palettes and low depths are expanded, transparency is dropped. (Pillow 9 clips 16-bit grey
 * to 255 instead, which turns such pictures white; here they keep the high byte, as in OpenCV.) */
#include "data/decode.h"
#include <stdlib.h>
#include <string.h>

#define MAX_CHUNK_BYTES (8u << 20) /* of text, profiles and the like, decompressed */
#define MAX_CHUNKS      1000

static void fail(png_structp png, png_const_charp text) {
  ii_decoder *d = png_get_error_ptr(png);
  snprintf(d->message, sizeof d->message, "%s PNG: %s", d->ended ? "truncated" : "damaged", text);
  d->status = II_ERR_FORMAT;
  longjmp(d->jump, 1);
}

static void ignore_warning(png_structp png, png_const_charp text) {}

static void read_bytes(png_structp png, png_bytep out, png_size_t n) {
  ii_decoder *d = png_get_io_ptr(png);
  if ((int64_t)n > d->n - d->pos) {
    d->ended = true;
    png_error(png, "the file ends early");
  }
  memcpy(out, d->bytes + d->pos, n);
  d->pos += (int64_t)n;
}

static ii_status prepare(ii_decoder *d, ii_error *err) {
  png_structp png = d->png;
  int64_t w = png_get_image_width(png, d->png_info), h = png_get_image_height(png, d->png_info);
  II_TRY(ii_decode_check_size(d, w, h, err));
  png_set_strip_16(png);
  png_set_expand(png); /* palette to RGB, grey of 1, 2, 4 bits to 8 */
  png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, d->png_info);
  if ((int64_t)png_get_rowbytes(png, d->png_info) != w * 3)
    return ii_error_set(err, II_ERR_FORMAT, "a PNG of an unknown kind");
  II_TRY(ii_image_reserve(d->img, w, h, err));
  /* an interlaced picture is built up over its own earlier passes, a truncated one stays black */
  memset(d->img->data, 0, (size_t)(w * h * 3));
  return II_OK;
}

static void read_rows(ii_decoder *d) {
  int64_t h = d->img->h, stride = d->img->w * 3;
  int passes = png_get_interlace_type(d->png, d->png_info) == PNG_INTERLACE_ADAM7 ? 7 : 1;
  for (int pass = 0; pass < passes; pass++)
    for (int64_t y = 0; y < h; y++) png_read_row(d->png, d->img->data + y * stride, NULL);
}

static ii_status decode(ii_decoder *d, ii_error *err) {
  d->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, d, fail, ignore_warning);
  if (d->png) d->png_info = png_create_info_struct(d->png);
  if (!d->png_info) return ii_error_set(err, II_ERR_MEMORY, "no memory for a PNG decoder");
  png_set_read_fn(d->png, d, read_bytes);
  png_set_user_limits(d->png, 0x7fffffff, 0x7fffffff); /* pixels are limited by prepare */
  png_set_chunk_malloc_max(d->png, MAX_CHUNK_BYTES);
  png_set_chunk_cache_max(d->png, MAX_CHUNKS);
  png_set_benign_errors(d->png, 1);
  /* libpng unpacks nothing of a piece that it could not read whole: small ones, to lose little */
  if (d->options.allow_truncated) png_set_compression_buffer_size(d->png, 16);
  png_read_info(d->png, d->png_info);
  II_TRY(prepare(d, err));
  read_rows(d);
  return II_OK;
}

ii_status ii_decode_png(ii_decoder *d, ii_error *err) {
  d->png = NULL, d->png_info = NULL;
  d->img->w = 0;
  ii_status status;
  if (setjmp(d->jump) == 0) {
    status = decode(d, err);
  } else if (d->ended && d->options.allow_truncated && d->img->w > 0) {
    status = II_OK; /* the rows that came */
  } else {
    status = ii_error_set(err, d->status, "%s", d->message);
  }
  png_destroy_read_struct(&d->png, &d->png_info, NULL);
  return status;
}
