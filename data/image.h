/* Images in memory and their decoding from JPEG and PNG files.
 *
 * The format is recognised by the first bytes, never by a file name (one ImageNet JPEG is a PNG).
 * Results equal Pillow's convert("RGB"): ISLOW inverse DCT and fancy chroma upsampling, grey copied
 * to three channels, CMYK always taken as inverted (Adobe), alpha and transparency dropped.
 * Damaged data never crashes: it is an II_ERR_FORMAT with the reason, or, where the libraries only
 * warn (as Pillow ignores warnings), an image. */
#ifndef II_IMAGE_H
#define II_IMAGE_H
#include <stdbool.h>
#include <stdint.h>
#include "autograd/error.h"

/* 8-bit RGB, interleaved, rows of w * 3 bytes without padding, top row first. Starts as {0}; data
 * belongs to the image and is reused by the next decode into it. */
typedef struct {
  int64_t w, h;
  uint8_t *data;
  int64_t capacity; /* bytes allocated at data */
} ii_image;

/* A rectangle of pixels inside an image. */
typedef struct {
  int64_t top, left, h, w;
} ii_box;

/* Makes room for w x h (> 0) pixels and sets w and h; the content is undefined. Keeps the memory it
 * has when that is enough, but gives a very large block back once images are small again. */
ii_status ii_image_reserve(ii_image *img, int64_t w, int64_t h, ii_error *err);

/* Frees the pixels; *img is {0} again. */
void ii_image_free(ii_image *img);

/* 2 * 89,478,485: above this Pillow refuses an image as a decompression bomb. */
#define II_MAX_PIXELS_DEFAULT INT64_C(178956970)

typedef struct {
  bool apply_orientation; /* rotate and mirror by the EXIF orientation of JPEG files. OpenCV, the
                           * official train decoder, does; Pillow, the validation decoder, does not
                           */
  bool allow_truncated;   /* a file that ends early is an image whose missing part is grey (JPEG)
                           * or black (PNG) instead of an error */
  int64_t max_pixels;     /* refuse larger images from their header, before any memory is taken;
                           * 0: II_MAX_PIXELS_DEFAULT */
} ii_decode_options;

/* The working memory of decoding: one per thread. */
typedef struct ii_decoder ii_decoder;
ii_status ii_decoder_new(ii_decoder **decoder, ii_error *err);
void ii_decoder_free(ii_decoder *decoder); /* NULL is allowed */

/* Decodes the n bytes of a JPEG or PNG file into *img (overwritten; keeps ownership of its memory;
 * undefined content on failure).
 * Errors: II_ERR_FORMAT (not an image, damaged, truncated, too large), II_ERR_MEMORY. The sentence
 * does not name the file, which is not known here: use ii_error_prefix. */
ii_status ii_image_decode(ii_decoder *decoder, const uint8_t *bytes, int64_t n,
                          const ii_decode_options *options, ii_image *img, ii_error *err);

/* The same in two steps, for callers that need a part of the picture only: ii_image_open reads the
 * header and tells the size of the upright picture (PNG files are decoded at once). bytes must stay
 * until the decoder is used for something else. Errors: as ii_image_decode.
 *
 * ii_image_read decodes at least `part` (inside the picture, not empty; asserted): *img becomes the
 * region *at of the picture, whose pixels inside of part are those of the whole picture, to the
 * last bit; the others are undefined. What a file has after the part is not looked at, so damage
 * there goes unnoticed. Once per ii_image_open. Errors: as ii_image_decode. */
ii_status ii_image_open(ii_decoder *decoder, const uint8_t *bytes, int64_t n,
                        const ii_decode_options *options, int64_t *w, int64_t *h, ii_error *err);
ii_status ii_image_read(ii_decoder *decoder, ii_box part, ii_image *img, ii_box *at, ii_error *err);

/* Between the two: index [n] is the crop index (data/jpeg_index.h) of the very bytes that were
 * opened, as their checksums have shown; it must stay as long as they. The pixels are the same, but
 * come sooner where the part is small. NULL and 0: there is none. */
void ii_image_use_index(ii_decoder *decoder, const uint8_t *index, int64_t n);

/* A growing buffer that files are read into; starts as {0}. */
typedef struct {
  uint8_t *data;
  int64_t size, capacity;
} ii_bytes;

/* Reads the whole regular file into *buffer (overwritten, memory reused). Files above 1 GiB are
 * refused. Errors (they name the file): II_ERR_IO, II_ERR_FORMAT (empty), II_ERR_MEMORY. */
ii_status ii_bytes_read(ii_bytes *buffer, const char *path, ii_error *err);
void ii_bytes_free(ii_bytes *buffer);

/* The same as ii_image_write_jpeg in new memory: *out [*n], freed by the caller.
 * Errors: II_ERR_MEMORY; then *out is NULL. */
ii_status ii_image_encode_jpeg(const uint8_t *rgb, int64_t w, int64_t h, int quality, uint8_t **out,
                               int64_t *n, ii_error *err);

/* Writes w x h RGB pixels as a baseline JPEG (4:2:0, ISLOW) of the given quality 1..100.
 * Errors: II_ERR_IO with the file's name. */
ii_status ii_image_write_jpeg(const char *path, const uint8_t *rgb, int64_t w, int64_t h,
                              int quality, ii_error *err);

/* Writes w x h RGB pixels as an 8-bit PNG, under a temporary name that becomes `path` when the file
 * is whole; a regular file that exists is replaced. Errors: II_ERR_IO with the file's name,
 * II_ERR_MEMORY; then nothing is left behind. II_ERR_ARG (name too long). */
ii_status ii_image_write_png(const char *path, const uint8_t *rgb, int64_t w, int64_t h,
                             ii_error *err);

#endif
