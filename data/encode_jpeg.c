#include "data/image.h"
#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>

typedef struct {
  struct jpeg_compress_struct jpeg;
  struct jpeg_error_mgr err;
  jmp_buf jump;
} encoder;

static void fail(j_common_ptr c) {
  longjmp(((encoder *)c->client_data)->jump, 1);
}

static bool encode(encoder *e, uint8_t **out, unsigned long *n, const uint8_t *rgb, int64_t w,
                   int64_t h, int quality) {
  e->jpeg.err = jpeg_std_error(&e->err);
  e->err.error_exit = fail;
  e->jpeg.client_data = e;
  if (setjmp(e->jump)) {
    jpeg_destroy_compress(&e->jpeg);
    return false;
  }
  jpeg_create_compress(&e->jpeg);
  e->jpeg.client_data = e;
  jpeg_mem_dest(&e->jpeg, out, n);
  e->jpeg.image_width = (JDIMENSION)w;
  e->jpeg.image_height = (JDIMENSION)h;
  e->jpeg.input_components = 3;
  e->jpeg.in_color_space = JCS_RGB;
  jpeg_set_defaults(&e->jpeg);
  jpeg_set_quality(&e->jpeg, quality, TRUE);
  e->jpeg.dct_method = JDCT_ISLOW;
  jpeg_start_compress(&e->jpeg, TRUE);
  while (e->jpeg.next_scanline < e->jpeg.image_height) {
    JSAMPROW row = (JSAMPROW)(rgb + (int64_t)e->jpeg.next_scanline * w * 3);
    jpeg_write_scanlines(&e->jpeg, &row, 1);
  }
  jpeg_finish_compress(&e->jpeg);
  jpeg_destroy_compress(&e->jpeg);
  return true;
}

ii_status ii_image_encode_jpeg(const uint8_t *rgb, int64_t w, int64_t h, int quality, uint8_t **out,
                               int64_t *n, ii_error *err) {
  II_ASSERT(w > 0 && h > 0 && w <= JPEG_MAX_DIMENSION && h <= JPEG_MAX_DIMENSION, "%lld x %lld",
            (long long)w, (long long)h);
  encoder e = {0};
  unsigned long size = 0;
  *out = NULL;
  if (!encode(&e, out, &size, rgb, w, h, quality)) {
    free(*out);
    *out = NULL;
    return ii_error_set(err, II_ERR_MEMORY, "no memory to write a JPEG image");
  }
  *n = (int64_t)size;
  return II_OK;
}

ii_status ii_image_write_jpeg(const char *path, const uint8_t *rgb, int64_t w, int64_t h,
                              int quality, ii_error *err) {
  uint8_t *bytes;
  int64_t n;
  FILE *file = fopen(path, "wb");
  if (!file) return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  ii_status s = ii_image_encode_jpeg(rgb, w, h, quality, &bytes, &n, err);
  bool good = s != II_OK || fwrite(bytes, 1, (size_t)n, file) == (size_t)n;
  if (s == II_OK) free(bytes);
  if (fclose(file) != 0 || !good)
    return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  return s;
}
