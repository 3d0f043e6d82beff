#include "data/pack_shrink.h"
#include <stdlib.h>
#include <string.h>
#include "data/decode.h"

ii_status ii_shrinker_init(ii_shrinker *s, ii_error *err) {
  II_TRY(ii_decoder_new(&s->decoder, err));
  return ii_resizer_new(&s->resizer, err);
}

void ii_shrinker_free(ii_shrinker *s) {
  ii_decoder_free(s->decoder);
  ii_resizer_free(s->resizer);
  ii_image_free(&s->image);
  ii_image_free(&s->small);
}

static int64_t scaled(int64_t side, int64_t longer, int64_t max_side) {
  int64_t out = (side * max_side * 2 + longer) / (2 * longer);
  return out < 1 ? 1 : out;
}

/* Puts an EXIF segment with the orientation alone behind the start-of-image marker of *jpeg [*n]
 * (malloc; another block afterwards). */
static ii_status add_orientation(uint8_t **jpeg, int64_t *n, int orientation, ii_error *err) {
  /* APP1; TIFF header; a directory of one entry: orientation, 1 short; no more directories */
  uint8_t exif[36] = {0xff, 0xe1, 0, 34, 'E', 'x', 'i', 'f',  0, 0, 'I', 'I', 42,
                      0,    8,    0, 0,  0,   1,   0,   0x12, 1, 3, 0,   1};
  exif[28] = (uint8_t)orientation;
  uint8_t *more = malloc((size_t)*n + sizeof exif);
  if (!more) return ii_error_set(err, II_ERR_MEMORY, "no memory for an image");
  memcpy(more, *jpeg, 2);
  memcpy(more + 2, exif, sizeof exif);
  memcpy(more + 2 + sizeof exif, *jpeg + 2, (size_t)*n - 2);
  free(*jpeg);
  *jpeg = more, *n += (int64_t)sizeof exif;
  return II_OK;
}

ii_status ii_shrink(ii_shrinker *s, const uint8_t *bytes, int64_t size, int64_t max_side,
                    int quality, uint8_t **out, int64_t *n, ii_error *err) {
  const ii_decode_options plain = {0};
  *out = NULL;
  II_TRY(ii_image_decode(s->decoder, bytes, size, &plain, &s->image, err));
  const int64_t w = s->image.w, h = s->image.h, longer = w > h ? w : h;
  if (longer <= max_side) return II_OK;
  const int64_t to_w = scaled(w, longer, max_side), to_h = scaled(h, longer, max_side);
  II_TRY(ii_image_reserve(&s->small, to_w, to_h, err));
  const ii_resize_job job = {.src = &s->image,
                             .box = {.h = h, .w = w},
                             .filter = II_FILTER_BICUBIC,
                             .out_w = to_w,
                             .out_h = to_h,
                             .view = {.h = to_h, .w = to_w}};
  II_TRY(ii_resize(s->resizer, &job, s->small.data, err));
  II_TRY(ii_image_encode_jpeg(s->small.data, to_w, to_h, quality, out, n, err));
  const int orientation = bytes[0] == 0xff ? ii_exif_orientation(bytes, size) : 1;
  ii_status status = II_OK;
  if (orientation != 1) status = add_orientation(out, n, orientation, err);
  if (status != II_OK || *n >= size) {
    free(*out);
    *out = NULL;
  }
  return status;
}
