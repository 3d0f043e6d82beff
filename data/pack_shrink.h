/* Making an image file smaller for a pack. Not for other folders. */
#ifndef II_PACK_SHRINK_H
#define II_PACK_SHRINK_H
#include "data/resize.h"

/* Working memory: one per thread; starts as {0}. */
typedef struct {
  ii_decoder *decoder;
  ii_resizer *resizer;
  ii_image image, small;
} ii_shrinker;

ii_status ii_shrinker_init(ii_shrinker *s, ii_error *err);
void ii_shrinker_free(ii_shrinker *s);

/* If the longer side of the JPEG or PNG file is above max_side: resizes it (bicubic, antialiased,
 * aspect kept) and encodes it as JPEG of that quality; the EXIF orientation stays. *out [*n] is new
 * memory freed by the caller, or NULL when the file is to be kept: small enough, or not above the
 * size of what it would become. Errors: II_ERR_FORMAT (it cannot be decoded), II_ERR_MEMORY. */
ii_status ii_shrink(ii_shrinker *s, const uint8_t *bytes, int64_t size, int64_t max_side,
                    int quality, uint8_t **out, int64_t *n, ii_error *err);

#endif
