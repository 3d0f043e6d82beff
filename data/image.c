#include "data/decode.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEEP_BYTES (INT64_C(64) << 20) /* buffers up to this size are never given back */
#define MAX_FILE   (INT64_C(1) << 30)

/* Room for n bytes. A huge buffer that is now 8 times too large goes back: one giant picture in a
 * data set must not cost its memory in every thread for the rest of the run. */
static uint8_t *resized(uint8_t *data, int64_t *capacity, int64_t n) {
  if (n <= *capacity && (*capacity <= KEEP_BYTES || n >= *capacity / 8)) return data;
  free(data);
  data = malloc((size_t)n);
  *capacity = data ? n : 0;
  return data;
}

ii_status ii_image_reserve(ii_image *img, int64_t w, int64_t h, ii_error *err) {
  II_ASSERT(w > 0 && h > 0 && w <= INT64_MAX / 3 / h, "w %lld h %lld", (long long)w, (long long)h);
  img->data = resized(img->data, &img->capacity, w * h * 3);
  img->w = img->data ? w : 0, img->h = img->data ? h : 0;
  if (!img->data)
    return ii_error_set(err, II_ERR_MEMORY, "no memory for an image of %lld x %lld pixels",
                        (long long)w, (long long)h);
  return II_OK;
}

void ii_image_free(ii_image *img) {
  free(img->data);
  *img = (ii_image){0};
}

ii_status ii_bytes_reserve(ii_bytes *buffer, int64_t n, ii_error *err) {
  buffer->data = resized(buffer->data, &buffer->capacity, n > 0 ? n : 1);
  if (!buffer->data)
    return ii_error_set(err, II_ERR_MEMORY, "no memory for %lld bytes", (long long)n);
  return II_OK;
}

void ii_bytes_free(ii_bytes *buffer) {
  free(buffer->data);
  *buffer = (ii_bytes){0};
}

