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

static bool encode(encoder *e, FILE *file, const uint8_t *rgb, int64_t w, int64_t h, int quality) {
  e->jpeg.err = jpeg_std_error(&e->err);
  e->err.error_exit = fail;
  e->jpeg.client_data = e;
  if (setjmp(e->jump)) {
    jpeg_destroy_compress(&e->jpeg);
    return false;
  }
  jpeg_create_compress(&e->jpeg);
  e->jpeg.client_data = e;
  jpeg_stdio_dest(&e->jpeg, file);
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

ii_status ii_image_write_jpeg(const char *path, const uint8_t *rgb, int64_t w, int64_t h,
                              int quality, ii_error *err) {
  II_ASSERT(w > 0 && h > 0 && w <= JPEG_MAX_DIMENSION && h <= JPEG_MAX_DIMENSION, "%lld x %lld",
            (long long)w, (long long)h);
  FILE *file = fopen(path, "wb");
  if (!file) return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  encoder e = {0};
  bool good = encode(&e, file, rgb, w, h, quality);
  if (fclose(file) != 0 || !good)
    return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path,
                        errno ? strerror(errno) : "the JPEG library refused");
  return II_OK;
}
