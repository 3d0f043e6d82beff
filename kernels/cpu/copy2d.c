/* Columns of a matrix into columns of another: slices and concatenations. Copy speed. */
#include "kernels/cpu/cpu.h"
#include <string.h>

int II_FN(copy2d)(ii_kctx *k, const ii_copy2d_args *a) {
  size_t size = ii_dtype_size(a->x_dtype);
  for (int64_t r = 0; r < a->rows; r++) {
    const char *x = (const char *)a->x + (size_t)(r * a->x_stride) * size;
    char *y = (char *)a->y + (size_t)(r * a->y_stride) * size;
    if (!a->accumulate) {
      memcpy(y, x, (size_t)a->n * size);
      continue;
    }
    for (int64_t i = 0; i < a->n; i++) {
      if (a->x_dtype == II_BF16) {
        uint16_t *to = (uint16_t *)y + i;
        *to = ii_f32_to_bf16(ii_bf16_to_f32(*to) + ii_bf16_to_f32(((const uint16_t *)x)[i]));
      } else {
        ((real *)y)[i] += ((const real *)x)[i];
      }
    }
  }
  return 0;
}