static ii_status read_all(ii_bytes *buffer, int fd, const char *path, ii_error *err) {
  struct stat st;
  if (fstat(fd, &st) != 0)
    return ii_error_set(err, II_ERR_IO, "cannot look at '%s': %s", path, strerror(errno));
  if (!S_ISREG(st.st_mode)) return ii_error_set(err, II_ERR_IO, "'%s' is not a regular file", path);
  if (st.st_size == 0) return ii_error_set(err, II_ERR_FORMAT, "'%s' is empty", path);
  if (st.st_size > MAX_FILE)
    return ii_error_set(err, II_ERR_FORMAT, "'%s' has %lld bytes; image files may have 1 GiB", path,
                        (long long)st.st_size);
  II_TRY(ii_bytes_reserve(buffer, st.st_size, err));
  while (buffer->size < st.st_size) {
    ssize_t got = read(fd, buffer->data + buffer->size, (size_t)(st.st_size - buffer->size));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ii_error_set(err, II_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
    if (got == 0) break; /* it was cut while we read: the decoder will find out */
    buffer->size += got;
  }
  return II_OK;
}

ii_status ii_bytes_read(ii_bytes *buffer, const char *path, ii_error *err) {
  buffer->size = 0;
  /* O_NONBLOCK: opening a named pipe must not wait for a writer */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ii_error_set(err, II_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  ii_status status = read_all(buffer, fd, path, err);
  close(fd);
  return status;
}

ii_status ii_decoder_new(ii_decoder **decoder, ii_error *err) {
  ii_decoder *d = calloc(1, sizeof *d);
  if (!d) return ii_error_set(err, II_ERR_MEMORY, "no memory for an image decoder");
  ii_status status = ii_decode_jpeg_open(d, err);
  if (status != II_OK) {
    free(d);
    return status;
  }
  *decoder = d;
  return II_OK;
}

void ii_decoder_free(ii_decoder *d) {
  if (!d) return;
  ii_decode_jpeg_close(d);
  ii_bytes_free(&d->cmyk);
  ii_bytes_free(&d->cut);
  ii_image_free(&d->turned);
  ii_image_free(&d->whole);
  free(d);
}

ii_status ii_decode_check_size(const ii_decoder *d, int64_t w, int64_t h, ii_error *err) {
  int64_t limit = d->options.max_pixels > 0 ? d->options.max_pixels : II_MAX_PIXELS_DEFAULT;
  if (w <= 0 || h <= 0)
    return ii_error_set(err, II_ERR_FORMAT, "the image is empty (%lld x %lld)", (long long)w,
                        (long long)h);
  if (w > limit / h)
    return ii_error_set(err, II_ERR_FORMAT,
                        "the image of %lld x %lld pixels is above the limit of %lld pixels",
                        (long long)w, (long long)h, (long long)limit);
  return II_OK;
}

static ii_status open_png(ii_decoder *d, int64_t *w, int64_t *h, ii_error *err) {
  d->is_png = true;
  d->img = &d->whole;
  II_TRY(ii_decode_png(d, err));
  *w = d->whole.w, *h = d->whole.h;
  return II_OK;
}

static ii_status open_jpeg(ii_decoder *d, int64_t *w, int64_t *h, ii_error *err) {
  int64_t stored_w, stored_h;
  d->is_png = false;
  II_TRY(ii_decode_jpeg_header(d, &stored_w, &stored_h, err));
  d->orientation = d->options.apply_orientation ? ii_exif_orientation(d->bytes, d->n) : 1;
  *w = d->orientation >= 5 ? stored_h : stored_w;
  *h = d->orientation >= 5 ? stored_w : stored_h;
  return II_OK;
}

ii_status ii_image_open(ii_decoder *d, const uint8_t *bytes, int64_t n,
                        const ii_decode_options *options, int64_t *w, int64_t *h, ii_error *err) {
  static const uint8_t png_magic[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  d->bytes = bytes, d->n = n, d->pos = 0;
  d->options = *options;
  d->ended = false;
  d->index = NULL, d->index_size = 0;
  d->status = II_OK;
  d->message[0] = 0;
  if (n >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff)
    return open_jpeg(d, w, h, err);
  if (n >= 8 && memcmp(bytes, png_magic, 8) == 0) return open_png(d, w, h, err);
  if (n >= 4 && memcmp(bytes, png_magic, 4) == 0)
    return ii_error_set(err, II_ERR_FORMAT, "the PNG signature is damaged");
  return ii_error_set(err, II_ERR_FORMAT, "neither a JPEG nor a PNG file (unknown first bytes)");
}

void ii_image_use_index(ii_decoder *d, const uint8_t *index, int64_t n) {
  d->index = index, d->index_size = n;
}

ii_status ii_image_read(ii_decoder *d, ii_box part, ii_image *img, ii_box *at, ii_error *err) {
  if (d->is_png) {
    ii_image t = *img;
    *img = d->whole, d->whole = t;
    *at = (ii_box){0, 0, img->h, img->w};
    return II_OK;
  }
  int64_t w = d->jpeg.image_width, h = d->jpeg.image_height;
  bool turned = d->orientation >= 5;
  d->img = img;
  d->part = ii_exif_to_stored(d->orientation, turned ? h : w, turned ? w : h, part);
  II_ASSERT(d->part.left >= 0 && d->part.top >= 0 && d->part.w > 0 && d->part.h > 0 &&
                d->part.left + d->part.w <= w && d->part.top + d->part.h <= h,
            "part %lld %lld %lld %lld of %lld x %lld", (long long)part.left, (long long)part.top,
            (long long)part.w, (long long)part.h, (long long)w, (long long)h);
  II_TRY(ii_decode_jpeg_pixels(d, err));
  *at = ii_exif_to_upright(d->orientation, w, h, d->at);
  return ii_exif_apply(d->orientation, img, &d->turned, err);
}

ii_status ii_image_decode(ii_decoder *d, const uint8_t *bytes, int64_t n,
                          const ii_decode_options *options, ii_image *img, ii_error *err) {
  ii_box all = {0}, at;
  II_TRY(ii_image_open(d, bytes, n, options, &all.w, &all.h, err));
  return ii_image_read(d, all, img, &at, err);
}
