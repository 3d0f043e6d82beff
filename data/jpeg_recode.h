/* Writing the coefficients of a JPEG file anew, for packs. Not for other folders. */
#ifndef II_JPEG_RECODE_H
#define II_JPEG_RECODE_H
#include <stdint.h>
#include "autograd/error.h"

/* Makes a baseline JPEG with the same coefficients, so with the same pixels to the last bit, whose
 * restart markers divide each row of MCUs into pieces of 2 (or 3 or 1) MCUs: of such a file a part
 * of the picture can be decoded without reading what is beside and above it. The EXIF orientation
 * is kept, other metadata is not. The result is read back and compared before it is returned.
 * *out [*n] is new memory freed by the caller; NULL when the file is to be kept as it is: no JPEG,
 * CMYK, above 64 Mi pixels, with anything that the library would warn of, or more than twice as
 * long afterwards. Takes up to 12 bytes per pixel meanwhile.
 * Errors: II_ERR_MEMORY. */
ii_status ii_jpeg_recode(const uint8_t *bytes, int64_t size, uint8_t **out, int64_t *n,
                         ii_error *err);

/* Puts an EXIF segment with the orientation alone behind the start-of-image marker of *jpeg [*n]
 * (malloc; another block afterwards). Errors: II_ERR_MEMORY. */
ii_status ii_jpeg_add_orientation(uint8_t **jpeg, int64_t *n, int orientation, ii_error *err);

#endif
