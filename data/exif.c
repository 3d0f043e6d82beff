/* EXIF orientation (TIFF tag 0x0112 of the first image directory in the APP1 segment). Anything
 * that cannot be understood means "upright": broken EXIF data is common and never an error. */
#include "data/decode.h"
#include <string.h>

typedef struct {
  const uint8_t *p;
  int64_t n;
  bool little;
} tiff;

static uint32_t get16(const tiff *t, int64_t at) {
  const uint8_t *p = t->p + at;
  return t->little ? (uint32_t)(p[0] | p[1] << 8) : (uint32_t)(p[0] << 8 | p[1]);
}

static uint32_t get32(const tiff *t, int64_t at) {
  uint32_t a = get16(t, at), b = get16(t, at + 2);
  return t->little ? a | b << 16 : a << 16 | b;
}

static int tiff_orientation(const uint8_t *p, int64_t n) {
  if (n < 8) return 1;
  tiff t = {p, n, p[0] == 'I'};
  if (!(p[0] == 'I' && p[1] == 'I') && !(p[0] == 'M' && p[1] == 'M')) return 1;
  if (get16(&t, 2) != 42) return 1;
  int64_t at = get32(&t, 4);
  if (at + 2 > n) return 1;
  int64_t entries = get16(&t, at);
  at += 2;
  for (int64_t i = 0; i < entries && at + 12 <= n; i++, at += 12) {
    if (get16(&t, at) != 0x0112) continue;
    uint32_t value = get16(&t, at + 8);
    return value >= 1 && value <= 8 ? (int)value : 1;
  }
  return 1;
}

int ii_exif_orientation(const uint8_t *bytes, int64_t n) {
  int64_t at = 2; /* after the start-of-image marker */
  while (at + 4 <= n && bytes[at] == 0xff) {
    uint8_t marker = bytes[at + 1];
    if (marker == 0xff) { /* a fill byte */
      at++;
      continue;
    }
    if (marker == 0xda || marker == 0xd9) break; /* the picture begins, or the file ends */
    if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) { /* markers without a segment */
      at += 2;
      continue;
    }
    int64_t length = bytes[at + 2] << 8 | bytes[at + 3];
    if (length < 2 || at + 2 + length > n) break;
    if (marker == 0xe1 && length >= 8 && memcmp(bytes + at + 4, "Exif\0\0", 6) == 0)
      return tiff_orientation(bytes + at + 10, length - 8);
    at += 2 + length;
  }
  return 1;
}

/* What an orientation does on the way from the upright picture to the stored one: exchange of x and
 * y, then mirroring. */
static void parts(int orientation, bool *transpose, bool *mirror_x, bool *mirror_y) {
  *transpose = orientation >= 5; /* rows of the file are columns of the scene */
  *mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  *mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
}

static ii_box transposed(ii_box b) {
  return (ii_box){.top = b.left, .left = b.top, .h = b.w, .w = b.h};
}

static ii_box mirrored(ii_box b, int64_t w, int64_t h, bool mirror_x, bool mirror_y) {
  if (mirror_x) b.left = w - (b.left + b.w);
  if (mirror_y) b.top = h - (b.top + b.h);
  return b;
}

ii_box ii_exif_to_stored(int orientation, int64_t w, int64_t h, ii_box box) {
  bool transpose, mirror_x, mirror_y;
  parts(orientation, &transpose, &mirror_x, &mirror_y);
  if (!transpose) return mirrored(box, w, h, mirror_x, mirror_y);
  return mirrored(transposed(box), h, w, mirror_x, mirror_y);
}

ii_box ii_exif_to_upright(int orientation, int64_t w, int64_t h, ii_box box) {
  bool transpose, mirror_x, mirror_y;
  parts(orientation, &transpose, &mirror_x, &mirror_y);
  box = mirrored(box, w, h, mirror_x, mirror_y);
  return transpose ? transposed(box) : box;
}

ii_status ii_exif_apply(int orientation, ii_image *img, ii_image *spare, ii_error *err) {
  if (orientation == 1) return II_OK;
  bool transpose, mirror_x, mirror_y;
  parts(orientation, &transpose, &mirror_x, &mirror_y);
  int64_t w = img->w, h = img->h;
  int64_t out_w = transpose ? h : w, out_h = transpose ? w : h;
  II_TRY(ii_image_reserve(spare, out_w, out_h, err));
  uint8_t *out = spare->data;
  for (int64_t y = 0; y < out_h; y++)
    for (int64_t x = 0; x < out_w; x++, out += 3) {
      int64_t sx = transpose ? y : x, sy = transpose ? x : y;
      if (mirror_x) sx = w - 1 - sx;
      if (mirror_y) sy = h - 1 - sy;
      memcpy(out, img->data + (sy * w + sx) * 3, 3);
    }
  ii_image t = *img;
  *img = *spare, *spare = t;
  return II_OK;
}
