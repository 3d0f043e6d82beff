#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <png.h>
#include "data/image.h"

/* What must survive a longjmp out of the library. */
typedef struct {
  jmp_buf jump;
  png_structp png;
  png_infop info;
  bool write_failed;
  FILE *file;
} encoder;

static void fail(png_structp png, png_const_charp text) {
  longjmp(((encoder *)png_get_error_ptr(png))->jump, 1);
}

static void ignore_warning(png_structp png, png_const_charp text) {}

static void write_bytes(png_structp png, png_bytep bytes, png_size_t n) {
  encoder *e = png_get_io_ptr(png);
  if (fwrite(bytes, 1, n, e->file) == n) return;
  e->write_failed = true;
  png_error(png, "write");
}

static void flush_nothing(png_structp png) {}

/* false: the library stopped. */
static bool encode(encoder *e, const uint8_t *rgb, int64_t w, int64_t h) {
  if (setjmp(e->jump)) return false;
  e->png = png_create_write_struct(PNG_LIBPNG_VER_STRING, e, fail, ignore_warning);
  if (e->png) e->info = png_create_info_struct(e->png);
  if (!e->info) return false;
  png_set_user_limits(e->png, 0x7fffffff, 0x7fffffff);
  png_set_write_fn(e->png, e, write_bytes, flush_nothing);
  png_set_IHDR(e->png, e->info, (png_uint_32)w, (png_uint_32)h, 8, PNG_COLOR_TYPE_RGB,
               PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(e->png, e->info);
  for (int64_t y = 0; y < h; y++) png_write_row(e->png, rgb + y * w * 3);
  png_write_end(e->png, NULL);
  return true;
}

static ii_status write_file(const char *path, const char *name, const uint8_t *rgb, int64_t w,
                            int64_t h, ii_error *err) {
  encoder e = {.file = fopen(name, "wb")};
  if (!e.file) return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  const bool good = encode(&e, rgb, w, h);
  const int number = errno; /* of a failed write */
  png_destroy_write_struct(&e.png, &e.info);
  if (!good && !e.write_failed) {
    fclose(e.file);
    return ii_error_set(err, II_ERR_MEMORY, "no memory to write the PNG image '%s'", path);
  }
  if (!good) {
    fclose(e.file);
    return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(number));
  }
  const bool synced = fflush(e.file) == 0 && fsync(fileno(e.file)) == 0;
  if (fclose(e.file) != 0 || !synced || rename(name, path) != 0)
    return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  return II_OK;
}

ii_status ii_image_write_png(const char *path, const uint8_t *rgb, int64_t w, int64_t h,
                             ii_error *err) {
  char name[4200];
  II_ASSERT(w > 0 && h > 0 && w <= 0x7fffffff && h <= 0x7fffffff, "%lld x %lld", (long long)w,
            (long long)h);
  const int n = snprintf(name, sizeof name, "%s.tmp-%ld", path, (long)getpid());
  if (n >= (int)sizeof name)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", path);
  struct stat st; /* a rename would replace a device or end in a folder */
  if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
    return ii_error_set(err, II_ERR_IO, "cannot write '%s': it is not a regular file", path);
  const ii_status s = write_file(path, name, rgb, w, h, err);
  if (s != II_OK) unlink(name);
  return s;
}
